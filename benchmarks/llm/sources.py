"""The language workloads as models with example inputs, for the compiler: shapes, no weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from benchmarks.sources import Source
from models.llm.adapter_v2 import image_example, llama_adapter_v2
from models.llm.decoding import Generation
from models.llm.llama import LLAMA_SIZES, example, llama, llama_adapter

__all__ = ["MADE"]

_PROMPTS = {"tiny": 2, "small": 8, "full": 8}
"""Prompts that CSV generates from side by side where nobody says how many, by size."""

PRUNED = ("*.q_proj",)
"""The first linear layer of a Llama is not its first layer: that is an embedding."""


def _ids(size: str, batch: int | None) -> Tensor:
    return example(size, batch, device="meta")


def _adapter(size: str, batch: int | None) -> Source:
    return Source("llama-adapter", llama_adapter(size), (_ids(size, batch),), PRUNED)


def _adapter_v2(size: str, batch: int | None) -> Source:
    """Half a step's sequences would have an image; here all do."""
    return Source("llama-adapter-v2", llama_adapter_v2(size),
                  (_ids(size, batch), image_example(size, batch, "meta")), PRUNED)


def _mathcoder(size: str, batch: int | None) -> Source:
    """Full fine-tuning."""
    return Source("mathcoder", llama(size), (_ids(size, batch),), PRUNED)


def _csv(size: str, batch: int | None) -> Source:
    """Prefill of every path's prompt, and one token of each with the cache; nothing learns."""
    model = Generation(llama(size).requires_grad_(False))
    shape, paths = LLAMA_SIZES[size], batch or _PROMPTS[size]
    prompts = example(size, paths, shape.tokens, "meta")
    return Source("csv", model, (prompts, prompts[:, :1]), PRUNED, training=False)


MADE: dict[str, Callable[[str, int | None], Source]] = {
    "llama-adapter": _adapter, "llama-adapter-v2": _adapter_v2, "mathcoder": _mathcoder,
    "csv": _csv,
}
"""By name of the workload: makes it for a size and a batch (``None``: its own), which the caller
does under ``torch.device("meta")``."""
