"""LLaMA-Adapter V1 (arXiv:2303.16199) and V2 (arXiv:2304.15010) on models of Hugging Face.

The topmost layers each get a learnt prompt and a gate, see :mod:`models.llm.prompt_attention`; the
base is frozen, so that a training step has no large weight gradient. Its parameters keep their
names and its modules their classes. A layer's adapter is ``self_attn.adapter``, what all layers
share is ``adapter`` of the base. Version 2 adds, each as an option, early fusion of images
(:mod:`models.llm.vision`) and bias tuning (:mod:`models.llm.unlocked`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from algorithms import ParameterError, closest
from models.llm.prompt_attention import (
    IMAGE_ROWS,
    PROJECTIONS,
    PromptAttention,
    UngatedPrompt,
    misfit,
    plug_in,
    unplug,
)
from models.llm.unlocked import (
    ScaleSide,
    count_unlocked,
    enable_unlocked,
    fold,
    lock,
    unlock,
    unlocked_parameters,
)
from models.llm.vision import VisualAttention, VisualProjection, check_visual_layers

__all__ = [
    "SUPPORTED", "Adapter", "AdapterConfig", "GateStatistics", "adapter_base", "adapter_parameters",
    "adapter_root", "attentions", "disabled", "enable_adapter", "fold_adapter", "gate_statistics",
    "image_context", "image_rows", "insert_adapter", "remove_adapter",
]

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "olmo2")
"""Model types that the tests run; others of the same structure are taken too."""


class AdapterConfig(BaseModel):
    """What an adapter is; ``adapter_config.json`` beside its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(ge=1, description="Adapted layers, the topmost ones.")
    prompt: int = Field(ge=1, description="Rows of the prompt of each layer.")
    gate: Literal["head", "scalar"] = Field("head", description="A gate a head, or one a layer.")
    tanh: bool = Field(True, description="Multiply by tanh(gate), not by the gate.")
    zero_init: bool = Field(
        True, description="Gates start at zero. False is the ablation of random initialisation: "
        "gates are drawn from N(0, 1) as prompts are, so that prompts act from the first step on.")
    gated: bool = Field(
        True, description="Prompts have a softmax of their own behind gates. False is the ablation "
        "of ordinary attention: one softmax over prompt and words, in which random prompts act "
        "from the first step on; gate, tanh and zero_init then mean nothing.")
    visual: Literal["none", "late", "early"] = Field(
        "none", description="late: the projected feature of an image is added to every prompt row "
        "of every adapted layer (V1, equations 9 and 10). early: the first layers attend to rows "
        "of their own, made from all tokens of an image (V2, section 4.3).")
    image_width: int = Field(
        0, ge=0, description="Width of the feature of an image, for example CLIP's of several "
        "scales side by side. 0 without images.")
    image_hidden: int = Field(
        128, ge=1, description="Width inside the projection of that feature.")
    visual_rows: int = Field(20, ge=1, description="Rows of an image; with early fusion.")
    visual_layers: int = Field(
        1, ge=1, description="First layers that attend to them, none of them adapted.")
    unlock_norm: bool = Field(False, description="Weights of norms learn (V2, section 4.1).")
    unlock_bias: bool = Field(False, description="Linear layers get a bias that learns.")
    unlock_scale: bool = Field(False, description="Linear layers get a scale that learns.")
    scale_side: ScaleSide = Field(
        "output", description="Where the scale acts: output (paper) or input (released code).")

    @model_validator(mode="after")
    def _fits_together(self) -> AdapterConfig:
        if (self.visual == "none") != (self.image_width == 0):
            rule = "must be above 0 with visual='late' or 'early', and 0 without"
            raise ParameterError("image_width", self.image_width, rule)
        if self.visual != "none" and not self.gated:
            raise ParameterError("visual", self.visual, "must be 'none' without gates", "none")
        return self

    @classmethod
    def make(cls, **values: object) -> AdapterConfig:
        """Build from keywords, with every failure as a :class:`ParameterError`."""
        unknown = next((name for name in values if name not in cls.model_fields), None)
        if unknown is not None:
            raise ParameterError(unknown, values[unknown], "is not a parameter of adapters",
                                 closest(unknown, cls.model_fields))
        try:
            return cls.model_validate(values)
        except ValidationError as failure:
            first = failure.errors()[0]
            inner = first.get("ctx", {}).get("error")
            if isinstance(inner, ParameterError):
                raise inner from None
            parameter = str(first["loc"][0])
            value = None if first["type"] == "missing" else first["input"]
            raise ParameterError(parameter, value, first["msg"].lower(),
                                 first.get("ctx", {}).get("ge")) from None


class GateStatistics(NamedTuple):
    """How far the gates of one layer are open: of what multiplies the prompt, |tanh(gate)|."""

    layer: int
    mean: float
    largest: float


