"""LLaMA-Adapter V2 (arXiv:2304.15010) by size: every feature of it on, each of which can be off.

Prompts sit in all layers but the first, which sees the image; norms, biases and scales learn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.llm.adapter import AdapterConfig
from models.llm.choices import one_of
from models.llm.llama import LLAMA_SIZES, Llama, LlamaShape, llama_adapter
from models.llm.vision import VISION_SIZES, VisionShape

__all__ = ["image_example", "llama_adapter_v2", "v2_config"]


def v2_config(size: str, **changes: object) -> AdapterConfig:
    """The configuration of a size of :data:`models.llm.llama.LLAMA_SIZES`.

    ``changes`` are other values of its fields, for ablations: ``unlock_scale=False``,
    ``visual="late"`` and so on; with ``visual="none"`` the width of images is 0. Late fusion reads
    one token of an image, early fusion all.

    Raises :class:`ParameterError` for a field or value that is none, and for an unknown size.
    """
    shape, vision = _shapes(size)
    values: dict[str, object] = {
        "layers": shape.layers - 1,
        "prompt": shape.prompt,
        "visual": "early",
        "image_width": 0 if changes.get("visual") == "none" else vision.features,
        "image_hidden": vision.projection,
        "unlock_norm": True,
        "unlock_bias": True,
        "unlock_scale": True,
    }
    return AdapterConfig.make(**(values | changes))


def llama_adapter_v2(size: str, seed: int = 0, config: AdapterConfig | None = None) -> Llama:
    """The model that :func:`models.llm.llama.llama` returns, frozen, with a V2 adapter.

    Its forward pass takes token ids (B, S), or these and features of images (B, T, F) of a tower of
    the same size. ``config`` is :func:`v2_config` of the size unless given. Seed, device and errors
    as for :func:`models.llm.llama.llama`.
    """
    return llama_adapter(size, seed, v2_config(size) if config is None else config)


def image_example(
    size: str, batch: int | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Features (batch, T, F), float32, of as many images: the same random ones at every call.

    On ``meta``, where values do not exist, nothing is drawn. Raises :class:`ParameterError` for an
    unknown size.
    """
    base, vision = _shapes(size)
    shape = base.batch if batch is None else batch, vision.tokens, vision.features
    if torch.device(device).type == "meta":
        return torch.zeros(shape, device="meta")
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu").to(device)


def _shapes(size: str) -> tuple[LlamaShape, VisionShape]:
    one_of("size", size, LLAMA_SIZES)
    return LLAMA_SIZES[size], VISION_SIZES[size]
