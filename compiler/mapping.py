"""Mapping of one GEMM onto the array: dataflow, interleave, blocks that fit the buffers.

The mapping decides and predicts; :mod:`compiler.layout` moves the data. :func:`best_mapping` tries
every mapping of the space below and takes the one with the fewest cycles:

* WS: K in slices of R groups stays in the array, rows of A stream by.
* OS: results stay; the L interleaved sums are ``interleave_rows`` row tiles times
  ``L / interleave_rows`` column tiles.

A GEMM whose operands exceed the buffers is cut into blocks of rows, columns and groups. Blocks of
groups follow each other on the same results, so sums are still added strictly in order of k.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rtl.architecture import MAX_M, Architecture
from rtl.errors import ParameterError
from rtl.pattern import NmPattern
from sim.cycles import Run

__all__ = ["Dataflow", "GemmShape", "Mapping", "Piece", "best_mapping", "mappings"]

Dataflow = Literal["ws", "os"]


def _ceil(value: int, unit: int) -> int:
    return -(-value // unit)


@dataclass(frozen=True)
class GemmShape:
    """C (P, Q) = A (P, K) @ B (K, Q) with B pruned to ``pattern`` along K.

    Raises :class:`ParameterError` for an empty dimension or a pattern the array cannot run.
    """

    p: int
    q: int
    k: int
    pattern: NmPattern

    def __post_init__(self) -> None:
        for name in ("p", "q", "k"):
            if getattr(self, name) < 1:
                raise ParameterError(name.upper(), getattr(self, name), "must be at least 1", 1)
        self.pattern.require_hardware()

    @property
    def groups(self) -> int:
        """Groups along K, the last padded with zeros."""
        return self.pattern.groups(self.k)

    @property
    def macs(self) -> int:
        """Multiply-accumulates that the array executes for this shape."""
        return self.p * self.q * self.groups * self.pattern.n

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the same GEMM without pruning."""
        return self.p * self.q * self.k

    def ideal_cycles(self, architecture: Architecture) -> int:
        """Executed MACs over R * C, rounded up: no fill, no drain, no leftovers."""
        return _ceil(self.macs, architecture.pes)


@dataclass(frozen=True)
class Piece:
    """A block of the GEMM that one segment of the work list computes.

    Half-open ranges of rows ``p``, columns ``q`` and groups ``g``; ``first`` and ``last`` mark the
    first and last block of groups.
    """

    p: range
    q: range
    g: range
    first: bool
    last: bool


