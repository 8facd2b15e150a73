"""Operands of a GEMM in device memory, and the loads that bring a block of one into the buffers.

Rows (operand A) are im2col of an activation, plain for FF and BP or turned for WU. Columns
(operand B) are weights, packed or dense, or for WU the pixels of an output gradient, as they lie in
memory or a packed sample. Ranges along K begin at multiples of 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from compiler.chip.builder import ProgramBuilder
from compiler.chip.conv_geometry import Residue, Taps, Walk
from compiler.chip.tensors import Activation, Matrix, PackedWeights, padded
from rtl import isa
from rtl.chunk import LANES
from rtl.pattern import DENSE, NmPattern

__all__ = [
    "Columns", "ImageRows", "PixelColumns", "Rows", "TurnedRows", "WeightColumns",
    "backward_columns", "forward_columns", "sampled_columns",
]


class Rows(Protocol):
    """Operand A: loads rows ``p`` over ``k`` to words from ``dest`` on, ``stride`` a row tile."""

    def load(self, builder: ProgramBuilder, p: range, k: range, dest: int, stride: int) -> None:
        """Emit the loads."""


class Columns(Protocol):
    """Operand B: loads panels ``q`` over ``k`` to words from ``dest`` on, ``stride`` a tile."""

    def load(self, builder: ProgramBuilder, q: range, k: range, dest: int, stride: int) -> None:
        """Emit the loads."""


@dataclass(frozen=True)
class ImageRows:
    """FF and BP: a row is an output pixel, K is (tap, channel)."""

    walk: Walk

    def load(self, builder: ProgramBuilder, p: range, k: range, dest: int, stride: int) -> None:
        """One ``load_a`` a rectangle of taps and channel words."""
        source, start = self.walk.source, k.start // LANES
        for part in self.walk.taps.rectangles(start, k.stop // LANES):
            builder.shape(**self.walk.shape(part))
            builder.emit(
                isa.LOAD_A, base=source.base, offset=source.offset + part.word,
                **self.walk.grid.place(p.start), count=len(p),
                dest=dest + part.start - start, stride=stride,
            )


@dataclass(frozen=True)
class TurnedRows:
    """WU: a row is (tap, channel), K is the output pixels; behind the last one are zeros."""

    walk: Walk

    def load(self, builder: ProgramBuilder, p: range, k: range, dest: int, stride: int) -> None:
        """As :meth:`ImageRows.load`; ``p`` begins and ends at multiples of 16."""
        source, start = self.walk.source, p.start // LANES
        for part in self.walk.taps.rectangles(start, p.stop // LANES):
            builder.shape(**self.walk.shape(part))
            builder.emit(
                isa.LOAD_A, base=source.base, offset=source.offset + part.word,
                **self.walk.grid.place(k.start), dest=dest, stride=stride,
                count=min(k.stop, self.walk.grid.count) - k.start,
                first=(part.start - start) * LANES, turn=1,
            )


@dataclass(frozen=True)
class PixelColumns:
    """WU: K is the pixels of dY, columns are its channels."""

    source: Activation

    def load(self, builder: ProgramBuilder, q: range, k: range, dest: int, stride: int) -> None:
        """One ``load_b`` of plain rows, panels innermost as they lie in memory."""
        pixel = self.source.pixel
        builder.emit(
            isa.LOAD_B, base=self.source.base,
            offset=self.source.offset + k.start * pixel + q.start, dest=dest, stride=stride,
            rows_first=1, panels=len(q), panel_pitch=1, items=len(k), pitch=pixel,
        )


@dataclass(frozen=True)
class WeightColumns:
    """Chunks of weights or of a sample, chunk (panel, tap, i) at the sum of its pitches.

    Tap (r, c) of ``taps`` is kernel tap ``tap + r * tap_row + c * tap_col``. ``plain``: dense rows;
    otherwise a chunk is one item of ``load_b`` with ``item`` as further fields.
    """

    base: int
    offset: int
    panel_pitch: int
    tap_pitch: int
    chunk_pitch: int
    pattern: NmPattern
    taps: Taps
    tap: int
    tap_row: int
    tap_col: int
    turned: bool = False

    def load(self, builder: ProgramBuilder, q: range, k: range, dest: int, stride: int) -> None:
        """As few ``load_b`` as the spacing of the taps allows."""
        start, row = k.start // LANES, dest
        for tap, taps, spacing, chunk, chunks in self._pieces(start, k.stop // LANES):
            fields = {"items": chunks, "pitch": self.chunk_pitch}
            if self.turned:
                fields |= {"turn": 1, "turn_pitch": 1}
            elif self.pattern == DENSE:
                fields = {"items": chunks * LANES, "pitch": 1}
            builder.emit(
                isa.LOAD_B, base=self.base, dest=row, stride=stride,
                offset=self.offset + q.start * self.panel_pitch + tap * self.tap_pitch
                + chunk * self.chunk_pitch,
                n=self.pattern.n, m_log2=self.pattern.m.bit_length() - 1,
                panels=len(q), panel_pitch=self.panel_pitch,
                taps=taps, tap_pitch=spacing * self.tap_pitch, **fields,
            )
            row += taps * chunks * LANES // self.pattern.m * self.pattern.n

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int, int]]:
        """(kernel tap, number of taps, their spacing, first chunk, chunks) in order of k."""
        even = self.tap_row == self.taps.cols * self.tap_col
        if even and self.tap_col == 1 and self.tap_pitch == self.taps.words * self.chunk_pitch:
            yield self.tap, 1, 0, start, stop - start
            return
        for part in self.taps.rectangles(start, stop):
            tap = self.tap + part.row * self.tap_row + part.col * self.tap_col
            if even or part.rows == 1:
                yield tap, part.rows * part.cols, self.tap_col, part.word, part.words
                continue
            for row in range(part.rows):
                yield tap + row * self.tap_row, part.cols, self.tap_col, part.word, part.words


def forward_columns(weights: PackedWeights | Matrix, taps: Taps) -> WeightColumns:
    """Weights of FF: columns are C_out."""
    if isinstance(weights, PackedWeights):
        return _packed(weights, taps, 0, taps.cols, 1)
    return WeightColumns(
        weights.base, weights.offset, weights.rows, taps.words * LANES, LANES, DENSE,
        taps, 0, taps.cols, 1,
    )


def backward_columns(weights: PackedWeights | Matrix, residue: Residue, taps: Taps
                     ) -> WeightColumns:
    """Weights of BP for the taps of a residue: columns are C_in."""
    spacing = residue.tap, residue.tap_row, residue.tap_col
    if isinstance(weights, PackedWeights):
        return _packed(weights, taps, *spacing)
    return WeightColumns(
        weights.base, weights.offset, LANES, padded(weights.c_in), weights.rows, DENSE,
        taps, *spacing, turned=True,
    )


def sampled_columns(sample: PackedWeights) -> WeightColumns:
    """A packed sample of dY for WU: K is its pixels, columns are C_out."""
    return _packed(sample, Taps(1, 1, sample.tap_chunks), 0, 1, 1)


def _packed(weights: PackedWeights, taps: Taps, tap: int, tap_row: int, tap_col: int
            ) -> WeightColumns:
    words = weights.form.words
    return WeightColumns(
        weights.base, weights.offset, weights.panel_words, weights.tap_chunks * words, words,
        weights.pattern, taps, tap, tap_row, tap_col,
    )
