"""Llama models by size, alone and with LLaMA-Adapter V1 (arXiv:2303.16199) in their topmost layers.

The base is a Hugging Face ``LlamaForCausalLM``, grouped-query attention included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from models.llm.adapter import AdapterConfig, image_rows, insert_adapter

__all__ = ["LLAMA_SIZES", "Llama", "LlamaShape", "example", "llama", "llama_adapter"]


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
    "small": LlamaShape(96, 192, 3, 4, 2, 160, adapted=3, prompt=10, batch=32, tokens=32),
    "full": LlamaShape(4096, 11008, 32, 32, 32, 32000, adapted=30, prompt=10, batch=4, tokens=512),
}
"""``full`` is LLaMA-7B with the paper's adapter, 1.2 M parameters, and the authors' batch a GPU.
``tiny`` and ``small`` have grouped-query attention, as the later models of the family."""


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

    def forward(self, ids: Tensor, images: Tensor | None = None) -> Tensor:
        """Logits, given features of images for each sequence where the adapter takes them.

        The layers in turn rather than the base's own forward pass, which, when exported, builds a
        mask (B, 1, S, S) for what is plain causal attention.
        """
        model = self.base.model
        x = model.embed_tokens(ids)
        positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        rotary = model.rotary_emb(x, position_ids=positions)
        rows = image_rows(self.base, images)
        for layer in model.layers:
            x = layer(x, position_embeddings=rotary, **rows)
        logits: Tensor = self.base.lm_head(model.norm(x))
        return logits


def llama(size: str, seed: int = 0) -> Llama:
    """The base model alone, all of it trainable: full fine-tuning.

    Its weights depend on ``seed`` alone and torch's global generator is left as it was. Under
    ``torch.device("meta")`` it has shapes only. Raises :class:`ValueError` for an unknown size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Llama(_base(_shape(size)))


def llama_adapter(size: str, seed: int = 0, config: AdapterConfig | None = None) -> Llama:
    """The model that :func:`llama` returns, frozen, with adapters in its topmost layers.

    Seed, device and errors as there; ``config`` is the size's own unless given.
    """
    shape = _shape(size)
    chosen = config or AdapterConfig(layers=shape.adapted, prompt=shape.prompt)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = _base(shape)
        insert_adapter(base, chosen)
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
