"""Pipelined FP32 adder, round to nearest even, subnormals honoured.

The accumulate loop of a USPE closes around this adder, so its latency L is also the interleave
factor of the array: L independent sums take turns in one adder (paper: interleave mapping).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib.wiring import Component, In, Out

from rtl.errors import ParameterError
from rtl.fp.format import BINARY32, leading_zeros

__all__ = ["Adder", "AdderCore"]

# Where the registers stand for each number of stages; the last one is always the output.
_CUTS: dict[int, frozenset[str]] = {
    2: frozenset({"align", "out"}),
    3: frozenset({"swap", "add", "out"}),
    4: frozenset({"swap", "align", "add", "out"}),
    5: frozenset({"swap", "align", "add", "normalise", "out"}),
}


@dataclass(frozen=True)
class Adder:
    """FP32 adder of ``stages`` pipeline stages (2 to 5): golden model and hardware.

    Throughput is one sum a cycle, latency ``stages`` cycles. Raises :class:`ParameterError` for
    another number of stages.
    """

    stages: int = 4

    def __post_init__(self) -> None:
        if self.stages not in _CUTS:
            nearest = min(_CUTS, key=lambda legal: abs(legal - self.stages))
            raise ParameterError("adder_stages", self.stages, "must be 2 to 5", nearest)

    @property
    def latency(self) -> int:
        """Clock cycles from operands to sum."""
        return self.stages

    def compute(
        self, a: npt.NDArray[np.uint32], b: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.uint32]:
        """Golden: bits of the sums of two arrays of FP32 bits; NaN is canonical."""
        with np.errstate(invalid="ignore", over="ignore"):
            total = a.view(np.float32) + b.view(np.float32)
        return BINARY32.canonical(total.view(np.uint32))

    def create(self) -> AdderCore:
        """Hardware of this adder."""
        return AdderCore(self.stages)


class AdderCore(Component):
    """Hardware of :class:`Adder`.

    A pair enters and a sum leaves every cycle, ``stages`` cycles later; no valid bit, no
    back-pressure. Reset state is don't-care.

    Members
    -------
    a, b: In(32), binary32 operands.
    total: Out(32), binary32 sum.
    """

    def __init__(self, stages: int) -> None:
        self._cuts = _CUTS[stages]
        super().__init__({"a": In(32), "b": In(32), "total": Out(32)})

    def _cut(self, m: Module, where: str, name: str, value: Value) -> Signal:
        """Name ``value``; behind a register if the pipeline has one at ``where``."""
        named = Signal(len(value), name=name, reset_less=True)
        domain = m.d.sync if where in self._cuts else m.d.comb
        domain += named.eq(value)
        return named

    def elaborate(self, platform: object) -> Module:
        m = Module()

        # Swap: |big| >= |small|. Comparing the bit patterns orders the magnitudes.
        swap = Signal()
        m.d.comb += swap.eq(self.a[:31] < self.b[:31])
        big = BINARY32.unpack(m, Mux(swap, self.b, self.a), "big")
        small = BINARY32.unpack(m, Mux(swap, self.a, self.b), "small")
        # A subnormal has the scale of exponent 1 and no hidden one.
        gap = Signal(8)
        m.d.comb += gap.eq(
            (big.exponent | big.subnormal) - (small.exponent | small.subnormal)
        )
        subtract = big.sign ^ small.sign

        def at_swap(name: str, value: Value) -> Signal:
            return self._cut(m, "swap", name, value)

        large1 = at_swap("large1", Cat(big.fraction, ~big.subnormal))
        little1 = at_swap("little1", Cat(small.fraction, ~small.subnormal))
        gap1 = at_swap("gap1", Mux(gap > 27, 27, gap)[:5])
        exponent1 = at_swap("exponent1", big.exponent | big.subnormal)
        subtract1 = at_swap("subtract1", subtract)
        sign1 = at_swap("sign1", big.sign)
        zero_sign1 = at_swap("zero_sign1", big.sign & small.sign)
        nan1 = at_swap("nan1", big.nan | small.nan | (big.infinite & small.infinite & subtract))
        infinite1 = at_swap("infinite1", big.infinite)

        # Align: 24 significand bits, guard and round below, everything further down is sticky.
        wide = Signal(51)
        m.d.comb += wide.eq(Cat(Const(0, 27), little1) >> gap1)

        def at_align(name: str, value: Value) -> Signal:
            return self._cut(m, "align", name, value)

        little2 = at_align("little2", Cat(wide[:25].any(), wide[25:]))
        large2 = at_align("large2", Cat(Const(0, 3), large1))
        exponent2 = at_align("exponent2", exponent1)
        subtract2 = at_align("subtract2", subtract1)
        sign2 = at_align("sign2", sign1)
        zero_sign2 = at_align("zero_sign2", zero_sign1)
        nan2 = at_align("nan2", nan1)
        infinite2 = at_align("infinite2", infinite1)

        # Add, and count how far the result must move up.
        raw = Signal(28)
        m.d.comb += raw.eq(Mux(subtract2, large2 - little2, large2 + little2))
        zeros = leading_zeros(m, raw, "raw")
        # Stop at the subnormal range: the exponent field cannot go below zero.
        shift = Mux(zeros > exponent2, exponent2, zeros)[:5]

        def at_add(name: str, value: Value) -> Signal:
            return self._cut(m, "add", name, value)

        raw3 = at_add("raw3", raw)
        shift3 = at_add("shift3", shift)
        exponent3 = at_add("exponent3", exponent2)
        sign3 = at_add("sign3", Mux(raw == 0, zero_sign2, sign2))
        nan3 = at_add("nan3", nan2)
        infinite3 = at_add("infinite3", infinite2)

        # Normalise: hidden one at bit 27; fields beyond 254 are an overflow.
        moved = Signal(28)
        field = Signal(9)
        m.d.comb += [
            moved.eq(raw3 << shift3),
            field.eq(Mux(moved[27], exponent3 + 1 - shift3, 0)),
        ]

        def at_normalise(name: str, value: Value) -> Signal:
            return self._cut(m, "normalise", name, value)

        moved4 = at_normalise("moved4", moved)
        field4 = at_normalise("field4", field)
        sign4 = at_normalise("sign4", sign3)
        nan4 = at_normalise("nan4", nan3)
        infinite4 = at_normalise("infinite4", infinite3 | (field >= BINARY32.max_exponent))

        # Round: the carry out of the fraction lands in the exponent, also into Inf.
        up = Signal()
        rounded = Signal(31)
        m.d.comb += [
            up.eq(moved4[3] & (moved4[:3].any() | moved4[4])),
            rounded.eq(Cat(moved4[4:27], field4[:8]) + up),
        ]
        finite_or_infinite = Mux(infinite4, Const(BINARY32.infinity, 31), rounded)
        total = Mux(nan4, Const(BINARY32.nan, 32), Cat(finite_or_infinite, sign4))
        m.d.comb += self.total.eq(self._cut(m, "out", "total_out", total))
        return m
