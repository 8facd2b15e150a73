"""Images for LLaMA-Adapter: a frozen CLIP vision tower, and early fusion of version 2.

Features of an image are (T, F): T tokens, of which the first is the global one and the others are
patches, and F the widths of all chosen scales side by side. What reads them:

- late fusion, version 1 (arXiv:2303.16199, equations 9 and 10): the global tokens alone, (B, F),
  are projected to one row that :mod:`models.llm.adapter` adds to every row of every prompt;
- early fusion, version 2 (arXiv:2304.15010, section 4.3): all tokens, (B, T, F), are projected to
  visual prompt rows of their own, which the first layers attend to through zero-init gates of
  their own. They are never added to prompts, and no layer has both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from algorithms import ParameterError
from models.jsonl import read_object
from models.llm.choices import one_of
from models.llm.pretrained import load_folder, load_model
from models.llm.prompt_attention import attend_rows, project_rows

__all__ = [
    "VISION_SIZES", "Picture", "VisionShape", "VisionTower", "VisualAttention", "VisualProjection",
    "check_visual_layers", "open_picture", "vision_tower",
]

Picture = Image.Image | str | Path
"""An image of Pillow, or the path of a file with one."""

_CLIP = ("clip", "clip_vision_model")
"""Types of models with CLIP's vision tower: with its text tower, and alone."""


