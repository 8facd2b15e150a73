"""Conversions between FP16 and FP32 (numerics contract, rule 5).

Widening is exact. Narrowing rounds to nearest even, keeps subnormals and overflows to Inf.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib.wiring import Component, In, Out

from rtl.fp.format import BINARY16, BINARY32, leading_zeros

__all__ = ["Narrow", "NarrowCore", "Widen", "WidenCore"]


@dataclass(frozen=True)
class Narrow:
    """FP32 to FP16: golden model and hardware, latency 1 cycle, one value a cycle."""

    latency: int = 1

    def compute(self, value: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint16]:
        """Golden: FP16 bits of an array of FP32 bits; NaN is canonical."""
        with np.errstate(over="ignore", invalid="ignore"):
            narrow = value.view(np.float32).astype(np.float16)
        return BINARY16.canonical(narrow.view(np.uint16))

    def create(self) -> NarrowCore:
        """Hardware of this conversion."""
        return NarrowCore()


@dataclass(frozen=True)
class Widen:
    """FP16 to FP32, exact: golden model and hardware, latency 1 cycle, one value a cycle."""

    latency: int = 1

    def compute(self, value: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint32]:
        """Golden: FP32 bits of an array of FP16 bits; NaN is canonical."""
        return BINARY32.canonical(value.view(np.float16).astype(np.float32).view(np.uint32))

    def create(self) -> WidenCore:
        """Hardware of this conversion."""
        return WidenCore()


class NarrowCore(Component):
    """Hardware of :class:`Narrow`; a value enters and leaves every cycle, 1 cycle later.

    Members
    -------
    value: In(32), binary32.
    result: Out(16), binary16.
    """

    def __init__(self) -> None:
        super().__init__({"value": In(32), "result": Out(16)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        x = BINARY32.unpack(m, self.value, "x")
        rebias = BINARY32.bias - BINARY16.bias
        # Below exponent 113 the result is subnormal: shift until the scale is 2^-24. From 12 bits
        # on nothing but the sticky bit is left, so 13 stands for all larger shifts.
        deep = Signal(range(14))
        significand = Signal(24)
        wide = Signal(37)
        m.d.comb += [
            deep.eq(
                Mux(
                    x.exponent > rebias,
                    0,
                    Mux(x.exponent < rebias - 12, 13, (rebias + 1) - x.exponent),
                )
            ),
            significand.eq(Cat(x.fraction, ~x.subnormal)),
            wide.eq(Cat(Const(0, 13), significand) >> deep),
        ]
        kept, guard, sticky = wide[26:36], wide[25], wide[:25].any()
        field = Mux(wide[36], (x.exponent - rebias)[:8], 0)
        rounded = Signal(19)
        m.d.comb += rounded.eq(Cat(kept, field) + (guard & (sticky | kept[0])))
        overflow = x.infinite | (rounded >= BINARY16.infinity)
        magnitude = Mux(
            x.nan, BINARY16.nan, Mux(overflow, BINARY16.infinity, rounded[:15])
        )
        m.d.sync += self.result.eq(Cat(magnitude[:15], x.sign & ~x.nan))
        return m


class WidenCore(Component):
    """Hardware of :class:`Widen`; a value enters and leaves every cycle, 1 cycle later.

    Members
    -------
    value: In(16), binary16.
    result: Out(32), binary32.
    """

    def __init__(self) -> None:
        super().__init__({"value": In(16), "result": Out(32)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        x = BINARY16.unpack(m, self.value, "x")
        rebias = BINARY32.bias - BINARY16.bias
        zeros = leading_zeros(m, x.fraction, "x")
        fraction = Signal(10)
        exponent = Signal(8)
        with m.If(x.nan):
            m.d.comb += [fraction.eq(1 << 9), exponent.eq(BINARY32.max_exponent)]
        with m.Elif(x.infinite):
            m.d.comb += exponent.eq(BINARY32.max_exponent)
        with m.Elif(x.zero):
            m.d.comb += exponent.eq(0)
        with m.Elif(x.subnormal):
            m.d.comb += [fraction.eq((x.fraction << zeros) << 1), exponent.eq(rebias - zeros)]
        with m.Else():
            m.d.comb += [fraction.eq(x.fraction), exponent.eq(x.exponent + rebias)]
        m.d.sync += self.result.eq(
            Cat(Const(0, 13), fraction, exponent, x.sign & ~x.nan)
        )
        return m