@dataclass(frozen=True)
class Mapping:
    """How a GEMM runs on an architecture; :func:`mappings` makes the legal ones.

    Parameters
    ----------
    p_block, q_block, g_block: largest block of rows, columns and groups that is resident.
    interleave_rows: OS: row tiles among the L interleaved sums.
    """

    architecture: Architecture
    shape: GemmShape
    dataflow: Dataflow
    p_block: int
    q_block: int
    g_block: int
    interleave_rows: int = 1

    @property
    def stationary(self) -> bool:
        """True for WS."""
        return self.dataflow == "ws"

    @property
    def tile_rows(self) -> int:
        """OS: rows of A that a tile covers."""
        return self.architecture.rows * self.interleave_rows

    @property
    def tile_cols(self) -> int:
        """Columns of B that a tile covers."""
        if self.stationary:
            return self.architecture.cols
        return self.architecture.cols * (self.architecture.interleave // self.interleave_rows)

    def pieces(self) -> Iterator[Piece]:
        """Blocks in the order of execution; blocks of groups innermost."""
        for p in _blocks(self.shape.p, self.p_block):
            for q in _blocks(self.shape.q, self.q_block):
                for g in _blocks(self.shape.groups, self.g_block):
                    yield Piece(p, q, g, g.start == 0, g.stop == self.shape.groups)

    def run(self, piece: Piece) -> Run:
        """The tiles of a piece, as the cycle model sees them."""
        n, interleave = self.shape.pattern.n, self.architecture.interleave
        columns = _ceil(len(piece.q), self.tile_cols)
        if self.stationary:
            passes = _ceil(len(piece.p), interleave) * n
            return Run(True, n, passes, columns * _ceil(len(piece.g), self.architecture.rows))
        rows = _ceil(len(piece.p), self.tile_rows)
        return Run(False, n, len(piece.g) * n, columns * rows, emits=piece.last)

    def cycles(self) -> int:
        """Predicted compute cycles: the sum over all pieces."""
        return sum(self.run(piece).cycles(self.architecture) for piece in self.pieces())

    def utilisation(self, cycles: int) -> float:
        """Executed MACs over available MACs in ``cycles``."""
        return self.shape.macs / (cycles * self.architecture.pes)


def _blocks(length: int, block: int) -> Iterator[range]:
    for start in range(0, length, block):
        yield range(start, min(start + block, length))


def mappings(architecture: Architecture, shape: GemmShape) -> Iterator[Mapping]:
    """Every mapping of the search space, with the largest blocks that fit the buffers."""
    yield _weight_stationary(architecture, shape)
    for interleave_rows in range(1, architecture.interleave + 1):
        if architecture.interleave % interleave_rows == 0:
            yield _output_stationary(architecture, shape, interleave_rows)


def best_mapping(
    architecture: Architecture, shape: GemmShape, dataflow: Dataflow | Literal["auto"] = "auto"
) -> Mapping:
    """The mapping with the fewest predicted cycles, of one dataflow or of all.

    Raises :class:`ParameterError` for an unknown ``dataflow``.
    """
    if dataflow not in ("auto", "ws", "os"):
        raise ParameterError("--dataflow", dataflow, "must be auto, ws or os", "auto")
    legal = (m for m in mappings(architecture, shape) if dataflow in ("auto", m.dataflow))
    return min(legal, key=Mapping.cycles)


def _buffer_groups(architecture: Architecture, shape: GemmShape) -> int:
    """Groups of M activations that a row's buffer holds."""
    return architecture.w2e_words * (MAX_M // shape.pattern.m)


def _weight_stationary(architecture: Architecture, shape: GemmShape) -> Mapping:
    rows, cols, n = architecture.rows, architecture.cols, shape.pattern.n
    buffer = _buffer_groups(architecture, shape)
    p_block = min(shape.p, buffer, architecture.out_words)
    slices = min(_ceil(shape.groups, rows), buffer // p_block,
                 max(1, architecture.n2s_words // (rows * n)))
    g_block = min(shape.groups, slices * rows)
    column_tiles = max(1, min(architecture.out_words // p_block,
                              architecture.n2s_words // (g_block * n)))
    return Mapping(architecture, shape, "ws", p_block, column_tiles * cols, g_block)


def _output_stationary(
    architecture: Architecture, shape: GemmShape, interleave_rows: int
) -> Mapping:
    rows, cols, n = architecture.rows, architecture.cols, shape.pattern.n
    interleave_cols = architecture.interleave // interleave_rows
    buffer = _buffer_groups(architecture, shape)
    # A row tile and a column tile each hold one stretch of groups; a block of results needs
    # interleave_rows of the one and interleave_cols of the other at least.
    g_block = min(shape.groups, buffer // interleave_rows,
                  architecture.n2s_words // (n * interleave_cols))
    row_blocks = column_blocks = 1
    if g_block == shape.groups:
        row_blocks = min(_ceil(shape.p, rows * interleave_rows),
                         buffer // (g_block * interleave_rows))
        p_block = min(shape.p, row_blocks * rows * interleave_rows)
        row_blocks = min(row_blocks, max(1, architecture.out_words // interleave_cols
                                         // (rows * interleave_rows)))
        p_block = min(shape.p, row_blocks * rows * interleave_rows)
        column_blocks = max(1, min(architecture.n2s_words // (g_block * n * interleave_cols),
                                   architecture.out_words // (p_block * interleave_cols)))
    return Mapping(
        architecture, shape, "os", row_blocks * rows * interleave_rows,
        column_blocks * cols * interleave_cols, g_block, interleave_rows,
    )