class Adapter(nn.Module):
    """What adapted layers share: the configuration, and the projection of image features.

    ``projection`` takes (B, image_width) to (B, width): two linear layers, float32. With early
    fusion it is a :class:`models.llm.vision.VisualProjection`, and ``None`` without images.
    """

    adapter_layer_names = ("projection",)
    """As tuners of PEFT name them: :func:`algorithms.sparsify` leaves these layers dense."""

    def __init__(self, config: AdapterConfig, width: int, device: Any) -> None:
        super().__init__()
        self.config = config
        self.projection: nn.Module | None = None
        if config.visual == "late":
            self.projection = nn.Sequential(
                nn.Linear(config.image_width, config.image_hidden, device=device), nn.SiLU(),
                nn.Linear(config.image_hidden, width, device=device))
        elif config.visual == "early":
            self.projection = VisualProjection(
                config.image_width, config.image_hidden, config.visual_rows, width, device)
        self.images: Tensor | None = None
        self.trained: list[nn.Parameter] = []
        self.hook: RemovableHandle | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, image_width) to rows (B, 1, width), float32.

        With early fusion (B, T, image_width), of T tokens, to (B, visual_rows, width).

        Raises :class:`ParameterError` for features of another width, or without a projection.
        """
        if self.projection is None:
            raise ParameterError("images", tuple(images.shape), "this adapter takes none; insert "
                                 "it with visual='late' or 'early'")
        if isinstance(self.projection, VisualProjection):
            made: Tensor = self.projection(images)
            return made
        if images.dim() != 2 or images.shape[1] != self.config.image_width:
            raise ParameterError("images", tuple(images.shape),
                                 f"must be (batch, {self.config.image_width})")
        rows: Tensor = self.projection(images.float())
        return rows.unsqueeze(1)


def insert_adapter(base: PreTrainedModel, config: AdapterConfig) -> Adapter:
    """Freeze ``base`` and give its topmost layers an adapter each, in place.

    Parameters
    ----------
    base: a causal language model of transformers, chosen by the structure of its attention: see
        :func:`models.llm.prompt_attention.misfit`. Grouped-query attention, heads of any size,
        biases and normalised keys are all right. May be sparse, and may be on the meta device.
    config: see :class:`AdapterConfig`. Prompts, gates if random, and the projection are drawn from
        torch's global generator.

    Returns
    -------
    What the layers share, ``base.adapter`` from now on.

    Raises
    ------
    ParameterError: a family whose attention does not fit, more layers than there are, visual
        layers among the adapted ones, or a base that has an adapter or is unlocked. The base is
        then unchanged.
    """
    if isinstance(getattr(base, "adapter", None), Adapter):
        raise ParameterError("base", type(base).__name__, "has an adapter; remove_adapter(base)")
    if count_unlocked(base).total:
        raise ParameterError("base", type(base).__name__, "is unlocked already; lock(base) first")
    found = list(attentions(base).values())
    if config.layers > len(found):
        raise ParameterError("layers", config.layers, f"must be from 1 to {len(found)}", len(found))
    if config.visual == "early":
        check_visual_layers(len(found), config.visual_layers, config.layers)
    weight = found[0].k_proj.weight
    root = Adapter(config, weight.shape[1], weight.device)
    root.trained = [values for values in base.parameters() if values.requires_grad]
    if config.unlock_norm or config.unlock_bias or config.unlock_scale:
        unlock(base, norm=config.unlock_norm, bias=config.unlock_bias, scale=config.unlock_scale,
               scale_side=config.scale_side)
    base.requires_grad_(False)
    for _, values in unlocked_parameters(base):
        values.requires_grad_(True)
    for attention in found[-config.layers:]:
        plug_in(attention, PromptAttention(
            attention, config.prompt, _gates(attention, config), config.tanh, config.zero_init,
            conditioned=config.visual == "late",
        ) if config.gated else UngatedPrompt(attention, config.prompt))
    if config.visual == "early":
        for attention in found[:config.visual_layers]:
            plug_in(attention, VisualAttention(
                attention, _gates(attention, config), config.tanh, config.zero_init))
    base.add_module("adapter", root)
    root.hook = base.register_forward_pre_hook(_carry_images, with_kwargs=True)
    return root


def remove_adapter(model: nn.Module) -> None:
    """Take the adapter out: the base is what it was, parameters that learnt learn again."""
    base, root = adapter_base(model), adapter_root(model)
    for attention in attentions(base).values():
        if hasattr(attention, "adapter"):
            unplug(attention)
    lock(base)
    for values in root.trained:
        values.requires_grad_(True)
    if root.hook is not None:
        root.hook.remove()
    del base.adapter


def adapter_base(model: nn.Module) -> PreTrainedModel:
    """The base with an adapter that ``model`` is or holds; :class:`ParameterError` if none is."""
    for module in model.modules():
        if isinstance(getattr(module, "adapter", None), Adapter):
            assert isinstance(module, PreTrainedModel)
            return module
    raise ParameterError("model", type(model).__name__, "has no adapter; insert_adapter(base, ...)")


def adapter_root(model: nn.Module) -> Adapter:
    """What the adapted layers of ``model`` share; errors as :func:`adapter_base`."""
    root = adapter_base(model).adapter
    assert isinstance(root, Adapter)
    return root


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All tensors of the adapter, by their dotted names in the base."""
    base = adapter_base(model)
    own = {name: values for name, values in base.named_parameters() if "adapter" in name.split(".")}
    return own | dict(unlocked_parameters(base))


