"""Small random base models of several families, and prompt attention written out in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from models.llm.adapter import AdapterConfig, insert_adapter
from models.llm.prompt_attention import PromptAttention, UngatedPrompt

__all__ = ["FAMILIES", "HEADS", "IDS", "adapted", "adapters", "base_model", "direct", "open_gates",
           "padded", "tokenwise"]

HEADS = 4
IDS = torch.randint(1, 64, (2, 7), generator=torch.Generator().manual_seed(1))

_SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3,
    "head_dim": 8,  # not width / heads
    "num_attention_heads": HEADS, "num_key_value_heads": 2, "use_cache": False,
    "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
}
FAMILIES: dict[str, Mapping[str, Any]] = {
    "llama": {}, "llama-mha": {"num_key_value_heads": HEADS},
    "llama-bias": {"attention_bias": True}, "mistral": {"sliding_window": 3}, "qwen2": {},
    "qwen3": {}, "olmo2": {"head_dim": 12},
}
"""What differs from grouped Llama: no groups, biases, a window, biases without that of the output,
normalised keys by head, and over all heads."""


def base_model(family: str = "llama", **changes: Any) -> Any:
    """Three layers; biases and norms are random too, as ones and zeros would hide them."""
    torch.manual_seed(0)
    shape = {**_SHAPE, **FAMILIES[family], **changes}
    made: Any = AutoModelForCausalLM  # untyped
    base = made.from_config(AutoConfig.for_model(family.partition("-")[0], **shape))
    for name, values in base.named_parameters():
        if name.endswith((".bias", "_norm.weight")):
            nn.init.normal_(values, mean=float(name.endswith("weight")), std=0.5)
        elif name.endswith("_proj.weight"):
            nn.init.normal_(values, std=0.15)  # else all rows get about the same share
    return base.eval()


def adapted(family: str = "llama", *, opened: bool = True, **values: Any) -> Any:
    """The topmost two layers of it with five prompt rows each."""
    base = base_model(family)
    insert_adapter(base, AdapterConfig.make(**{"layers": 2, "prompt": 5, **values}))
    if opened:
        open_gates(base)
    return base


def adapters(model: nn.Module) -> list[Any]:
    """In order of layers, those that have gates."""
    return [module for module in model.modules() if isinstance(module, PromptAttention)]


def open_gates(model: nn.Module) -> None:
    """Another value for every gate of every layer."""
    torch.manual_seed(2)
    for adapter in adapters(model):
        nn.init.normal_(adapter.gate)


def padded(rows: int = 3) -> tuple[Tensor, Tensor]:
    """The ids behind padding, and their mask; the second sequence is two tokens shorter."""
    ids = torch.cat([torch.zeros(2, rows, dtype=torch.int64), IDS], 1)
    ids[1, :rows + 2] = 0
    return ids, (ids > 0).long()


def tokenwise(model: Any, ids: Tensor = IDS) -> Tensor:
    """Logits with a key-value cache: three tokens at once, the others one by one."""
    cache, logits = None, []
    for piece in (ids[:, :3], *torch.split(ids[:, 3:], 1, 1)):
        out = model(input_ids=piece, use_cache=True, cache=cache)
        cache = out.cache
        logits.append(out.logits)
    return torch.cat(logits, 1)


def direct(attention: Any, x: Tensor, window: int | None = None) -> Tensor:
    """Attention (B, S, width) written out head by head in float64, equations 4 to 7 of the paper.

    Without gates one softmax over prompt and words, in place of equations 5 to 7.
    Rotary positions as products of complex numbers, of feature i and feature i + d / 2.
    """
    size, adapter = attention.head_dim, attention.adapter
    length = x.shape[1]
    frequencies = 10000 ** (-torch.arange(0, size, 2).double() / size)
    angles = torch.arange(length).double()[:, None] * frequencies
    turn = torch.polar(torch.ones_like(angles), angles)

    def rotate(rows: Tensor) -> Tensor:
        turned = torch.complex(rows[..., :size // 2], rows[..., size // 2:]) * turn
        return torch.cat([turned.real, turned.imag], -1)

    def projected(kind: str, rows: Tensor) -> list[Tensor]:
        """Head by head."""
        layer = getattr(attention, f"{kind}_proj")
        out = rows @ layer.weight.detach().double().T
        if layer.bias is not None:
            out = out + layer.bias.detach().double()
        norm = getattr(attention, f"{kind}_norm", None)
        if norm is None:
            return list(torch.split(out, size, -1))
        weight = norm.weight.detach().double()
        parts = torch.split(out, len(weight), -1)  # one part: all heads together
        parts = tuple(part / (part.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
                      * weight for part in parts)
        return list(torch.split(torch.cat(parts, -1), size, -1))

    prompt, gated = adapter.prompt.detach().double(), not isinstance(adapter, UngatedPrompt)
    gate = adapter.strength.detach().double() if gated else torch.zeros(1)
    gate = gate.expand(HEADS)
    hidden = torch.ones(length, length).triu(1).bool()
    if window is not None:
        hidden |= torch.ones(length, length).tril(-window).bool()
    queries, keys, values = (projected(kind, x) for kind in "qkv")
    prompt_keys, prompt_values = projected("k", prompt), projected("v", prompt)
    mixed = []
    for head, query in enumerate(map(rotate, queries)):
        shared = head * len(keys) // HEADS
        scores = query @ rotate(keys[shared]).mT / size ** 0.5
        scores = scores.masked_fill(hidden, -torch.inf)
        of_prompt = query @ prompt_keys[shared].T / size ** 0.5
        if not gated:
            weights = torch.cat([of_prompt, scores], -1).softmax(-1)
            both = prompt_values[shared].expand(len(x), -1, -1), values[shared]
            mixed.append(weights @ torch.cat(both, 1))
            continue
        weighted = of_prompt.softmax(-1) @ prompt_values[shared]
        mixed.append(scores.softmax(-1) @ values[shared] + gate[head] * weighted)
    out: Tensor = torch.cat(mixed, -1) @ attention.o_proj.weight.detach().double().T
    if attention.o_proj.bias is not None:
        out = out + attention.o_proj.bias.detach().double()
    return out
