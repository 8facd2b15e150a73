"""Instruction-following data in Alpaca's format, as batches whose loss is on the answers alone.

A sample is an instruction, an optional input and the wanted output. It becomes one sequence: the
start token, a prompt in Alpaca's wording, the output, the end token; the labels are those of output
and end token, all others -100. Prompt and output are tokenised apart, so that a prompt has the same
tokens here as in generation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from algorithms import ParameterError
from models.jsonl import read_jsonl, read_list, validated
from models.llm.choices import one_of

__all__ = [
    "IGNORED", "Instruction", "InstructionBatch", "Overlong", "TokenisedInstruction",
    "instruction_batches", "pad_id", "prompt_ids", "read_instructions", "tokenise_instructions",
]

IGNORED = -100
"""Label without a loss, as transformers has it."""

Overlong = Literal["error", "truncate", "drop"]
"""What becomes of a sequence longer than allowed: refused, cut at its end, or left out."""

_BUCKET = 64
"""Batches among whose sequences those of like length are put together."""

# The wording is part of the format: models are trained and asked with it.
_TASK = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request.\n\n### Instruction:\n"
_PLAIN = f"{_TASK}. {_REQUEST}{{instruction}}\n\n### Response:"
_WITH_INPUT = (f"{_TASK}, paired with an input that provides further context. {_REQUEST}"
               "{instruction}\n\n### Input:\n{input}\n\n### Response:")


class Instruction(BaseModel):
    """One sample of Alpaca's format."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    instruction: str = Field(min_length=1, description="The task.")
    input: str = Field("", description="What the task is about, where it says nothing by itself.")
    output: str = Field("", description="The answer; empty to ask for one.")

    def prompt(self) -> str:
        """All that comes before the answer, in Alpaca's wording with or without an input."""
        if self.input:
            return _WITH_INPUT.format(instruction=self.instruction, input=self.input)
        return _PLAIN.format(instruction=self.instruction)


class TokenisedInstruction(NamedTuple):
    """Token ids of one sequence, and how many of them come before the answer."""

    ids: tuple[int, ...]
    prompt: int


class InstructionBatch(NamedTuple):
    """Right-padded sequences, each (B, S), int64: token ids, labels, and 1 where a token is."""

    ids: Tensor
    labels: Tensor
    mask: Tensor


def read_instructions(path: Path | str) -> list[Instruction]:
    """Samples to train on, of a file with a JSON list or, called ``.jsonl``, with one a line.

    Raises
    ------
    ParameterError: a missing or empty file; malformed JSON or a sample that is none, with the file
        and the line, or the number of the item in the list from 1.
    """
    rows = read_jsonl(path) if Path(path).suffix == ".jsonl" else read_list(path)
    samples = [validated(Instruction, value, where) for where, value in rows]
    if not samples:
        raise ParameterError("file", str(path), "has no samples")
    return samples


def tokenise_instructions(
    samples: Sequence[Instruction],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int = 512,
    overlong: Overlong = "error",
    origin: str = "samples",
) -> list[TokenisedInstruction]:
    """Sequences of at most ``max_tokens`` tokens, start and end token included.

    Samples without an output, which lists in Alpaca's format may have, are left out: they would
    teach nothing but to stop.

    Parameters
    ----------
    overlong: what to do with longer ones. A sequence whose prompt leaves no room for an answer is
        refused under ``truncate`` too.
    origin: where the samples are from, for messages.

    Raises
    ------
    ParameterError: an unknown policy, a tokenizer without an end token, a sequence that is too
        long, or nothing left.
    """
    one_of("overlong", overlong, get_args(Overlong))
    end = tokenizer.eos_token_id
    if end is None:
        raise ParameterError("tokenizer", type(tokenizer).__name__, "has no end token (eos_token)")
    made = []
    for number, sample in enumerate(samples, 1):
        if not sample.output.strip():
            continue
        prompt = prompt_ids(sample, tokenizer)
        ids = [*prompt, *_encoded(sample.output, tokenizer), end]
        if len(ids) > max_tokens and overlong == "drop":
            continue
        if len(ids) > max_tokens and overlong == "error":
            raise ParameterError(f"{origin}, item {number}", len(ids),
                                 f"its sequence has more than {max_tokens} tokens")
        if len(prompt) >= max_tokens:
            raise ParameterError(f"{origin}, item {number}", len(prompt), "its prompt leaves no "
                                 f"room for an answer within {max_tokens} tokens")
        made.append(TokenisedInstruction(tuple(ids[:max_tokens]), len(prompt)))
    if not made:
        raise ParameterError("data", origin, f"has no sample of at most {max_tokens} tokens "
                             "that has an output")
    return made


def prompt_ids(sample: Instruction, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the prompt behind the start token, where the tokenizer has one."""
    start = tokenizer.bos_token_id
    return [*([] if start is None else [start]), *_encoded(sample.prompt(), tokenizer)]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Token id for padding, which is masked: the tokenizer's own, its end token's, or 0."""
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in found if token is not None))


def instruction_batches(
    samples: Sequence[TokenisedInstruction], batch: int, seed: int = 0, pad: int = 0
) -> Iterator[InstructionBatch]:
    """One pass over the samples in an order drawn by ``seed``, each once.

    Sequences of like length share a batch, so that little is padding; the last batch may be
    smaller. ``pad`` is the token id behind the end of a sequence, which has no loss and is masked.

    Raises :class:`ParameterError` for ``batch`` below 1.
    """
    if batch < 1:
        raise ParameterError("batch", batch, "must be 1 or more", 1)
    draw = random.Random(seed)
    order = list(range(len(samples)))
    draw.shuffle(order)
    groups: list[list[int]] = []
    for start in range(0, len(order), _BUCKET * batch):
        bucket = sorted(order[start:start + _BUCKET * batch], key=lambda i: len(samples[i].ids))
        groups += [bucket[at:at + batch] for at in range(0, len(bucket), batch)]
    draw.shuffle(groups)
    for group in groups:
        yield _batch([samples[index] for index in group], pad)


def _batch(samples: Sequence[TokenisedInstruction], pad: int) -> InstructionBatch:
    shape = len(samples), max(len(sample.ids) for sample in samples)
    ids, labels = torch.full(shape, pad), torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.int64)
    for row, sample in enumerate(samples):
        length = len(sample.ids)
        ids[row, :length] = torch.tensor(sample.ids)
        labels[row, sample.prompt:length] = ids[row, sample.prompt:length]
        mask[row, :length] = 1
    return InstructionBatch(ids, labels, mask)


def _encoded(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False) if text else []
    return ids
