"""Mapping of one GEMM, or a batch of equal ones, onto the array: dataflow, interleave, blocks.

The mapping decides and predicts; :mod:`compiler.array.layout` moves the data. :func:`best_mapping`
tries every mapping of the space below and takes the one with the fewest cycles:

* WS: K in slices of R groups stays in the array, rows of A stream by.
* OS: results stay; the L interleaved sums are ``interleave_rows`` row tiles times
  ``L / interleave_rows`` column tiles.
* OS, paired: the sums are L pairs of a row tile and a column tile, whichever come next in the
  batch. However small the GEMMs, only the last tile has idle sums; but each pair has its own copy
  of its operands in the buffers.

A GEMM whose operands exceed the buffers is cut into blocks of rows, columns and groups. Blocks of
groups follow each other on the same results, so sums are still added strictly in order of k. Of a
batch of smaller GEMMs, as many as fit are in the buffers at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from compiler.ceiling import ceil_div
from rtl.architecture import MAX_M, Architecture
from rtl.errors import ParameterError
from rtl.pattern import NmPattern
from sim.cycles import Run

__all__ = ["Block", "Dataflow", "GemmShape", "Mapping", "Piece", "best_mapping", "mappings"]

Dataflow = Literal["ws", "os"]


@dataclass(frozen=True)
class GemmShape:
    """C (P, Q) = A (P, K) @ B (K, Q) with B pruned to ``pattern`` along K, ``batch`` times.

    Every GEMM of a batch has operands of its own: A (batch, P, K), B (batch, K, Q).

    Raises :class:`ParameterError` for an empty dimension or a pattern the array cannot run.
    """

    p: int
    q: int
    k: int
    pattern: NmPattern
    batch: int = 1

    def __post_init__(self) -> None:
        for name, value in (("P", self.p), ("Q", self.q), ("K", self.k), ("batch", self.batch)):
            if value < 1:
                raise ParameterError(name, value, "must be at least 1", 1)
        self.pattern.require_hardware()

    @property
    def groups(self) -> int:
        """Groups along K, the last padded with zeros."""
        return self.pattern.groups(self.k)

    @property
    def macs(self) -> int:
        """Multiply-accumulates that the array executes for this shape."""
        return self.batch * self.p * self.q * self.groups * self.pattern.n

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the same GEMM without pruning."""
        return self.batch * self.p * self.q * self.k

    def ideal_cycles(self, architecture: Architecture) -> int:
        """Executed MACs over R * C, rounded up: no fill, no drain, no leftovers."""
        return ceil_div(self.macs, architecture.pes)


@dataclass(frozen=True)
class Block:
    """Results that have their operands to themselves: rows ``p`` and columns ``q`` of a GEMM.

    ``entry`` is the number of the GEMM in the batch.
    """

    entry: int
    p: range
    q: range


@dataclass(frozen=True)
class Piece:
    """What one segment of the work list computes.

    Half-open ranges: of ``blocks``, for :meth:`Mapping.block`, which are all equally large unless
    paired; and of groups ``g``. ``first`` and ``last`` mark the first and last groups.
    """

    blocks: range
    g: range
    first: bool
    last: bool


