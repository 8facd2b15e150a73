"""Instruction-following data in Alpaca's format, as batches whose loss is on the answers alone.

A sample is an instruction, an optional input and the wanted output. It becomes one sequence: the
start token, a prompt in Alpaca's wording, the output, the end token; the labels are those of output
and end token, all others -100. Prompt and output are tokenised apart, so that a prompt has the same
tokens here as in generation.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from algorithms import ParameterError, closest

__all__ = [
    "IGNORED", "Instruction", "InstructionBatch", "Overlong", "TokenisedInstruction",
    "instruction_batches", "prompt_ids", "read_instructions", "tokenise_instructions",
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
    """Samples of a JSON file, a list, or of a JSONL file, one a line, by its suffix ``.jsonl``.

    Raises
    ------
    ParameterError: a missing or empty file; malformed JSON or a sample that is none, with the file
        and the line, or the number of the item in the list from 1.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        reason = getattr(failure, "strerror", None) or "not UTF-8"
        raise ParameterError("data", str(source), f"cannot be read ({reason})") from None
    if source.suffix == ".jsonl":
        samples = [_sample(_parsed(line, source, number), f"{source}:{number}")
                   for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    else:
        raw = _parsed(text, source, 1)
        if not isinstance(raw, list):
            raise ParameterError("data", str(source), "must hold a list of samples; one sample a "
                                 "line is read from a file called .jsonl")
        samples = [_sample(item, f"{source}, item {number}") for number, item in enumerate(raw, 1)]
    if not samples:
        raise ParameterError("data", str(source), "has no samples")
    return samples


def tokenise_instructions(
    samples: Sequence[Instruction],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int = 512,
    overlong: Overlong = "error",
    origin: str = "samples",
) -> list[TokenisedInstruction]:
    """Sequences of at most ``max_tokens`` tokens, start and end token included.

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
    if overlong not in get_args(Overlong):
        known = get_args(Overlong)
        raise ParameterError("overlong", overlong, f"must be one of {', '.join(known)}",
                             closest(str(overlong), known))
    end = tokenizer.eos_token_id
    if end is None:
        raise ParameterError("tokenizer", type(tokenizer).__name__, "has no end token (eos_token)")
    made = []
    for number, sample in enumerate(samples, 1):
        prompt = prompt_ids(sample, tokenizer)
        ids = [*prompt, *_encoded(sample.output, tokenizer), end]
        if len(ids) > max_tokens and overlong == "drop":
            continue
        if len(ids) > max_tokens and (overlong == "error" or len(prompt) >= max_tokens):
            what = "prompt alone" if overlong == "truncate" else "sequence"
            tokens = len(prompt) if overlong == "truncate" else len(ids)
            raise ParameterError(f"{origin}, item {number}", tokens,
                                 f"its {what} has more than {max_tokens} tokens")
        made.append(TokenisedInstruction(tuple(ids[:max_tokens]), len(prompt)))
    if not made:
        raise ParameterError("data", origin, f"has no sample of at most {max_tokens} tokens")
    return made


def prompt_ids(sample: Instruction, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the prompt behind the start token, where the tokenizer has one."""
    start = tokenizer.bos_token_id
    return [*([] if start is None else [start]), *_encoded(sample.prompt(), tokenizer)]


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


def _parsed(text: str, source: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as failure:
        where = f"{source}:{line + failure.lineno - 1}"
        value = text.splitlines()[failure.lineno - 1][:40] if text.strip() else text
        raise ParameterError(where, value, f"is not JSON ({failure.msg}, column "
                             f"{failure.colno})") from None


def _sample(raw: Any, where: str) -> Instruction:
    try:
        return Instruction.model_validate(raw)
    except ValidationError as failure:
        first = failure.errors()[0]
        field = ".".join(map(str, first["loc"])) or "sample"
        value = None if first["type"] == "missing" else str(first["input"])[:40]
        raise ParameterError(f"{where}: {field}", value, first["msg"].lower()) from None
