"""How a weight operand lies in packed form; known from its shape and its pattern alone.

A pattern that the chip runs is held as the words that its pruning engine writes, through
:class:`rtl.packed_matrix.PackedMatrix`; any other pattern as values and indices; a dense operand as
it is.

A convolution with groups is so many independent GEMMs, and no N:M group reaches from one into the
next. Each of them is therefore packed on its own, padded to whole chunks, and lies after the one
before: the words of group ``g`` are those of a convolution with its C_in / groups inputs and
C_out / groups outputs alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rtl.chunk import LANES, words_of
from rtl.errors import ParameterError
from rtl.packed_matrix import PackedMatrix
from rtl.pattern import NmPattern, Packed

__all__ = ["OperandForm"]

Half = npt.NDArray[np.float16]

_WIDEST = 256
"""Largest M whose indices fit uint8."""


@dataclass(frozen=True)
class OperandForm:
    """How the operand of one pass is held; known from the weight's shape and the pattern alone.

    Parameters
    ----------
    shape: of the weight, (C_out, C_in / groups, *kernel).
    groups: convolution groups, 1 for a linear layer.
    pattern: N:M of this operand, groups along C_in (FF) or C_out (BP) of a convolution group.
    backward: the operand of BP rather than FF.

    Raises
    ------
    ParameterError: ``groups`` that do not divide C_out, or M above 256.
    """

    shape: tuple[int, ...]
    groups: int
    pattern: NmPattern
    backward: bool

    def __post_init__(self) -> None:
        if len(self.shape) < 2 or min(self.shape) < 1:
            rule = "must be (C_out, C_in / groups, *kernel), all at least 1"
            raise ParameterError("shape", self.shape, rule)
        if self.groups < 1 or self.shape[0] % self.groups:
            rule = f"must divide the {self.shape[0]} output channels"
            nearest = math.gcd(self.shape[0], max(self.groups, 1))
            raise ParameterError("groups", self.groups, rule, nearest)
        if self.pattern.m > _WIDEST and not self.pattern.is_dense:
            rule = f"packed indices are uint8, so M must be at most {_WIDEST}"
            raise ParameterError("pattern", str(self.pattern), rule,
                                 NmPattern(min(self.pattern.n, _WIDEST), _WIDEST))

    @property
    def kind(self) -> str:
        """``"words"``, ``"indices"`` (values and indices) or ``"dense"``."""
        if self.pattern.is_dense:
            return "dense"
        try:
            self.pattern.require_hardware()
        except ParameterError:
            return "indices"
        return "words"

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.shape[2:])

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(taps, C_in, C_out) of one convolution group."""
        return self.taps, self.shape[1], self.shape[0] // self.groups

    @property
    def depth(self) -> int:
        """Channels of a convolution group that the pass sums over."""
        return self.sizes[2] if self.backward else self.sizes[1]

    @property
    def matrix(self) -> PackedMatrix:
        """Layout of one convolution group; :class:`ParameterError` unless ``kind`` is words."""
        return PackedMatrix(*self.sizes, self.pattern, self.backward)

    @property
    def padded(self) -> tuple[int, int]:
        """(C_in, C_out) of one convolution group with the zeros that packing adds."""
        _, *channels = self.sizes
        if self.kind == "words":
            channels = [words_of(size) * LANES for size in channels]
        elif self.kind == "indices":
            channels[self.backward] = self.pattern.groups(self.depth) * self.pattern.m
        return channels[0], channels[1]

    @property
    def logical_shape(self) -> tuple[int, ...]:
        """Shape of values and indices: (rows, *kernel, N:M groups, N); a row is a sum's result.

        FF has C_out rows, BP the C_in of all convolution groups one after another.
        """
        _, c_in, c_out = self.sizes
        rows = self.groups * (c_in if self.backward else c_out)
        return rows, *self.shape[2:], self.pattern.groups(self.depth), self.pattern.n

    @property
    def arrays(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Name, type and shape of the arrays that hold the operand.

        ``words``: uint16 (groups, panels, chunks, words of a chunk, 16). ``values``: float16 and
        ``indices``: uint8, :attr:`logical_shape`. ``dense``: float16, the weight's shape.
        """
        if self.kind == "words":
            return {"words": (torch.uint16, (self.groups, *self.matrix.shape))}
        if self.kind == "indices":
            return {"values": (torch.float16, self.logical_shape),
                    "indices": (torch.uint8, self.logical_shape)}
        return {"dense": (torch.float16, self.shape)}

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """Prune and pack a weight of this shape, rounded to FP16 first: the :attr:`arrays`.

        An operand that is pruned already keeps what it kept. Raises :class:`ParameterError` for
        another shape.
        """
        if tuple(weight.shape) != self.shape:
            raise ParameterError("weight", tuple(weight.shape), "must have the shape", self.shape)
        half = weight.detach().to("cpu", torch.float16, copy=True).contiguous()
        if self.kind == "dense":
            return {"dense": half}
        split = self.split(half.numpy())
        if self.kind == "words":
            words = np.stack([self.matrix.pack(group) for group in split])
            return {"words": torch.from_numpy(words)}
        values, indices = self.logical(self.grouped(split))
        return {"values": torch.from_numpy(values), "indices": torch.from_numpy(indices)}

    def split(self, weight: Half) -> Half:
        """The weight's shape to (groups, taps, C_in, C_out)."""
        taps, c_in, c_out = self.sizes
        return weight.reshape(self.groups, c_out, c_in, taps).transpose(0, 3, 2, 1)

    def join(self, split: Half) -> Half:
        """The inverse of :meth:`split`."""
        return np.ascontiguousarray(split.transpose(0, 3, 2, 1)).reshape(self.shape)

    def grouped(self, split: Half) -> Packed:
        """Pruned with the pattern, whatever it is: (groups, taps, N:M groups, N, columns)."""
        rows = split.swapaxes(2, 3) if self.backward else split
        *lead, depth, columns = rows.shape
        full = np.zeros((*lead, self.pattern.groups(depth) * self.pattern.m, columns), np.float16)
        full[:, :, :depth] = rows
        values, indices = self.pattern.pack(full.reshape(-1, columns))
        shape = *lead, -1, self.pattern.n, columns
        return Packed(values.reshape(shape), indices.reshape(shape))

    def logical(self, grouped: Packed) -> Packed:
        """(groups, taps, N:M groups, N, columns) to :attr:`logical_shape`, contiguous."""
        order = 0, 4, 1, 2, 3
        return Packed(
            np.ascontiguousarray(grouped.values.transpose(order)).reshape(self.logical_shape),
            np.ascontiguousarray(grouped.indices.transpose(order)).reshape(self.logical_shape))

    def dense(self, logical: Packed) -> Half:
        """From :attr:`logical_shape` to the weight's shape, +0 where pruned."""
        *_, count, kept = self.logical_shape
        shape, order = (self.groups, -1, self.taps, count, kept), (0, 2, 3, 4, 1)
        grouped = Packed(logical.values.reshape(shape).transpose(order),
                         logical.indices.reshape(shape).transpose(order))
        rows = self.pattern.unpack(grouped, self.depth)
        return self.join(rows.swapaxes(2, 3) if self.backward else rows)
