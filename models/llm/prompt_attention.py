"""Zero-init gated prompt attention of LLaMA-Adapter V1 (arXiv:2303.16199).

A layer has a learnt prompt of K rows. A prompt row goes through the layer's own frozen key and
value projections, without normalisation and without rotary positions, and every token attends to
all K rows in a softmax of their own (section 3.2, equations 4 to 7):

    o_proj(softmax(q k^T / sqrt(d)) v + tanh(gate) * softmax(q k_p^T / sqrt(d)) v_p)

with one gate a head and d features a head, by which the authors' code divides where equation 5
prints the width. Gates start at zero, so that training starts from the base model exactly. Prompts
and gates are FP32 whatever the base is.

The term is added inside the attention of Hugging Face, which itself runs unchanged, key-value cache
and all: an attention function of transformers calls the one that the base would use and adds to
what it returns. So an attention fits by its parts, not by its name; see :func:`misfit`.

:class:`UngatedPrompt` is the ablation: prompts among the words, in one softmax, without a gate.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from algorithms import NmLayer, ParameterError
from models.llm.unlocked import UNLOCKED_HOOKS, is_unlocked

__all__ = [
    "IMAGE_ROWS", "PROJECTIONS", "PromptAttention", "UngatedPrompt", "attend_rows", "misfit",
    "plug_in", "project_rows", "unplug",
]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""What an attention must have, each a linear layer."""

IMAGE_ROWS = "adapter_image_rows"
"""Keyword by which a forward pass of the base carries rows made from images, (B, R, width)."""

_NAME = "gated_prompt"