def enable_adapter(model: nn.Module, enabled: bool = True) -> None:
    """Switch the adapter on or off; off, logits are the base's bit for bit."""
    for _, adapter in _adapted(model):
        adapter.enabled = enabled
    enable_unlocked(model, enabled)


def fold_adapter(model: nn.Module) -> None:
    """Merge what bias tuning learnt into the base, see :func:`models.llm.unlocked.fold`.

    The adapter is from then on one of prompts and images alone, for that base. Once it is removed,
    biases that were added learn where their layer's weights do. Errors as there.
    """
    base, root = adapter_base(model), adapter_root(model)
    learnt = {id(values) for values in root.trained}
    plain = [layer for layer in base.modules() if isinstance(layer, nn.Linear)
             and layer.bias is None and id(layer.weight) in learnt]
    fold(base)
    root.trained += [layer.get_parameter("bias") for layer in plain if layer.bias is not None]
    kept = {"unlock_norm": False, "unlock_bias": False, "unlock_scale": False}
    root.config = root.config.model_copy(update=kept)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The base model inside; each layer's adapter is as before afterwards."""
    before = [(adapter, adapter.enabled) for _, adapter in _adapted(model)]
    was_unlocked = enable_unlocked(model, False)
    enable_adapter(model, False)
    try:
        yield
    finally:
        enable_unlocked(model, was_unlocked)
        for adapter, enabled in before:
            adapter.enabled = enabled


@contextmanager
def image_context(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Forward passes and generation inside see images: features (B, image_width).

    B is the batch of sequences, or divides it where each image has several in a row. Errors of a
    wrong width are raised by the forward pass. Features are (B, T, image_width) for early fusion.
    Without this, an adapter that takes images is one for text.
    """
    root = adapter_root(model)
    before, root.images = root.images, images
    try:
        yield
    finally:
        root.images = before


def image_rows(base: nn.Module, images: Tensor | None = None) -> dict[str, Tensor]:
    """The keyword that layers of ``base`` take images by; empty where there are none.

    ``images`` are those of :func:`image_context` unless others are given.
    """
    root = getattr(base, "adapter", None)
    if images is None and isinstance(root, Adapter):
        images = root.images
    return {} if images is None else {IMAGE_ROWS: adapter_root(base)(images)}


def gate_statistics(model: nn.Module) -> list[GateStatistics]:
    """Of each adapted layer that has gates, in order: are they moving?"""
    found = []
    for layer, adapter in _adapted(model):
        if isinstance(adapter, PromptAttention | VisualAttention):
            size = adapter.strength.detach().abs()
            found.append(GateStatistics(layer, float(size.mean()), float(size.max())))
    return found


def attentions(base: nn.Module) -> dict[str, Any]:
    """The attentions of a model that adapters fit, by name, in order of layers.

    Raises :class:`ParameterError` that names the model's type and those supported, if there are
    none or one of them does not fit.
    """
    found = {name: module for name, module in base.named_modules()
             if all(hasattr(module, part) for part in PROJECTIONS)}
    why = "no attention with " + ", ".join(PROJECTIONS) if not found else ""
    for name, module in found.items():
        reason = misfit(module)
        if reason:
            why = f"{name} {reason}"
            break
    if not why and not getattr(base, "_supports_attention_backend", False):
        why = "its attention functions cannot be exchanged"
    if why:
        kind = getattr(getattr(base, "config", None), "model_type", type(base).__name__)
        raise ParameterError("base", kind, f"adapters do not fit this family ({why}); supported: "
                             f"{', '.join(SUPPORTED)} and others with the attention of Llama")
    return found


def _gates(attention: Any, config: AdapterConfig) -> int:
    heads: int = attention.q_proj.out_features // attention.head_dim
    return 1 if config.gate == "scalar" else heads


def _adapted(model: nn.Module) -> list[tuple[int, Any]]:
    """Layer and adapter."""
    found = attentions(adapter_base(model)).values()
    return [(attention.layer_idx, attention.adapter) for attention in found
            if hasattr(attention, "adapter")]


def _carry_images(
    base: Any, args: tuple[Any, ...], given: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # By keyword, so that a checkpointed layer sees the same again in the backward pass.
    return args, {**given, **image_rows(base)}
