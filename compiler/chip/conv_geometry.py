"""Which pixels and taps the three GEMMs of a convolution walk over, as ``shape`` says it.

FF and WU walk the output grid of the layer. BP walks the input grid once a residue of the stride:
only the taps that meet a residue take part, in rising order, so that the pixel of dY falls from a
tap to the next and the tap steps are negative.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from compiler.chip.tensors import Activation, padded, words_of
from compiler.ir import Conv
from rtl.errors import ParameterError

__all__ = ["ConvGeometry", "Grid", "Rectangle", "Residue", "Segment", "Taps", "Walk"]


@dataclass(frozen=True)
class Rectangle:
    """Taps ``rows`` x ``cols`` from (``row``, ``col``) on, channel words ``word`` to ``word +
    words - 1`` of each; ``start`` is where it begins along (tap, channel word)."""

    row: int
    rows: int
    col: int
    cols: int
    word: int
    words: int
    start: int


@dataclass(frozen=True)
class Taps:
    """The axis (tap row, tap column, channel word) of an operand."""

    rows: int
    cols: int
    words: int

    @property
    def length(self) -> int:
        """Words of all taps."""
        return self.rows * self.cols * self.words

    def rectangles(self, start: int, stop: int) -> Iterator[Rectangle]:
        """Words ``start`` to ``stop - 1`` as few rectangles, in order."""
        while start < stop:
            tap, word = divmod(start, self.words)
            row, col = divmod(tap, self.cols)
            whole = (stop - start) // self.words
            rows = cols = 1
            words = self.words
            if word or not whole:
                words = min(self.words - word, stop - start)
            elif col or whole < self.cols:
                cols = min(self.cols - col, whole)
            else:
                rows, cols = whole // self.cols, self.cols
            yield Rectangle(row, rows, col, cols, word, words, start)
            start += rows * cols * words


@dataclass(frozen=True)
class Segment:
    """Pixels of a tensor for walk positions ``first`` to ``first + count - 1``: numbers from
    ``pixel`` on, ``step`` apart."""

    first: int
    count: int
    pixel: int
    step: int


@dataclass(frozen=True)
class Grid:
    """The output grid of a GEMM inside an activation: pixel (origin + step * place) of each image.

    ``size`` is the grid, ``image`` the activation's height and width.
    """

    batch: int
    size: tuple[int, int]
    image: tuple[int, int]
    origin: tuple[int, int] = (0, 0)
    step: tuple[int, int] = (1, 1)

    @property
    def count(self) -> int:
        """Positions of the walk."""
        return self.batch * self.size[0] * self.size[1]

    def place(self, position: int) -> dict[str, int]:
        """Fields ``image``, ``y`` and ``x`` of a walk position."""
        rest, x = divmod(position, self.size[1])
        image, y = divmod(rest, self.size[0])
        return {"image": image, "y": y, "x": x}

    def segments(self, first: int, count: int) -> Iterator[Segment]:
        """Where walk positions lie in the activation: one segment, or one a row of the grid."""
        if self.step == (1, 1) and self.size == self.image:
            yield Segment(first, count, first, 1)
            return
        end = first + count
        while first < end:
            at = self.place(first)
            length = min(end - first, self.size[1] - at["x"])
            y = self.origin[0] + at["y"] * self.step[0]
            x = self.origin[1] + at["x"] * self.step[1]
            pixel = (at["image"] * self.image[0] + y) * self.image[1] + x
            yield Segment(first, length, pixel, self.step[1])
            first += length


@dataclass(frozen=True)
class Walk:
    """im2col of an activation: ``grid`` of output pixels, ``taps``, and how they meet the image."""

    source: Activation
    grid: Grid
    taps: Taps
    stride: tuple[int, int]
    step: tuple[int, int]
    first: tuple[int, int]

    def shape(self, part: Rectangle) -> dict[str, int]:
        """Fields of ``shape`` for a rectangle of taps and channel words."""
        source = self.source
        return {
            "words": part.words, "pixel": source.pixel, "row": source.width * source.pixel,
            "image": source.height * source.width * source.pixel,
            "height": source.height, "width": source.width,
            "out_height": self.grid.size[0], "out_width": self.grid.size[1],
            "stride_y": self.stride[0], "stride_x": self.stride[1],
            "taps_y": part.rows, "taps_x": part.cols,
            "step_y": self.step[0], "step_x": self.step[1],
            "first_y": self.first[0] + part.row * self.step[0],
            "first_x": self.first[1] + part.col * self.step[1],
        }


@dataclass(frozen=True)
class _Axis:
    """One dimension of a residue: taps ``tap + i * tap_step``, the walk, and its length."""

    tap: int
    tap_step: int
    taps: int
    first: int
    step: int
    length: int

    @classmethod
    def of(cls, residue: int, stride: int, kernel: int, dilation: int, before: int, size: int
           ) -> _Axis:
        met = [k for k in range(kernel) if (residue + before - k * dilation) % stride == 0]
        tap_step = met[1] - met[0] if len(met) > 1 else 1
        tap = met[0] if met else 0
        return cls(
            tap, tap_step, len(met), (residue + before - tap * dilation) // stride,
            -(tap_step * dilation // stride) if len(met) > 1 else 0,
            -(-(size - residue) // stride),
        )


@dataclass(frozen=True)
class Residue:
    """BP for the input pixels of one residue. Without ``walk`` no tap reaches them.

    Tap (i, j) of the walk is tap ``tap + i * tap_row + j * tap_col`` of the kernel.
    """

    grid: Grid
    walk: Walk | None
    tap: int = 0
    tap_row: int = 0
    tap_col: int = 1


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution with the size of its input, without groups of channels.

    Raises :class:`ParameterError` if the output is empty.
    """

    conv: Conv
    batch: int
    height: int
    width: int
    c_in: int
    c_out: int

    def __post_init__(self) -> None:
        if self.out_height < 1 or self.out_width < 1:
            raise ParameterError("kernel", self.conv.kernel,
                                 f"must fit the padded input {self.height} x {self.width}")

    @classmethod
    def linear(cls, batch: int, c_in: int, c_out: int) -> ConvGeometry:
        """A linear layer: a 1 x 1 image and kernel."""
        return cls(Conv((1, 1)), batch, 1, 1, c_in, c_out)

    def _out(self, axis: int) -> int:
        size, padding = (self.height, self.width)[axis], self.conv.padding
        total = size + (padding[2] + padding[3], padding[0] + padding[1])[axis]
        reach = self.conv.dilation[axis] * (self.conv.kernel[axis] - 1)
        return (total - reach - 1) // self.conv.stride[axis] + 1

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return self._out(0)

    @property
    def out_width(self) -> int:
        """Pixels of an output row."""
        return self._out(1)

    @property
    def taps(self) -> int:
        """Kernel taps."""
        return self.conv.kernel[0] * self.conv.kernel[1]

    @property
    def rows(self) -> int:
        """Rows of the weight matrix: (tap, padded C_in)."""
        return self.taps * padded(self.c_in)

    def input(self) -> Activation:
        """The activation that FF reads, and BP writes the gradient of; without a place."""
        return Activation(self.batch, self.height, self.width, self.c_in)

    def output(self) -> Activation:
        """The activation that FF writes, and BP reads the gradient of; without a place."""
        return Activation(self.batch, self.out_height, self.out_width, self.c_out)

    def check(self, name: str, tensor: Activation, like: Activation) -> None:
        """Raise :class:`ParameterError` unless ``tensor`` has the sizes of ``like``."""
        sizes = [(t.batch, t.height, t.width, t.channels) for t in (tensor, like)]
        if sizes[0] != sizes[1]:
            raise ParameterError(name, sizes[0], f"must be {sizes[1]}", sizes[1])

    def forward(self, x: Activation) -> Walk:
        """im2col of the input, for FF and WU."""
        size = (self.out_height, self.out_width)
        left, _, top, _ = self.conv.padding
        return Walk(
            x, Grid(self.batch, size, size), Taps(*self.conv.kernel, words_of(self.c_in)),
            self.conv.stride, self.conv.dilation, (-top, -left),
        )

    def residues(self, dy: Activation) -> Iterator[Residue]:
        """BP: every residue of the stride that has pixels, row by row."""
        conv, image = self.conv, (self.height, self.width)
        before = (conv.padding[2], conv.padding[0])
        for residue in itertools.product(range(conv.stride[0]), range(conv.stride[1])):
            y, x = (
                _Axis.of(*each) for each in zip(
                    residue, conv.stride, conv.kernel, conv.dilation, before, image, strict=True)
            )
            if y.length < 1 or x.length < 1:
                continue
            grid = Grid(self.batch, (y.length, x.length), image, residue, conv.stride)
            if not y.taps or not x.taps:
                yield Residue(grid, None)
                continue
            walk = Walk(
                dy, grid, Taps(y.taps, x.taps, words_of(self.c_out)), (1, 1),
                (y.step, x.step), (y.first, x.first),
            )
            width = conv.kernel[1]
            yield Residue(grid, walk, y.tap * width + x.tap, y.tap_step * width, x.tap_step)
