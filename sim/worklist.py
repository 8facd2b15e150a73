"""The array's work list: what is filled into the buffers, which tiles run, what is read back.

A :class:`WorkList` is everything that an engine needs to run a GEMM. It is written as one binary
job for the native engine; the layout of that file is declared here and read by ``harness.cpp``.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rtl.architecture import MAX_M
from rtl.tile import TILE_WORD_BITS, Tile

__all__ = ["Opcode", "Segment", "WorkList"]


class Opcode(enum.IntEnum):
    """Records of a job: four 32-bit words (opcode, address, count, unused) and their data."""

    FILL_W2E = 1
    """``count`` words for every row: R * MAX_M float16 each."""
    FILL_N2S = 2
    """``count`` words for every column: C packed weights in 32 bits each, index above value."""
    TILES = 3
    """``count`` tiles, ``TILE_WORD_BITS`` each; returns when the engine is no longer busy."""
    READ = 4
    """``count`` words of every column: C float32 each go to the output."""


@dataclass(frozen=True)
class Segment:
    """Fill, run, read: a part of a GEMM whose operands fit in the buffers.

    Parameters
    ----------
    w2e: float16, shape (words, R, MAX_M), for the west-to-east buffers from address 0.
    n2s_values, n2s_indices: float16 and uint8, shape (words, C), for the north-to-south buffers.
    tiles: the work, in order.
    read_words: words of each column's result buffer to read afterwards, from address 0.
    """

    w2e: npt.NDArray[np.float16]
    n2s_values: npt.NDArray[np.float16]
    n2s_indices: npt.NDArray[np.uint8]
    tiles: tuple[Tile, ...]
    read_words: int


@dataclass(frozen=True)
class WorkList:
    """Segments that run one after the other; sums may stay in the engine in between."""

    segments: tuple[Segment, ...]

    @property
    def tiles(self) -> int:
        """Number of tiles in all segments."""
        return sum(len(segment.tiles) for segment in self.segments)

    def records(self) -> Iterator[bytes]:
        """The job file, piece by piece."""
        for segment in self.segments:
            if segment.w2e.shape[2] != MAX_M:
                raise AssertionError("west-to-east words have MAX_M elements")
            yield self._header(Opcode.FILL_W2E, len(segment.w2e))
            yield np.ascontiguousarray(segment.w2e).tobytes()
            weights = segment.n2s_values.view(np.uint16).astype(np.uint32)
            weights |= segment.n2s_indices.astype(np.uint32) << np.uint32(16)
            yield self._header(Opcode.FILL_N2S, len(weights))
            yield weights.tobytes()
            yield self._header(Opcode.TILES, len(segment.tiles))
            yield b"".join(
                tile.pack().to_bytes(TILE_WORD_BITS // 8, "little") for tile in segment.tiles
            )
            if segment.read_words:
                yield self._header(Opcode.READ, segment.read_words)

    @staticmethod
    def _header(opcode: Opcode, count: int) -> bytes:
        return struct.pack("<4I", opcode, 0, count, 0)
