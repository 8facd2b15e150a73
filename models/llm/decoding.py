"""Generation: greedy answers to instructions, and generation as the hardware sees it.

To the hardware it is a prompt in one pass, then token after token with a cache. Prefill multiplies
by every weight once for all tokens of all prompts; each decoded token multiplies by every weight
again, with as few rows as there are sequences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from models.llm.instructions import Instruction, pad_id, prompt_ids
from models.llm.llama import Llama

__all__ = ["Generation", "greedy_answer"]


class Generation(nn.Module):
    """Prompts (B, S) and what follows (B, D), int64, to logits (B, D + 1, vocabulary).

    Logits are those behind the prompt and behind each token that follows, as generation with a
    key-value cache computes them. D may be 0.
    """

    def __init__(self, model: Llama) -> None:
        super().__init__()
        self.model = model

    def forward(self, prompts: Tensor, following: Tensor) -> Tensor:
        """Prefill, then one step for each token of ``following``."""
        cache = DynamicCache()
        logits = [self._advance(prompts, 0, cache)]
        for position, ids in enumerate(following.unbind(1), prompts.shape[1]):
            logits.append(self._advance(ids.unsqueeze(1), position, cache))
        return torch.stack(logits, 1)

    def _advance(self, ids: Tensor, start: int, cache: DynamicCache) -> Tensor:
        """Logits (B, vocabulary) behind the last of ``ids``, the first of which is at ``start``."""
        base = self.model.base
        x = base.model.embed_tokens(ids)
        positions = torch.arange(start, start + ids.shape[1], device=ids.device).unsqueeze(0)
        rotary = base.model.rotary_emb(x, position_ids=positions)
        for layer in base.model.layers:
            x = layer(x, position_embeddings=rotary, cache=cache)
        logits: Tensor = base.lm_head(base.model.norm(x[:, -1]))
        return logits


def greedy_answer(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sample: Instruction,
    max_new_tokens: int = 128,
) -> str:
    """The likeliest token at each step, up to the tokenizer's end token or ``max_new_tokens``.

    Special tokens, and white space at both ends, are not part of the text.
    """
    ids = torch.tensor([prompt_ids(sample, tokenizer)], device=base.device)
    generate: Any = base.generate
    made = generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                    max_new_tokens=max_new_tokens, pad_token_id=pad_id(tokenizer),
                    eos_token_id=tokenizer.eos_token_id)
    return str(tokenizer.decode(made[0, ids.shape[1]:], skip_special_tokens=True)).strip()
