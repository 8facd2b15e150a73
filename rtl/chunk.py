"""How operands lie in memory: words of 16 lanes, chunks of 16 words, and the packed chunk.

Everything that the chip reads or writes is a sequence of **words** of ``LANES`` = 16 FP16 values
(32 bytes). A **chunk** is a 16 x 16 piece of a weight matrix: 16 rows along the reduction
dimension, one word a row. N:M pruning turns a chunk into a **packed chunk**: first its index words,
then one word for each packed row. The packed rows are those of the array's column buffers: groups
in order, the kept weights of a group in index order.

A matrix is stored **panel by panel**: panel ``j`` holds columns ``16 j`` to ``16 j + 15`` of all
rows, so that 16 rows of a panel are one contiguous chunk, packed or not. This is what SORE writes,
what the loader of the column buffers reads, and what a file with packed weights holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rtl.pattern import DENSE, NmPattern, Packed

__all__ = ["LANES", "WORD_BYTES", "ChunkFormat", "words_of"]

LANES = 16
"""FP16 lanes of a word, rows and columns of a chunk; the widest group is one word."""

WORD_BYTES = 2 * LANES
"""Bytes of a word, the unit of every memory address in an instruction."""

_INDEX_BITS = 4
_ROWS_PER_INDEX_WORD = 8 * WORD_BYTES // (LANES * _INDEX_BITS)

Words = npt.NDArray[np.uint16]


def words_of(channels: int) -> int:
    """Words that hold ``channels`` FP16 values; also panels of 16 columns, chunks of 16 rows."""
    return -(-channels // LANES)


@dataclass(frozen=True)
class ChunkFormat:
    """Layout of one chunk pruned to ``pattern``; for the dense pattern, 16 plain words.

    Raises :class:`rtl.errors.ParameterError` for a pattern that the array cannot run.
    """

    pattern: NmPattern

    def __post_init__(self) -> None:
        self.pattern.require_hardware()

    @property
    def rows(self) -> int:
        """Packed rows of a chunk: ``16 N / M``, 16 for dense."""
        return LANES // self.pattern.m * self.pattern.n

    @property
    def index_words(self) -> int:
        """Words of indices, four packed rows each, ahead of the values; none for dense."""
        return 0 if self.pattern == DENSE else -(-self.rows // _ROWS_PER_INDEX_WORD)

    @property
    def words(self) -> int:
        """Words of a chunk in memory."""
        return self.index_words + self.rows

    @property
    def bytes(self) -> int:
        """Bytes of a chunk in memory."""
        return self.words * WORD_BYTES

    def panels(self, columns: int) -> int:
        """Panels of 16 columns that cover ``columns``."""
        return words_of(columns)

    def pack(self, operand: npt.NDArray[np.float16]) -> Words:
        """Prune and pack a (K, Q) float16 operand whose groups run along axis 0.

        Both sizes are padded with zeros to whole chunks. Returns uint16 of shape
        (panels, chunks of K, words, 16).
        """
        k, q = operand.shape
        chunks, panels = words_of(k), self.panels(q)
        padded = np.zeros((chunks * LANES, panels * LANES), np.float16)
        padded[:k, :q] = operand
        packed = self.pattern.pack(padded)
        values = self._by_chunk(packed.values.view(np.uint16), chunks, panels)
        if self.pattern == DENSE:
            return values
        indices = self._by_chunk(packed.indices, chunks, panels)
        rows = np.zeros((panels, chunks, self.index_words * _ROWS_PER_INDEX_WORD, LANES), np.uint8)
        rows[:, :, : self.rows] = indices
        return np.concatenate([_nibbles(rows), values], axis=2)

    def unpack(self, words: Words) -> Packed:
        """Values and indices, each (packed rows of K, 1, Q), of what :meth:`pack` returned.

        Axis 1 has one element: rows are counted through, ``N`` of them a group.
        """
        panels, chunks = words.shape[:2]
        values = words[:, :, self.index_words :]
        indices = np.zeros(values.shape, np.uint8)
        if self.pattern != DENSE:
            raw = np.ascontiguousarray(words[:, :, : self.index_words])
            bytes_ = raw.view(np.uint8).reshape(panels, chunks, -1, LANES // 2)
            both = np.stack([bytes_ & 0xF, bytes_ >> 4], axis=-1).reshape(panels, chunks, -1, LANES)
            indices = both[:, :, : self.rows]
        shape = (chunks * self.rows, 1, panels * LANES)
        return Packed(
            np.ascontiguousarray(values).transpose(1, 2, 0, 3).reshape(shape).view(np.float16),
            indices.transpose(1, 2, 0, 3).reshape(shape),
        )

    def _by_chunk(
        self, rows: npt.NDArray[np.unsignedinteger], chunks: int, panels: int
    ) -> npt.NDArray[np.unsignedinteger]:
        """(groups, n, columns) to (panels, chunks, packed rows, 16)."""
        return rows.reshape(chunks, self.rows, panels, LANES).transpose(2, 0, 1, 3)


def _nibbles(rows: npt.NDArray[np.uint8]) -> Words:
    """Index words from (panels, chunks, rows, 16): row ``i`` at bits ``64 (i mod 4)``."""
    pairs = rows[..., 0::2] | rows[..., 1::2] << 4
    panels, chunks = rows.shape[:2]
    return np.ascontiguousarray(pairs).view(np.uint16).reshape(panels, chunks, -1, LANES)