class PromptAttention(nn.Module):
    """Gated attention to the prompt of one layer, a child ``adapter`` of the layer's attention.

    ``prompt`` (K, width) and ``gate`` (heads,) or (1,), both float32.

    Parameters
    ----------
    attention: the attention that it will be plugged into; gives shapes and the device.
    rows: K.
    gates: 1, or as many as heads.
    tanh: multiply by tanh(gate), as the paper does, or by the gate itself.
    zero_init: start from gates of zero; else from gates drawn as the prompts are, N(0, 1).
    conditioned: add the row that stands for an image to every row of the prompt (equation 10).
    """

    def __init__(
        self,
        attention: Any,
        rows: int,
        gates: int,
        tanh: bool = True,
        zero_init: bool = True,
        conditioned: bool = False,
    ) -> None:
        super().__init__()
        weight = attention.k_proj.weight
        options: dict[str, Any] = {"dtype": torch.float32, "device": weight.device}
        # Unit variance, as the normalised tokens that the same projections read.
        self.prompt = nn.Parameter(torch.randn(rows, weight.shape[1], **options))
        draw = torch.zeros if zero_init else torch.randn
        self.gate = nn.Parameter(draw(gates, **options))
        self.tanh, self.conditioned, self.enabled = tanh, conditioned, True
        self._cached: _Cached | None = None

    @property
    def strength(self) -> Tensor:
        """What the prompt's attention is multiplied by, (heads,) or (1,), float32."""
        return self.gate.tanh() if self.tanh else self.gate

    def forward(self, attention: Any, query: Tensor, image: Tensor | None) -> Tensor:
        """What is added in front of ``o_proj``: rotated queries (B, heads, S, d) to the same."""
        if self.conditioned and image is not None:
            prompt = self.prompt + image  # (B, 1, width): the same row at each of the K
            key, value = project_rows(attention, prompt.to(query.dtype))
        else:
            key, value = self._projected(attention, query.dtype)
        return attend_rows(attention, query, key, value, self.strength)

    def forget(self) -> None:
        """Drop the keys and values kept for inference.

        Needed only after an edit through ``.data`` without any pass that trains since: all other
        changes of the prompt or the projections are seen.
        """
        self._cached = None

    def _projected(self, attention: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompt, (1, kv_heads, K, d): a constant while nothing learns."""
        parts = [attention.k_proj, attention.v_proj, getattr(attention, "k_norm", nn.Identity())]
        keep = not (torch.is_grad_enabled() or torch.compiler.is_compiling()
                    or self.prompt.is_meta or any(map(_hooked, parts)))
        key = _key(self.prompt, parts, dtype) if keep else None
        if key is None:
            self.forget()
            return project_rows(attention, self.prompt.to(dtype).unsqueeze(0))
        if self._cached is None or self._cached.key != key:
            made = project_rows(attention, self.prompt.to(dtype).unsqueeze(0))
            self._cached = _Cached(key, [t.detach() for t in _tensors(self.prompt, parts)], made)
        return self._cached.made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PromptAttention:
        self.forget()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}


class UngatedPrompt(nn.Module):
    """The prompt of one layer among its words: one softmax over both, no gate.

    So prompts are inserted by the ordinary attention that section 3.2 replaces: random as they are
    at first, they take attention away from the words from the first step on. ``prompt`` (K, width)
    is float32. Parameters as for :class:`PromptAttention`.
    """

    def __init__(self, attention: Any, rows: int) -> None:
        super().__init__()
        weight = attention.k_proj.weight
        self.prompt = nn.Parameter(
            torch.randn(rows, weight.shape[1], dtype=torch.float32, device=weight.device))
        self.enabled = True

    def forward(
        self, attention: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (B, kv_heads, T, d) to the same of K + T, and the mask that they need.

        ``mask`` (B or 1, 1, S, T), boolean or added to scores; ``None`` is causal. Prompts come
        first and every query sees them.
        """
        rows = project_rows(attention, self.prompt.to(query.dtype).unsqueeze(0))
        seen, length = query.shape[2], key.shape[2]
        if mask is None:
            hidden = torch.ones(seen, length, dtype=torch.bool, device=query.device)
            mask = torch.zeros(1, 1, seen, length, dtype=query.dtype, device=query.device)
            mask = mask.masked_fill(hidden.triu(length - seen + 1), -torch.inf)
        free = mask.new_full((*mask.shape[:-1], len(self.prompt)), mask.dtype == torch.bool)
        key, value = (torch.cat([own.expand(len(query), -1, -1, -1), part], 2)
                      for own, part in zip(rows, (key, value), strict=True))
        return key, value, torch.cat([free, mask], -1)


class _Cached(NamedTuple):
    """Keys and values, what they were made for and from: storage that is held is not reused."""

    key: tuple[object, ...]
    sources: list[Tensor]
    made: tuple[Tensor, Tensor]


def project_rows(attention: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of rows (B or 1, R, width), each (B or 1, kv_heads, R, d).

    By the layer's own projections, with the norm of keys where it has one, without positions.
    """
    key, value = attention.k_proj(rows), attention.v_proj(rows)
    norm, size = getattr(attention, "k_norm", None), attention.head_dim
    if norm is not None and _over_heads(attention):
        key = norm(key)
    key, value = (part.view(*part.shape[:2], -1, size) for part in (key, value))
    if norm is not None and not _over_heads(attention):
        key = norm(key)
    return key.transpose(1, 2), value.transpose(1, 2)


def attend_rows(
    attention: Any, query: Tensor, key: Tensor, value: Tensor, strength: Tensor
) -> Tensor:
    """Gated softmax attention of every query to all rows, no mask: (B, heads, S, d) to the same.

    Keys and values of :func:`project_rows` for the whole batch, or for each B of several queries in
    a row, as generation of several answers makes them. ``strength`` is what the attention of each
    head is multiplied by, (heads,) or (1,).

    Raises :class:`ParameterError` for a batch of rows that queries cannot be shared among.
    """
    repeats, left = divmod(len(query), len(key))
    if left:
        raise ParameterError("images", len(key), f"must divide the batch of {len(query)} sequences")
    if len(key) == 1:
        key, value = (part.expand(len(query), -1, -1, -1) for part in (key, value))
    elif repeats > 1:
        key, value = (part.repeat_interleave(repeats, 0) for part in (key, value))
    mixed = F.scaled_dot_product_attention(
        query, key, value, scale=attention.scaling, enable_gqa=query.shape[1] != key.shape[1])
    return strength.to(query.dtype).view(-1, 1, 1) * mixed


def misfit(attention: Any) -> str:
    """Why prompts cannot be added to what ``attention`` computes; empty when they can.

    It must have :data:`PROJECTIONS`, take rotary positions, and leave scores and sums to an
    attention function of transformers; keys may be normalised, by head or all at once.
    """
    for name in PROJECTIONS:
        if not isinstance(getattr(attention, name, None), nn.Linear):
            return f"has no linear layer {name}"
    if "position_embeddings" not in inspect.signature(attention.forward).parameters:
        return "takes no rotary positions"
    if not getattr(attention, "is_causal", False):
        return "is not causal"
    for name in ("head_dim", "scaling", "config", "layer_idx"):
        if not hasattr(attention, name):
            return f"has no {name}"
    if not hasattr(sys.modules[type(attention).__module__], "eager_attention_forward"):
        return "does not use the attention functions of transformers"
    width = attention.k_proj.out_features
    for name, part in attention.named_children():
        sizes = (attention.head_dim, width) if name == "k_norm" else ()
        if name.endswith("_norm") and name != "q_norm" and part.weight.numel() not in sizes:
            return f"has a {name} that prompts do not know"
    return ""


def plug_in(attention: Any, adapter: nn.Module) -> None:
    """Add ``adapter(attention, query, image)`` in front of the output projection from now on.

    Any module may be one; it has an attribute ``enabled``, and its result has the shape of
    ``query``, the rotated queries (B, heads, S, d), or is ``None`` where nothing is added.
    ``image`` is what the forward pass was given as :data:`IMAGE_ROWS`. A :class:`UngatedPrompt`
    acts on keys and values instead.
    """
    attention.add_module("adapter", adapter)
    attention.config = _Config(attention.config)


def unplug(attention: Any) -> None:
    """The reverse of :func:`plug_in`."""
    del attention.adapter
    attention.config = attention.config.base


class _Config:
    """The base's configuration, but for the attention function of the layer that it is given to."""

    _attn_implementation = _NAME

    def __init__(self, base: Any) -> None:
        self.base = base

    def __getattr__(self, name: str) -> Any:
        if name == "base":  # while it is being copied
            raise AttributeError(name)
        return getattr(self.base, name)


def _attention_function(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """What the base's own attention function returns, (B, S, heads, d) first, and the adapter's."""
    image = options.pop(IMAGE_ROWS, None)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    plain = ALL_ATTENTION_FUNCTIONS.get_interface(module.config.base._attn_implementation, eager)
    adapter = module.adapter
    joint = isinstance(adapter, UngatedPrompt)
    if adapter.enabled and joint:
        key, value, mask = adapter(module, query, key, value, mask)
    mixed, weights = plain(module, query, key, value, mask, **options)
    added = adapter(module, query, image) if adapter.enabled and not joint else None
    return mixed if added is None else mixed + added.transpose(1, 2), weights


AttentionInterface.register(_NAME, _attention_function)


def _over_heads(attention: Any) -> bool:
    """Whether keys are normalised over all heads together, not head by head."""
    size: int = attention.head_dim
    features: int = attention.k_norm.weight.numel()
    return features != size


def _tensors(prompt: Tensor, parts: Iterable[nn.Module]) -> list[Tensor]:
    return [prompt, *(tensor for part in parts
                      for tensors in (part.parameters(), part.buffers()) for tensor in tensors)]


def _hooked(part: nn.Module) -> bool:
    """Whether anything but what is unlocked, whose tensors are among the part's, acts on it."""
    return any(hook not in UNLOCKED_HOOKS for module in part.modules()
               for hooks in (module._forward_hooks, module._forward_pre_hooks)
               for hook in hooks.values())


def _key(prompt: Tensor, parts: list[nn.Module], dtype: torch.dtype) -> tuple[object, ...] | None:
    """Changes whenever keys and values of the prompt would; ``None`` where nothing tells so."""
    tensors = _tensors(prompt, parts)
    if any(tensor.is_inference() for tensor in tensors):
        return None
    device = prompt.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    plans = [(type(part), part.nm_plan if isinstance(part, NmLayer) else None, is_unlocked(part))
             for part in parts]
    states = [(t.data_ptr(), t._version, t.dtype, t.device) for t in tensors]
    return dtype, autocast, *plans, *states
