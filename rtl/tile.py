"""The tile: the unit of work of the array, as a word for the hardware and as a timing formula.

A tile multiplies a (rows of A) x (K) piece by a (K) x (columns of B) piece of a GEMM:

* **OS** (output-stationary): up to ``L * R`` x C results stay in the array while K passes by.
  The L interleaved sums of a USPE are ``interleave_rows`` row tiles times ``L / interleave_rows``
  column tiles; or, ``paired``, L row tiles and as many column tiles, each with its partner only.
* **WS** (weight-stationary): R groups of K x C columns of packed weights stay while the rows of A
  pass by; the sums go through the result buffer from one slice of K to the next.

Time is counted in **passes** of L cycles, in which each of the L interleaved sums gets one MAC.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from amaranth.lib import data

from rtl.architecture import Architecture

__all__ = ["ADDRESS_BITS", "TILE", "TILE_WORD_BITS", "Tile"]

ADDRESS_BITS = 24
"""Width of the addresses, strides and counts of a tile."""

_WIDTHS = {
    "a_base": ADDRESS_BITS,
    "a_stride": ADDRESS_BITS,
    "b_base": ADDRESS_BITS,
    "b_stride": ADDRESS_BITS,
    "c_base": ADDRESS_BITS,
    "c_stride": ADDRESS_BITS,
    "groups": ADDRESS_BITS,
    "p_count": ADDRESS_BITS,
    "q_count": 12,
    "rows": 12,
    "n": 4,
    "m_log2": 3,
    "interleave_rows": 3,
    "stationary": 1,
    "first": 1,
    "last": 1,
    "paired": 1,
}

TILE = data.StructLayout(_WIDTHS)
"""The tile as the sequencer's input stream carries it; members as :class:`Tile`."""

TILE_WORD_BITS = 32 * -(-TILE.size // 32)
"""Width of a tile in a work list, rounded up to whole 32-bit words."""


@dataclass(frozen=True)
class Tile:
    """One entry of the array's work list.

    Parameters
    ----------
    stationary: 1 for WS, 0 for OS.
    n, m_log2: packed weights a group, and log2 of the group size; dense is 1 and 0.
    groups: OS: groups along K. WS: blocks of L rows of A.
    rows: array rows in use (WS: groups of K in this slice; OS: always R).
    p_count, q_count: results to write: rows of A and columns of B in this tile.
    a_base, a_stride: first group address in the west-to-east buffers; OS: distance from one row
        tile to the next.
    b_base, b_stride: first word in the north-to-south buffers; OS: distance from one column tile
        to the next.
    c_base, c_stride: first word in the result buffers; OS: distance from one column tile to the
        next.
    interleave_rows: OS: row tiles that share a USPE; divides L. Paired: 1.
    first: sums start at +0. Otherwise OS continues those still in the array, WS those in the
        result buffer.
    last: OS: write the sums out after this tile. WS tiles always write theirs.
    paired: OS: interleaved sum s is row tile ``a_base + s * a_stride`` times column tile
        ``b_base + s * b_stride``, with its results from ``c_base + s * c_stride`` on. Every pair
        writes p_count rows; q_count is C times the number of pairs, which may be less than L.
    """

    a_base: int
    b_base: int
    c_base: int
    groups: int
    p_count: int
    q_count: int
    rows: int
    n: int = 1
    m_log2: int = 0
    stationary: int = 0
    a_stride: int = 0
    b_stride: int = 0
    c_stride: int = 0
    interleave_rows: int = 1
    first: int = 1
    last: int = 1
    paired: int = 0

    def pack(self) -> int:
        """The tile as one unsigned word of :data:`TILE`."""
        word, offset = 0, 0
        for name, width in _WIDTHS.items():
            value = getattr(self, name)
            if not 0 <= value < 1 << width:
                raise OverflowError(f"tile field {name}={value} does not fit in {width} bits")
            word |= value << offset
            offset += width
        return word

    @property
    def passes(self) -> int:
        """Passes of L cycles that this tile keeps the array busy: ``groups * n``."""
        return self.groups * self.n

    @property
    def config(self) -> tuple[int, int, int]:
        """What the whole array must agree on; a change waits until the array is empty."""
        return (self.stationary, self.n, self.m_log2)

    def skew(self, architecture: Architecture) -> int:
        """Cycles by which a row of the array works behind the row above it."""
        return self.n * architecture.interleave if self.stationary else 1


if tuple(sorted(_WIDTHS)) != tuple(sorted(field.name for field in fields(Tile))):
    raise AssertionError("Tile and TILE declare different members")