@dataclass(frozen=True)
class VisionShape:
    """Everything that shapes one vision tower.

    width: features of a token. hidden: features inside the perceptron. layers, heads: of the
    encoder. image, patch: sides of the square image and of a patch, in pixels.
    scales: numbers, from 1, of the layers whose outputs are features.
    projection: features inside the projection of its features.
    """

    width: int
    hidden: int
    layers: int
    heads: int
    image: int
    patch: int
    scales: tuple[int, ...]
    projection: int

    @property
    def tokens(self) -> int:
        """Of an image: the global one and the patches."""
        return 1 + (self.image // self.patch) ** 2

    @property
    def features(self) -> int:
        """Of a token, all scales together."""
        return self.width * len(self.scales)


VISION_SIZES: dict[str, VisionShape] = {
    "tiny": VisionShape(32, 64, 2, 4, 16, 8, scales=(1, 2), projection=32),
    "small": VisionShape(64, 128, 4, 4, 32, 8, scales=(2, 4), projection=64),
    "full": VisionShape(1024, 4096, 24, 16, 224, 14, scales=(24,), projection=1024),
}
"""``full`` is CLIP ViT-L/14."""


class VisionTower(nn.Module):
    """Pixels (B, 3, H, W) to features (B, T, F), in the tower's dtype, of a frozen CLIP encoder.

    The encoder is in evaluation mode whatever :meth:`train` says. Raises :class:`ParameterError`
    for a scale that the encoder does not have.
    """

    def __init__(
        self,
        encoder: CLIPVisionModel,
        scales: Sequence[int],
        processor: CLIPImageProcessorPil | None = None,
    ) -> None:
        super().__init__()
        depth = encoder.config.num_hidden_layers
        for scale in scales or (0,):
            if not 1 <= scale <= depth:
                raise ParameterError("scales", [*scales], f"must be numbers from 1 to {depth}",
                                     [min(max(scale, 1), depth) for scale in scales] or [depth])
        side: Any = encoder.config.image_size
        self.encoder = encoder.requires_grad_(False)
        self.train(False)
        self.scales = tuple(scales)
        self.processor = processor or CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    @classmethod
    def from_directory(cls, path: str | Path, scales: Sequence[int]) -> VisionTower:
        """The vision part of a CLIP model in a local directory of Hugging Face.

        Resizing and normalisation are as ``preprocessor_config.json`` there says, if it is there.
        Raises :class:`ParameterError` for a directory without a model of CLIP, or with one that
        lacks weights.
        """
        directory = Path(path)
        if not (directory / "config.json").is_file():
            raise ParameterError("path", str(path),
                                 "must be a local directory with config.json and weights of CLIP")
        one_of(f"{directory / 'config.json'}: model_type",
               read_object(directory / "config.json").value.get("model_type"), _CLIP)
        encoder = load_model(CLIPVisionModel, directory, "path")
        processor = None
        if (directory / "preprocessor_config.json").is_file():
            processor = load_folder(CLIPImageProcessorPil, directory, "path")
        return cls(encoder, scales, processor)

    @property
    def features(self) -> int:
        """F."""
        return len(self.scales) * int(self.encoder.config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features, without gradient."""
        with torch.no_grad():
            states = self.encoder(pixels, output_hidden_states=True).hidden_states
        return torch.cat([states[scale] for scale in self.scales], dim=-1)

    def pixels(self, pictures: Sequence[Picture]) -> Tensor:
        """Pictures to (B, 3, H, W), float32: RGB, resized, cropped and normalised as CLIP's are.

        Raises :class:`ParameterError` for anything but pictures.
        """
        images = [open_picture(picture) for picture in pictures]
        made: Tensor = self.processor(images=images, return_tensors="pt")["pixel_values"]
        return made.to(self.encoder.device)

    def see(self, pictures: Sequence[Picture], visual: Literal["early", "late"]) -> Tensor:
        """Pictures to what an adapter of that fusion reads: (B, T, F), or (B, F) for ``"late"``."""
        features: Tensor = self(self.pixels(pictures))
        return features[:, 0] if visual == "late" else features

    def train(self, mode: bool = True) -> VisionTower:
        """The tower stays in evaluation mode."""
        super().train(False)
        return self


class VisualProjection(nn.Module):
    """Features (B, T, F) to visual prompt rows (B, R, width), all float32.

    R learnt queries gather one row each from the T tokens by attention, F through ``hidden`` to
    ``width``. Rows have unit variance, as the normalised tokens that the same projections of the
    base read.
    """

    def __init__(self, features: int, hidden: int, rows: int, width: int, device: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features, device=device)
        self.down = nn.Linear(features, hidden, device=device)
        self.queries = nn.Parameter(torch.randn(rows, hidden, device=device))
        self.up = nn.Linear(hidden, width, device=device)
        self.row_norm = nn.LayerNorm(width, device=device)

    def forward(self, features: Tensor) -> Tensor:
        """Rows; raises :class:`ParameterError` for features of another shape."""
        width, hidden = self.down.in_features, self.down.out_features
        if features.dim() != 3 or features.shape[2] != width:
            raise ParameterError("images", tuple(features.shape),
                                 f"must be (batch, tokens, {width})")
        tokens = self.down(self.norm(features.to(self.down.weight.dtype)))
        picked = (self.queries @ tokens.mT / hidden ** 0.5).softmax(-1) @ tokens
        rows: Tensor = self.row_norm(self.up(nn.functional.gelu(picked)))
        return rows


class VisualAttention(nn.Module):
    """Gated attention to visual prompt rows, a child ``adapter`` of a first layer's attention.

    ``gate`` (heads,) or (1,), float32. Arguments as for
    :class:`models.llm.prompt_attention.PromptAttention`.
    """

    def __init__(
        self, attention: Any, gates: int, tanh: bool = True, zero_init: bool = True
    ) -> None:
        super().__init__()
        draw = torch.zeros if zero_init else torch.randn
        self.gate = nn.Parameter(draw(gates, device=attention.k_proj.weight.device))
        self.tanh, self.enabled = tanh, True

    @property
    def strength(self) -> Tensor:
        """What the attention to the rows is multiplied by, (heads,) or (1,), float32."""
        return self.gate.tanh() if self.tanh else self.gate

    def forward(self, attention: Any, query: Tensor, image: Tensor | None) -> Tensor | None:
        """What is added in front of ``o_proj``: rotated queries (B, heads, S, d) to the same.

        ``image`` are the rows (B, R, width); nothing is added without.
        """
        if image is None:
            return None
        key, value = project_rows(attention, image.to(query.dtype))
        return attend_rows(attention, query, key, value, self.strength)


def check_visual_layers(depth: int, layers: int, adapted: int) -> None:
    """Raise :class:`ParameterError` if ``layers`` first ones of ``depth`` reach the adapted ones.

    Those are the topmost ``adapted``, whose prompts an image must not mix with.
    """
    free = depth - adapted
    if layers > free:
        raise ParameterError(
            "visual_layers", layers, f"must be at most {free}: the topmost {adapted} of {depth} "
            "layers have prompts, and no layer has both", free)


def vision_tower(size: str, seed: int = 0) -> VisionTower:
    """A tower with random weights, which depend on ``seed`` alone.

    Under ``torch.device("meta")`` it has shapes only. Raises :class:`ParameterError` for an unknown
    size.
    """
    one_of("size", size, VISION_SIZES)
    shape = VISION_SIZES[size]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = CLIPVisionModel(CLIPVisionConfig(
            hidden_size=shape.width,
            intermediate_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            image_size=shape.image,
            patch_size=shape.patch,
        ))
    return VisionTower(encoder, shape.scales)


def open_picture(picture: Picture) -> Image.Image:
    """The image itself; raises :class:`ParameterError` for what is none and for a bad file."""
    if isinstance(picture, Image.Image):
        return picture
    if not isinstance(picture, str | Path):
        raise ParameterError("image", type(picture).__name__,
                             "must be a Pillow image or the path of an image file")
    try:
        with Image.open(picture) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise ParameterError("image", str(picture), "must be a file that is there") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ParameterError("image", str(picture), f"must be a readable image: {error}") from None
