"""A whole weight tensor as packed chunks: the layout that the chip reads and a file holds.

Weights are (taps, C_in, C_out), a tap being one position of the kernel. Channels are padded with
zeros to whole chunks inside each tap, so that no group and no chunk reaches from one tap into the
next, and the chunks lie panel by panel (:mod:`rtl.chunk`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rtl.chunk import LANES, ChunkFormat, words_of
from rtl.errors import ParameterError
from rtl.pattern import NmPattern, Packed

__all__ = ["PackedMatrix"]


@dataclass(frozen=True)
class PackedMatrix:
    """Weights (taps, C_in, C_out) pruned N:M and packed, panel by panel (:mod:`rtl.chunk`).

    FF: panels of 16 C_out, chunks along (tap, C_in), groups along C_in. BP (``backward``): panels
    of 16 C_in, chunks along (tap, C_out), groups along C_out.

    Raises :class:`rtl.errors.ParameterError` for a pattern that the array cannot run.
    """

    taps: int
    c_in: int
    c_out: int
    pattern: NmPattern
    backward: bool = False

    def __post_init__(self) -> None:
        self.pattern.require_hardware()

    @property
    def form(self) -> ChunkFormat:
        """Layout of a chunk."""
        return ChunkFormat(self.pattern)

    @property
    def depth(self) -> int:
        """Channels that the GEMM sums over, which the groups lie along."""
        return self.c_out if self.backward else self.c_in

    @property
    def columns(self) -> int:
        """Channels of the result."""
        return self.c_in if self.backward else self.c_out

    @property
    def panels(self) -> int:
        """Panels of 16 columns."""
        return words_of(self.columns)

    @property
    def tap_chunks(self) -> int:
        """Chunks of a tap in a panel."""
        return words_of(self.depth)

    @property
    def panel_words(self) -> int:
        """Words of a panel."""
        return self.taps * self.tap_chunks * self.form.words

    @property
    def words(self) -> int:
        """Words of the whole matrix."""
        return self.panels * self.panel_words

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the packed words: (panels, chunks of a panel, words of a chunk, 16)."""
        return self.panels, self.taps * self.tap_chunks, self.form.words, LANES

    def chunk_word(self, panel: int, tap: int, chunk: int) -> int:
        """Offset of a chunk from the first word of the matrix."""
        return panel * self.panel_words + (tap * self.tap_chunks + chunk) * self.form.words

    def pack(self, array: npt.NDArray[np.float16]) -> npt.NDArray[np.uint16]:
        """Prune and pack (taps, C_in, C_out) float16: uint16 (panels, chunks, words, 16)."""
        rows = np.swapaxes(array, 1, 2) if self.backward else array
        full = np.zeros((self.taps, self.tap_chunks * LANES, self.panels * LANES), np.float16)
        full[:, : self.depth, : self.columns] = rows
        return self.form.pack(full.reshape(-1, full.shape[2]))

    def packed(self, words: npt.NDArray[np.uint16]) -> Packed:
        """Values and indices, each (taps, groups, N, columns), of what :meth:`pack` returned.

        Groups and columns that only pad are left out; the last group may still reach beyond the
        channels, and what it keeps there is zero. Raises :class:`rtl.errors.ParameterError` for
        words of another shape.
        """
        if words.shape != self.shape:
            rule = "must be the shape of packed words (panels, chunks, words, 16)"
            raise ParameterError("words", words.shape, rule, self.shape)
        values, indices = self.form.unpack(words)
        shape = self.taps, -1, self.pattern.n, self.panels * LANES
        groups = self.pattern.groups(self.depth)
        return Packed(values.reshape(shape)[:, :groups, :, : self.columns],
                      indices.reshape(shape)[:, :groups, :, : self.columns])

    def unpack(self, words: npt.NDArray[np.uint16]) -> npt.NDArray[np.float16]:
        """The inverse of :meth:`pack`: (taps, C_in, C_out) float16, +0 where pruned.

        Raises :class:`rtl.errors.ParameterError` for words of another shape, or with indices that
        no pruning gives.
        """
        full = self.pattern.unpack(self.packed(words), self.depth)
        return np.swapaxes(full, 1, 2) if self.backward else full
