"""Solutions as token ids and labels: the loss of MathCoder's fine-tuning (arXiv:2310.03731, 2.2).

A model learns what it has to write itself. That is, in the assistant's messages, text and code from
their opening token to ``<|endofblock|>``, and ``<|endofmessage|>``. What comes before the message
and executions whole, opening token and end included, are given to it: those labels are -100.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, cast, get_args

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from algorithms import ParameterError, closest
from models.llm.instructions import IGNORED, InstructionBatch, Overlong
from models.math.solution import ROLES, SPECIAL_TOKENS, TYPES, BlockType, Message, Trace, render

__all__ = ["Labelled", "add_format_tokens", "collate", "labelled", "labelled_traces"]

_END_OF_MESSAGE = SPECIAL_TOKENS[-1]
_OPENING = {f"<|{kind}|>": kind for kind in TYPES}
_ROLES = {f"<|{role}|>": role for role in ROLES}
_MASKED: tuple[BlockType, ...] = ("execution",)


class Labelled(NamedTuple):
    """Token ids of a conversation, and for each the label: itself, or -100 for no loss."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]


def labelled(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    masked: Collection[BlockType] = _MASKED,
    max_tokens: int | None = None,
    add_special_tokens: bool = True,
    origin: str = "messages",
) -> Labelled:
    """Token ids and labels of a conversation.

    Parameters
    ----------
    tokenizer: one that has the format's tokens, see :func:`add_format_tokens`.
    masked: types of blocks without a loss. Nothing masks no block of the assistant's; the model
        then learns to make up outputs.
    max_tokens: most tokens that are accepted.
    add_special_tokens: whether the tokenizer frames the text as it does by default, as
        :class:`~models.math.generators.HfGenerator` has it; such tokens have no loss.
    origin: what messages call the conversation, e.g. ``file:line``.

    Raises
    ------
    ParameterError: an unknown block type, a tokenizer without the format's tokens or one that
        changes them, content with a special token, more tokens than allowed.
    """
    for kind in masked:
        if kind not in TYPES:
            raise ParameterError("masked", kind, f"must be of {', '.join(TYPES)}",
                                 closest(str(kind), TYPES))
    names = {number: name for name, number in _token_ids(tokenizer).items()}
    text = render(messages)
    ids: list[int] = tokenizer(
        text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    found = [names[number] for number in ids if number in names]
    if found != _tokens_of(messages):
        raise ParameterError("tokenizer", type(tokenizer).__name__,
                             f"does not keep the special tokens of {origin} as they are")
    if max_tokens is not None and len(ids) > max_tokens:
        raise ParameterError(origin, len(ids), f"has more than {max_tokens} tokens", max_tokens)
    return Labelled(tuple(ids), tuple(_labels(ids, names, masked)))


def labelled_traces(
    traces: Iterable[Trace],
    tokenizer: PreTrainedTokenizerBase,
    *,
    masked: Collection[BlockType] = _MASKED,
    max_tokens: int = 2048,
    overlong: Overlong = "error",
    add_special_tokens: bool = True,
) -> Iterator[Labelled]:
    """:func:`labelled` of each trace, with at most ``max_tokens`` tokens; 2048 is the paper's.

    ``overlong`` says what becomes of a longer one: refused, cut at its end, or left out. One that
    would keep no label when it is cut is refused all the same.

    Raises :class:`ParameterError` as :func:`labelled` does, naming the file and line of the trace
    or its number from 1, and for an unknown policy.
    """
    policies = get_args(Overlong)
    if overlong not in policies:
        raise ParameterError("overlong", overlong, f"must be one of {', '.join(policies)}",
                             closest(str(overlong), policies))
    for number, trace in enumerate(traces, 1):
        origin = trace.origin or f"trace {number}"
        most = max_tokens if overlong == "error" else None
        sample = labelled(trace.messages, tokenizer, masked=masked, max_tokens=most,
                          add_special_tokens=add_special_tokens, origin=origin)
        if len(sample.ids) > max_tokens and overlong == "drop":
            continue
        cut = Labelled(sample.ids[:max_tokens], sample.labels[:max_tokens])
        if len(sample.ids) > max_tokens and set(cut.labels) <= {IGNORED}:
            raise ParameterError(origin, len(sample.ids), f"its first {max_tokens} tokens, which "
                                 "are kept, have no label")
        yield cut


def collate(samples: Sequence[Labelled], pad: int = 0) -> InstructionBatch:
    """Right-padded ids, labels and attention mask, each (B, S), int64; padding has no loss."""
    length = max(len(sample.ids) for sample in samples)
    return InstructionBatch(
        torch.tensor([[*each.ids, *[pad] * (length - len(each.ids))] for each in samples]),
        torch.tensor([[*each.labels, *[IGNORED] * (length - len(each.ids))] for each in samples]),
        torch.tensor([[1] * len(each.ids) + [0] * (length - len(each.ids)) for each in samples]))


def add_format_tokens(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> list[int]:
    """Give a tokenizer those of the format's eight tokens that it lacks, and a model rows for them.

    A row of a token that is new, to the tokenizer or to the model, becomes the mean of the rows of
    the tokens before, in the input and the output embedding; no other row changes. A model with
    more rows than the tokenizer has tokens keeps them all.

    Returns the ids of the eight tokens in their order.
    """
    old = len(tokenizer)
    known = tokenizer.get_vocab()
    new = [AddedToken(name, special=True, normalized=False)
           for name in SPECIAL_TOKENS if name not in known]
    tokenizer.add_tokens(new, special_tokens=True)
    ids = list(_token_ids(tokenizer).values())
    if model is not None:
        rows = cast(Tensor, model.get_input_embeddings().weight).shape[0]
        if max(ids) >= rows:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        fresh = [number for number in ids if number >= min(old, rows)]
        _set_to_mean(model, fresh, min(old, rows))
    return ids


def _token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    known = tokenizer.get_vocab()
    missing = [name for name in SPECIAL_TOKENS if name not in known]
    if missing:
        raise ParameterError("tokenizer", type(tokenizer).__name__, f"lacks {', '.join(missing)}; "
                             "add them with add_format_tokens")
    return {name: known[name] for name in SPECIAL_TOKENS}


def _tokens_of(messages: Sequence[Message]) -> list[str]:
    """The special tokens of a rendered conversation in order."""
    tokens: list[str] = []
    for message in messages:
        tokens.append(f"<|{message.role}|>")
        for block in message.content:
            tokens += [f"<|{block.type}|>", SPECIAL_TOKENS[-2]]
        tokens.append(_END_OF_MESSAGE)
    return tokens


def _labels(
    ids: Sequence[int], names: dict[int, str], masked: Collection[BlockType]
) -> Iterator[int]:
    """The label of each token: what belongs to a block is told by the special token before it."""
    assistant = block_counts = False
    for number in ids:
        name = names.get(number, "")
        if name in _OPENING:
            block_counts = _OPENING[name] not in masked
        elif name == _END_OF_MESSAGE:
            block_counts = True
        yield number if assistant and block_counts else IGNORED
        if name in _ROLES:
            assistant = name == "<|assistant|>"
        elif name == _END_OF_MESSAGE:
            assistant = False


def _set_to_mean(model: PreTrainedModel, rows: list[int], before: int) -> None:
    if not rows:
        return
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for layer in (model.get_input_embeddings(), output):
        for name in ("weight", "bias"):
            table = getattr(layer, name, None)
            if isinstance(table, Tensor):
                with torch.no_grad():
                    table[rows] = table[:before].float().mean(0).to(table.dtype)