@dataclass(frozen=True)
class Mapping:
    """How a GEMM runs on an architecture; :func:`mappings` makes the legal ones.

    Parameters
    ----------
    p_block, q_block, g_block: largest block of rows, columns and groups.
    interleave_rows: OS: row tiles among the L interleaved sums.
    paired: OS: a block is one row tile and one column tile; the sums of a tile are L blocks.
    resident: blocks in the buffers at a time. Unless paired, more than one only if a block is a
        whole GEMM.
    """

    architecture: Architecture
    shape: GemmShape
    dataflow: Dataflow
    p_block: int
    q_block: int
    g_block: int
    interleave_rows: int = 1
    paired: bool = False
    resident: int = 1

    @property
    def stationary(self) -> bool:
        """True for WS."""
        return self.dataflow == "ws"

    @property
    def tile_rows(self) -> int:
        """OS: rows of A that a tile covers; paired: those of a block."""
        return self.architecture.rows * self.interleave_rows

    @property
    def tile_cols(self) -> int:
        """Columns of B that a tile covers; paired: those of a block."""
        if self.stationary or self.paired:
            return self.architecture.cols
        return self.architecture.cols * (self.architecture.interleave // self.interleave_rows)

    @property
    def blocks(self) -> int:
        """Blocks of all GEMMs of the batch."""
        shape = self.shape
        return shape.batch * ceil_div(shape.p, self.p_block) * ceil_div(shape.q, self.q_block)

    def block(self, number: int) -> Block:
        """The block of this number: GEMM by GEMM, columns innermost."""
        shape = self.shape
        number, column = divmod(number, ceil_div(shape.q, self.q_block))
        entry, row = divmod(number, ceil_div(shape.p, self.p_block))
        return Block(entry, _block(shape.p, self.p_block, row),
                     _block(shape.q, self.q_block, column))

    def pieces(self) -> Iterator[Piece]:
        """Pieces in the order of execution; pieces of groups innermost."""
        for blocks in _blocks(self.blocks, self.resident):
            for g in _blocks(self.shape.groups, self.g_block):
                yield Piece(blocks, g, g.start == 0, g.stop == self.shape.groups)

    def run(self, piece: Piece) -> Run:
        """The tiles of a piece, as the cycle model sees them."""
        n, interleave = self.shape.pattern.n, self.architecture.interleave
        if self.paired:
            tiles = ceil_div(len(piece.blocks), interleave)
            return Run(False, n, len(piece.g) * n, tiles, emits=piece.last)
        block = self.block(piece.blocks.start)
        tiles = len(piece.blocks) * ceil_div(len(block.q), self.tile_cols)
        if self.stationary:
            passes = ceil_div(len(block.p), interleave) * n
            return Run(True, n, passes, tiles * ceil_div(len(piece.g), self.architecture.rows))
        tiles *= ceil_div(len(block.p), self.tile_rows)
        return Run(False, n, len(piece.g) * n, tiles, emits=piece.last)

    def sizes(self, block: Block, groups: int) -> tuple[int, int, int]:
        """What a block with so many groups of K takes of each buffer.

        Groups in a row buffer, packed weights in a column buffer, words in a result buffer.
        """
        rows, columns = self.architecture.rows, ceil_div(len(block.q), self.architecture.cols)
        if self.stationary:
            moving = len(block.p) * ceil_div(groups, rows)
        else:
            moving = ceil_div(len(block.p), rows) * groups
        results = rows if self.paired else len(block.p)
        return moving, columns * groups * self.shape.pattern.n, columns * results

    def cycles(self) -> int:
        """Predicted compute cycles: the sum over all pieces."""
        runs = Counter(map(self.run, self.pieces()))  # few that differ
        return sum(number * run.cycles(self.architecture) for run, number in runs.items())

    def utilisation(self, cycles: int) -> float:
        """Executed MACs over available MACs in ``cycles``."""
        return self.shape.macs / (cycles * self.architecture.pes)


def _block(length: int, block: int, number: int) -> range:
    return range(number * block, min((number + 1) * block, length))


def _blocks(length: int, block: int) -> Iterator[range]:
    return (_block(length, block, number) for number in range(ceil_div(length, block)))


def mappings(architecture: Architecture, shape: GemmShape) -> Iterator[Mapping]:
    """Every mapping of the search space, with the largest blocks that fit the buffers."""
    yield _batched(_weight_stationary(architecture, shape))
    for interleave_rows in range(1, architecture.interleave + 1):
        if architecture.interleave % interleave_rows == 0:
            yield _batched(_output_stationary(architecture, shape, interleave_rows))
    yield _paired(architecture, shape)


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
    slices = min(ceil_div(shape.groups, rows), buffer // p_block,
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
        row_blocks = min(ceil_div(shape.p, rows * interleave_rows),
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


def _paired(architecture: Architecture, shape: GemmShape) -> Mapping:
    rows, cols, n = architecture.rows, architecture.cols, shape.pattern.n
    blocks = shape.batch * ceil_div(shape.p, rows) * ceil_div(shape.q, cols)
    pairs = min(architecture.interleave, blocks)
    g_block = min(shape.groups, _buffer_groups(architecture, shape) // pairs,
                  architecture.n2s_words // (n * pairs))
    mapping = Mapping(architecture, shape, "os", rows, cols, g_block, paired=True, resident=pairs)
    if g_block < shape.groups:  # the sums of one tile stay in the array
        return mapping
    fitting = min(_fitting(mapping), blocks)
    if fitting < blocks:
        fitting -= fitting % pairs
    return replace(mapping, resident=fitting)


def _batched(mapping: Mapping) -> Mapping:
    """With as many GEMMs in the buffers as fit whole."""
    if mapping.blocks > mapping.shape.batch or mapping.g_block < mapping.shape.groups:
        return mapping
    return replace(mapping, resident=min(_fitting(mapping), mapping.shape.batch))


def _fitting(mapping: Mapping) -> int:
    """Blocks of the size of the first, with all of K, for which there is room."""
    architecture, shape = mapping.architecture, mapping.shape
    depths = _buffer_groups(architecture, shape), architecture.n2s_words, architecture.out_words
    sizes = mapping.sizes(mapping.block(0), shape.groups)
    return min(depth // size for depth, size in zip(depths, sizes, strict=True))
