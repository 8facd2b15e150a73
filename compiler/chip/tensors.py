"""How tensors lie in device memory: declared once, with sizes and numpy import and export.

Channels are padded with zeros to whole words of 16 (:mod:`rtl.chunk`). A tensor knows its
:class:`Place` once :class:`compiler.chip.allocator.DeviceMemory` has given it one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rtl.architecture import Architecture
from rtl.chunk import LANES, WORD_BYTES, words_of
from rtl.errors import ParameterError
from rtl.packed_matrix import PackedMatrix

__all__ = [
    "Activation", "Image", "Matrix", "PackedWeights", "Place", "Tensor", "Vector",
    "gradient_group", "padded", "words_of",
]

Array = npt.NDArray[Any]


def padded(channels: int) -> int:
    """``channels`` rounded up to whole words."""
    return words_of(channels) * LANES


@dataclass(frozen=True)
class Place:
    """Where a tensor begins: base register and word offset from it."""

    base: int
    offset: int


@dataclass(frozen=True)
class Image:
    """Device memory as the host sees it: uint8 from address 0, and the base registers in bytes."""

    memory: npt.NDArray[np.uint8]
    bases: Sequence[int]

    def bytes_at(self, place: Place, words: int) -> npt.NDArray[np.uint8]:
        """The bytes of ``words`` words, as a view."""
        start = self.bases[place.base] + place.offset * WORD_BYTES
        return self.memory[start : start + words * WORD_BYTES]

    def store_program(self, at: int, program: Sequence[int]) -> None:
        """Write the words of a program from byte ``at`` on."""
        raw = b"".join(word.to_bytes(WORD_BYTES, "little") for word in program)
        self.memory[at : at + len(raw)] = np.frombuffer(raw, np.uint8)


@dataclass(frozen=True, kw_only=True)
class Tensor(ABC):
    """What all tensors have: a size in words and a place."""

    at: Place | None = None

    @property
    @abstractmethod
    def words(self) -> int:
        """Words in memory."""

    @property
    def place(self) -> Place:
        """Where it is; raises :class:`ParameterError` if it has no place yet."""
        if self.at is None:
            raise ParameterError(type(self).__name__, self, "must be allocated first")
        return self.at

    @property
    def base(self) -> int:
        """Base register."""
        return self.place.base

    @property
    def offset(self) -> int:
        """First word from the base."""
        return self.place.offset

    def _write(self, image: Image, array: Array) -> None:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        image.bytes_at(self.place, self.words)[:] = raw

    def _read(self, image: Image, dtype: npt.DTypeLike) -> Array:
        return image.bytes_at(self.place, self.words).copy().view(dtype)


@dataclass(frozen=True)
class Activation(Tensor):
    """FP16 (batch, height, width, channels), channels last. A vector of a linear layer is 1 x 1."""

    batch: int
    height: int
    width: int
    channels: int

    @property
    def pixel(self) -> int:
        """Words of a pixel."""
        return words_of(self.channels)

    @property
    def pixels(self) -> int:
        """Pixels of all images."""
        return self.batch * self.height * self.width

    @property
    def words(self) -> int:
        return self.pixels * self.pixel

    def store(self, image: Image, array: npt.NDArray[np.float16]) -> None:
        """Write (batch, height, width, channels) float16."""
        full = np.zeros((*array.shape[:3], padded(self.channels)), np.float16)
        full[..., : self.channels] = array
        self._write(image, full)

    def load(self, image: Image) -> npt.NDArray[np.float16]:
        """Read (batch, height, width, channels) float16."""
        return self.load_padded(image)[..., : self.channels]

    def load_padded(self, image: Image) -> npt.NDArray[np.float16]:
        """As :meth:`load`, with the padding channels."""
        shape = (self.batch, self.height, self.width, self.pixel * LANES)
        return self._read(image, np.float16).reshape(shape)


@dataclass(frozen=True)
class Vector(Tensor):
    """FP32 values, one a channel: a bias, its state or gradient, or sums of a loss."""

    channels: int

    @property
    def lines(self) -> int:
        """Lines of 16 FP32 values."""
        return words_of(self.channels)

    @property
    def words(self) -> int:
        return 2 * self.lines

    def store(self, image: Image, array: npt.NDArray[np.float32]) -> None:
        """Write (channels,) float32."""
        full = np.zeros(padded(self.channels), np.float32)
        full[: self.channels] = array
        self._write(image, full)

    def load(self, image: Image) -> npt.NDArray[np.float32]:
        """Read (channels,) float32."""
        return self._read(image, np.float32)[: self.channels]


def gradient_group(architecture: Architecture) -> int:
    """``group`` of a gradient matrix: the fewest panels that fill whole columns of the array."""
    return math.lcm(LANES, architecture.cols) // LANES


@dataclass(frozen=True)
class Matrix(Tensor):
    """Weights (taps, C_in, C_out) panel by panel: rows (tap, padded C_in), panels of 16 C_out.

    Master weights, optimiser state and gradients are FP32, dense weights FP16 (``half``).

    ``group``: so many panels share their rows: row 0 of the panels of a group, row 1, ... The last
    group may have fewer. 1 is plain panel-major; gradients that the array writes take
    :func:`gradient_group`, which is 1 for up to 16 columns.
    """

    taps: int
    c_in: int
    c_out: int
    half: bool = False
    group: int = 1

    @property
    def rows(self) -> int:
        """Rows of a panel."""
        return self.taps * padded(self.c_in)

    @property
    def panels(self) -> int:
        """Panels of 16 C_out."""
        return words_of(self.c_out)

    @property
    def lines(self) -> int:
        """Lines of 16 values, all panels."""
        return self.rows * self.panels

    @property
    def line_words(self) -> int:
        """Words of a line."""
        return 1 if self.half else 2

    @property
    def words(self) -> int:
        return self.lines * self.line_words

    def group_of(self, panel: int) -> range:
        """The panels that share their rows with ``panel``."""
        first = panel - panel % self.group
        return range(first, min(first + self.group, self.panels))

    def word(self, panel: int, row: int) -> int:
        """Offset of a line from the base register."""
        group = self.group_of(panel)
        line = group.start * self.rows + row * len(group) + panel - group.start
        return self.offset + line * self.line_words

    def pitch(self, panel: int) -> int:
        """Words from a row to the next."""
        return len(self.group_of(panel)) * self.line_words

    @property
    def _dtype(self) -> npt.DTypeLike:
        return np.float16 if self.half else np.float32

    def store(self, image: Image, array: Array) -> None:
        """Write (taps, C_in, C_out), float32 or float16."""
        full = np.zeros((self.taps, padded(self.c_in), padded(self.c_out)), self._dtype)
        full[:, : self.c_in, : self.c_out] = array
        by_panel = full.reshape(self.rows, self.panels, LANES)
        self._write(image, np.concatenate([
            by_panel[:, first : first + self.group].reshape(-1)
            for first in range(0, self.panels, self.group)
        ]))

    def load(self, image: Image) -> Array:
        """Read (taps, C_in, C_out), float32 or float16."""
        flat = self._read(image, self._dtype)
        full = np.empty((self.rows, self.panels, LANES), self._dtype)
        for first in range(0, self.panels, self.group):
            group = self.group_of(first)
            part = flat[group.start * self.rows * LANES : group.stop * self.rows * LANES]
            full[:, group.start : group.stop] = part.reshape(self.rows, -1, LANES)
        whole = full.reshape(self.taps, padded(self.c_in), padded(self.c_out))
        return whole[:, : self.c_in, : self.c_out]


@dataclass(frozen=True)
class PackedWeights(PackedMatrix, Tensor):
    """A :class:`rtl.packed_matrix.PackedMatrix` in device memory."""

    def chunk(self, panel: int, tap: int, chunk: int) -> int:
        """Offset of a chunk from the base register."""
        return self.offset + self.chunk_word(panel, tap, chunk)

    def store(self, image: Image, array: npt.NDArray[np.float16]) -> None:
        """Write (taps, C_in, C_out) float16, pruned and packed."""
        self._write(image, self.pack(array))

    def load(self, image: Image) -> npt.NDArray[np.uint16]:
        """Read the packed words as :meth:`pack` returns them."""
        return self._read(image, np.uint16).reshape(self.shape)
