"""LLaMA-Adapter V1 (arXiv:2303.16199): zero-init gated prompt attention on Llama-family models.

The topmost layers each get a learnt prompt of K rows. A prompt row goes through the layer's own
frozen key and value projections, without normalisation and without rotary positions, and every
token attends to all K rows in a softmax of their own (section 3.2, equations 4 to 7):

    o_proj(softmax(q k^T / sqrt(d)) v + tanh(gate) * softmax(q k_p^T / sqrt(d)) v_p)

with one gate a head and d features a head, by which the authors' code divides where equation 5
prints the width. Gates start at zero, so that training starts from the base model exactly. Prompts
and gates are FP32 whatever the base is. The base is frozen: a step has no large weight gradient.

The base is a Hugging Face ``LlamaForCausalLM``, grouped-query attention included; its parameters
keep their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaForCausalLM,
    apply_rotary_pos_emb,
)

__all__ = [
    "LLAMA_SIZES", "AdapterAttention", "Llama", "LlamaShape", "example", "insert_adapter", "llama",
    "llama_adapter",
]


@dataclass(frozen=True)
class LlamaShape:
    """Everything that shapes one Llama and its adapter.

    width: features of a token, a multiple of ``heads``. hidden: features inside the perceptron.
    layers: decoder layers. heads, kv_heads: attention heads of queries, and of keys and values.
    vocabulary: token ids.
    adapted, prompt: topmost layers with an adapter, and prompt rows in each.
    batch, tokens: sequences of a training step and their length where nobody says.
    """

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    adapted: int
    prompt: int
    batch: int
    tokens: int


LLAMA_SIZES: dict[str, LlamaShape] = {
    "tiny": LlamaShape(64, 128, 3, 4, 2, 128, adapted=2, prompt=10, batch=4, tokens=8),
    "small": LlamaShape(256, 688, 6, 8, 4, 512, adapted=4, prompt=10, batch=16, tokens=64),
    "full": LlamaShape(4096, 11008, 32, 32, 32, 32000, adapted=30, prompt=10, batch=4, tokens=512),
}
"""``full`` is LLaMA-7B with the paper's adapter, 1.2 M parameters, and the authors' batch a GPU.
``tiny`` and ``small`` have grouped-query attention, as the later models of the family."""


class AdapterAttention(nn.Module):
    """Attention of one layer plus that to its prompt: (B, S, width) to the same shape.

    ``prompt`` (K, width) and ``gate`` (heads,), both float32. Takes over the projections of the
    attention that it replaces, under the same names.
    """

    def __init__(self, attention: LlamaAttention, prompt: int) -> None:
        super().__init__()
        self.head_dim: int = attention.head_dim
        self.scaling: float = attention.scaling
        self.grouped: bool = attention.num_key_value_groups > 1
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.o_proj = attention.v_proj, attention.o_proj
        weight = self.q_proj.weight
        options: dict[str, Any] = {"dtype": torch.float32, "device": weight.device}
        # Unit variance, as the normalised tokens that the same projections read.
        self.prompt = nn.Parameter(torch.randn(prompt, weight.shape[1], **options))
        self.gate = nn.Parameter(torch.zeros(weight.shape[0] // self.head_dim, **options))

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cache: object = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        """What ``LlamaAttention`` returns; the arguments are its own, a cache excepted."""
        if cache is not None:
            raise ValueError("cache: adapted layers do not read a key-value cache; use_cache=False")
        query, key, value = (
            self._heads(project(hidden_states))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        mixed = self._attend(query, key, value, attention_mask, causal=attention_mask is None)

        prompt = self.prompt.to(hidden_states.dtype).unsqueeze(0)
        # Projected once, (1, kv_heads, K, d), and read by every sequence.
        prompt_key, prompt_value = (
            self._heads(project(prompt)).expand(len(query), -1, -1, -1)
            for project in (self.k_proj, self.v_proj)
        )
        gate = self.gate.tanh().to(mixed.dtype).view(-1, 1, 1)
        mixed = mixed + gate * self._attend(query, prompt_key, prompt_value)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), None

    def _heads(self, rows: Tensor) -> Tensor:
        """(B, S, heads * d) to (B, heads, S, d)."""
        return rows.view(*rows.shape[:2], -1, self.head_dim).transpose(1, 2)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """One softmax: (B, heads, S, d) over (B, kv_heads, T, d) to (B, heads, S, d)."""
        return F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=causal, scale=self.scaling, enable_gqa=self.grouped)


class Llama(nn.Module):
    """Token ids (B, S), int64, to logits (B, S, vocabulary): ``base`` with or without adapters.

    Sequences start at position 0, which matters to adapters: their keys have no position. Padding
    goes behind the text, where causality hides it.
    """

    def __init__(self, base: LlamaForCausalLM) -> None:
        super().__init__()
        # Its eager attention is causal only where it is given a mask.
        base.set_attn_implementation("sdpa")
        self.base = base

    def forward(self, ids: Tensor) -> Tensor:
        """Logits.

        The layers in turn rather than the base's own forward pass, which, when exported, builds a
        mask (B, 1, S, S) for what is plain causal attention.
        """
        model = self.base.model
        x = model.embed_tokens(ids)
        positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        rotary = model.rotary_emb(x, position_ids=positions)
        for layer in model.layers:
            x = layer(x, position_embeddings=rotary)
        logits: Tensor = self.base.lm_head(model.norm(x))
        return logits


def insert_adapter(base: LlamaForCausalLM, layers: int, prompt: int) -> None:
    """Freeze ``base`` and give its topmost ``layers`` a prompt of ``prompt`` rows each.

    Prompts are drawn from torch's global generator. Raises :class:`ValueError` for more layers than
    there are, and for fewer layers or rows than one.
    """
    available = len(base.model.layers)
    if not 1 <= layers <= available:
        raise ValueError(f"layers={layers}: must be from 1 to {available}")
    if prompt < 1:
        raise ValueError(f"prompt={prompt}: must be 1 or more")
    base.requires_grad_(False)
    for layer in base.model.layers[available - layers:]:
        layer.self_attn = AdapterAttention(layer.self_attn, prompt)


def llama(size: str, seed: int = 0) -> Llama:
    """The base model alone, all of it trainable: full fine-tuning.

    Its weights depend on ``seed`` alone and torch's global generator is left as it was. Under
    ``torch.device("meta")`` it has shapes only. Raises :class:`ValueError` for an unknown size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Llama(_base(_shape(size)))


def llama_adapter(size: str, seed: int = 0) -> Llama:
    """The model that :func:`llama` returns, frozen, with adapters in its topmost layers.

    Seed, device and errors as there.
    """
    shape = _shape(size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = _base(shape)
        insert_adapter(base, shape.adapted, shape.prompt)
        return Llama(base)


def example(
    size: str,
    batch: int | None = None,
    tokens: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Token ids (batch, tokens), int64: the same random ones at every call.

    On ``meta``, where values do not exist, nothing is drawn.
    """
    shape = _shape(size)
    rows = shape.batch if batch is None else batch
    length = shape.tokens if tokens is None else tokens
    if torch.device(device).type == "meta":
        return torch.zeros(rows, length, dtype=torch.int64, device="meta")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocabulary, (rows, length), generator=generator, device="cpu")
    return ids.to(device)


def _shape(size: str) -> LlamaShape:
    if size not in LLAMA_SIZES:
        raise ValueError(f"size={size!r}: must be one of {', '.join(LLAMA_SIZES)}")
    return LLAMA_SIZES[size]


def _base(shape: LlamaShape) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        use_cache=False,
    ))
