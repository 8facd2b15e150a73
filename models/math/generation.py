"""What a generator of text is, whatever serves the model behind it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from algorithms import ParameterError

__all__ = ["Generator", "PromptTooLongError", "check_request", "cut_at_stop",
           "prompt_seeds"]


class Generator(Protocol):
    """A language model as MathCoder, verification and problem interpolation use it."""

    def generate(
        self,
        prompts: Sequence[str],
        *,
        stop: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """The new text of each prompt, up to and including the stop string that ended it.

        Parameters
        ----------
        prompts: exact texts to continue, without special tokens of the tokenizer's own.
        stop: strings that end a text. A text without one at its end ran out of tokens, or the
            model ended it with a token of its own.
        max_new_tokens: most tokens of each new text, 1 or more.
        temperature: 0 for the likeliest token at each step, else a softmax temperature.
        seed: chooses the samples; ignored at temperature 0.

        Raises
        ------
        ParameterError: a temperature below 0 or ``max_new_tokens`` below 1.
        PromptTooLongError: prompts that leave no room for a new token; nothing was generated.
        """
        ...


class PromptTooLongError(ParameterError):
    """Prompts that do not fit the model's context; ``indices`` says which of the request."""

    def __init__(self, indices: Sequence[int], value: object, rule: str,
                 nearest: object = None) -> None:
        super().__init__("prompts", value, rule, nearest)
        self.indices = tuple(indices)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.indices, self.value, self.rule, self.nearest)


def check_request(stop: Sequence[str], max_new_tokens: int, temperature: float) -> None:
    """Raise :class:`ParameterError` for what no generator accepts."""
    if isinstance(stop, str) or any(not text for text in stop):
        raise ParameterError("stop", stop, "must be a sequence of strings that are not empty")
    if max_new_tokens < 1:
        raise ParameterError("max_new_tokens", max_new_tokens, "must be 1 or more", 1)
    if not 0 <= temperature < float("inf"):
        raise ParameterError("temperature", temperature, "must be 0 or more and finite", 0.0)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """``text`` up to and including the stop string that ends first in it; all of it without one."""
    ends = [text.find(each) + len(each) for each in stop if each in text]
    return text[:min(ends)] if ends else text


def prompt_seeds(prompts: Sequence[str], seed: int) -> list[int]:
    """A seed below 2**63 for each prompt, whatever the other prompts are.

    Equal prompts get different ones, by how many equal prompts stand before.
    """
    seen: Counter[str] = Counter()
    seeds: list[int] = []
    for prompt in prompts:
        digest = hashlib.sha256(f"{seed}\0{seen[prompt]}\0{prompt}".encode()).digest()
        seeds.append(int.from_bytes(digest[:8], "big") >> 1)
        seen[prompt] += 1
    return seeds
