"""FP32 comparison: which operand is greater, and the larger and the smaller one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib.wiring import Component, In, Out

from rtl.fp.format import BINARY32

__all__ = ["Compare", "CompareCore", "Compared"]


class Compared(NamedTuple):
    """What :meth:`Compare.compute` returns: an array for each output port."""

    greater: npt.NDArray[np.bool_]
    maximum: npt.NDArray[np.uint32]
    minimum: npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Compare:
    """FP32 comparison: golden model and hardware, latency 1 cycle, one pair a cycle.

    ``greater`` is ``a > b``: false with a NaN, and -0 equals +0. ``maximum`` and ``minimum`` are
    the canonical NaN if either operand is a NaN, and ``a`` if the operands are equal.
    """

    latency: int = 1

    def compute(self, a: npt.NDArray[np.uint32], b: npt.NDArray[np.uint32]) -> Compared:
        """Golden: results for two arrays of FP32 bits."""
        x, y = a.view(np.float32), b.view(np.float32)
        nan = np.uint32(BINARY32.nan)
        with np.errstate(invalid="ignore"):
            greater, less = x > y, x < y
        unordered = np.isnan(x) | np.isnan(y)
        return Compared(
            greater,
            np.where(unordered, nan, np.where(less, b, a)),
            np.where(unordered, nan, np.where(greater, b, a)),
        )

    def create(self) -> CompareCore:
        """Hardware of this comparison."""
        return CompareCore()


class CompareCore(Component):
    """Hardware of :class:`Compare`; a pair enters and leaves every cycle, 1 cycle later.

    Members
    -------
    a, b: In(32), binary32 operands.
    greater: Out(1), whether a > b.
    maximum, minimum: Out(32), binary32, the larger and the smaller operand.
    """

    def __init__(self) -> None:
        super().__init__({
            "a": In(32), "b": In(32),
            "greater": Out(1), "maximum": Out(32), "minimum": Out(32),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a = BINARY32.unpack(m, self.a, "a")
        b = BINARY32.unpack(m, self.b, "b")
        above, same, equal, nan, greater, less = (
            Signal(name=name) for name in ("above", "same", "equal", "either_nan", "more", "less")
        )
        # The bit patterns below the sign order the magnitudes.
        m.d.comb += [
            above.eq(self.a[:31] > self.b[:31]),
            same.eq(self.a[:31] == self.b[:31]),
            nan.eq(a.nan | b.nan),
            equal.eq(Mux(a.sign == b.sign, same, a.zero & b.zero)),
            greater.eq(~equal & Mux(a.sign, b.sign & ~above, b.sign | above)),
            less.eq(~equal & ~greater),
        ]
        invalid = Const(BINARY32.nan, 32)
        m.d.sync += [
            self.greater.eq(greater & ~nan),
            self.maximum.eq(Mux(nan, invalid, Mux(less, self.b, self.a))),
            self.minimum.eq(Mux(nan, invalid, Mux(greater, self.b, self.a))),
        ]
        return m
