"""Several solutions in a row of one batch, none of which sees another (arXiv:2310.03731, 2.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from algorithms import ParameterError
from models.llm.instructions import IGNORED
from models.math.labels import Labelled

__all__ = ["PackedBatch", "pack", "packed_batches"]


class PackedBatch(NamedTuple):
    """Packed rows, as arguments of a Hugging Face model.

    ids, labels: (B, S), int64; padding and the first token of each sample have label -100.
    positions: (B, S), int64, from 0 in each sample. mask: (B, 1, S, S), 0 where the query of a row
    sees the key of a column, else the least number of its dtype: causal, and within one sample. It
    serves eager and scaled-dot-product attention.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    mask: Tensor


def pack(samples: Iterable[Labelled], tokens: int) -> Iterator[list[Labelled]]:
    """Samples by rows of at most ``tokens`` tokens, each into the first open row with room.

    Rows come out filled, or at the end; nothing is cut. Raises :class:`ParameterError` for a sample
    that no row holds.
    """
    rows: list[tuple[int, list[Labelled]]] = []
    for number, sample in enumerate(samples, 1):
        if len(sample.ids) > tokens:
            raise ParameterError(f"sample {number}", len(sample.ids),
                                 f"has more than the {tokens} tokens of a row", tokens)
        place = next((index for index, (room, _) in enumerate(rows) if room >= len(sample.ids)),
                     len(rows))
        if place == len(rows):
            rows.append((tokens, []))
        room, row = rows[place]
        row.append(sample)
        rows[place] = room - len(sample.ids), row
        if rows[place][0] == 0:
            yield rows.pop(place)[1]
        elif len(rows) > _OPEN:
            yield rows.pop(min(range(len(rows)), key=lambda index: rows[index][0]))[1]
    yield from (row for _, row in rows)


_OPEN = 64
"""Rows that are filled at a time; beyond, the fullest goes out."""


def packed_batches(
    rows: Iterable[Sequence[Labelled]], batch: int, pad: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[PackedBatch]:
    """Batches of ``batch`` rows, the last perhaps of fewer; ``dtype`` is the mask's, the model's.

    Raises :class:`ParameterError` for ``batch`` below 1.
    """
    if batch < 1:
        raise ParameterError("batch", batch, "must be 1 or more", 1)
    waiting: list[Sequence[Labelled]] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == batch:
            yield _batch(waiting, pad, dtype)
            waiting = []
    if waiting:
        yield _batch(waiting, pad, dtype)


def _batch(rows: Sequence[Sequence[Labelled]], pad: int, dtype: torch.dtype) -> PackedBatch:
    length = max(sum(len(sample.ids) for sample in row) for row in rows)
    shape = len(rows), length
    ids, labels = torch.full(shape, pad), torch.full(shape, IGNORED)
    positions, owner = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    for index, row in enumerate(rows):
        at = 0
        for number, sample in enumerate(row, 1):
            end = at + len(sample.ids)
            ids[index, at:end] = torch.tensor(sample.ids)
            # It would be predicted from the last token of the sample before.
            labels[index, at + 1:end] = torch.tensor(sample.labels[1:])
            positions[index, at:end] = torch.arange(len(sample.ids))
            owner[index, at:end] = number
            at = end
        positions[index, at:] = torch.arange(length - at)
    seen = (owner[:, :, None] == owner[:, None, :]) & torch.ones(length, length).tril().bool()
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    return PackedBatch(ids, labels, positions, mask[:, None])
