"""Generation as the hardware sees it: a prompt in one pass, then token after token with a cache.

Prefill multiplies by every weight once for all tokens of all prompts; each decoded token multiplies
by every weight again, with as few rows as there are sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from models.llm.llama import Llama

__all__ = ["Generation"]


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
