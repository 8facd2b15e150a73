"""One FP32 lane of the vector engine: every operation of :class:`rtl.isa.VectorOp`, and ReLU."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from amaranth.hdl import Const, Module, Mux, Signal, Value
from amaranth.lib.wiring import Component, In, Out

from rtl.fp import Adder, Compare, DivideRoot, Multiplier32
from rtl.fp.format import BINARY32
from rtl.isa import VectorOp

__all__ = ["LaneTiming", "Path", "Pick", "VectorLane"]


class Path(enum.IntEnum):
    """Which unit of the lane a result comes from."""

    PICK = 0
    ADD = 1
    MULTIPLY = 2
    DIVIDE = 3

    @classmethod
    def of(cls, op: VectorOp) -> Path:
        """The unit that computes ``op``."""
        return {
            VectorOp.ADD: cls.ADD, VectorOp.SUB: cls.ADD, VectorOp.SUM: cls.ADD,
            VectorOp.MUL: cls.MULTIPLY, VectorOp.DIV: cls.DIVIDE, VectorOp.SQRT: cls.DIVIDE,
        }.get(op, cls.PICK)


class Pick(enum.IntEnum):
    """What a lane picks where nothing is computed."""

    COPY = 0
    MAXIMUM = 1
    MINIMUM = 2
    GATE = 3
    GREATER = 4
    PEAK = 5

    @classmethod
    def of(cls, op: VectorOp) -> Pick:
        """The choice that makes ``op``; any for an operation of another path."""
        return {
            VectorOp.MAX: cls.MAXIMUM, VectorOp.MIN: cls.MINIMUM, VectorOp.GATE: cls.GATE,
            VectorOp.GREATER: cls.GREATER, VectorOp.PEAK: cls.PEAK,
        }.get(op, cls.COPY)


@dataclass(frozen=True)
class LaneTiming:
    """Latencies of a lane in cycles from operands to result; a result a cycle."""

    pick: int = Compare().latency
    """From the operands to what is picked."""

    output: int = 1
    """The result register, behind the choice of the path and ReLU."""

    @property
    def short(self) -> int:
        """Everything but division and square root: adder and multiplier, whichever is longer."""
        return max(Adder().latency, Multiplier32().latency, self.pick) + self.output

    @property
    def long(self) -> int:
        """Division and square root."""
        return DivideRoot().latency + self.output

    def latency(self, op: VectorOp) -> int:
        """Of an operation."""
        return self.long if Path.of(op) == Path.DIVIDE else self.short


class VectorLane(Component):
    """Arithmetic of one lane; all control comes from outside, at the stage that needs it.

    Operands enter and a result leaves every cycle, latency :class:`LaneTiming`. Results are those
    of ``VectorOp``, each rounded once; a NaN is canonical, also one that is merely copied. In a
    reduction b is what is held so far.

    Members
    -------
    a, b: In(32), binary32 operands.
    subtract: In(1), with the operands: a - b instead of a + b.
    root: In(1), with the operands: square root of a instead of a / b.
    pick: In(3), :class:`Pick`, ``LaneTiming.pick`` cycles after the operands.
    path: In(2), :class:`Path`, one cycle before the result.
    relu: In(1), one cycle before the result: +0 for a result that is not above zero; NaN stays.
    result: Out(32), binary32.
    nonfinite: Out(1), the result is Inf or NaN.
    """

    def __init__(self) -> None:
        super().__init__({
            "a": In(32), "b": In(32), "subtract": In(1), "root": In(1), "pick": In(3),
            "path": In(2), "relu": In(1), "result": Out(32), "nonfinite": Out(1),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        timing = LaneTiming()
        m.submodules.adder = adder = Adder().create()
        m.submodules.multiplier = multiplier = Multiplier32().create()
        m.submodules.divider = divider = DivideRoot().create()
        m.d.comb += [
            adder.a.eq(self.a),
            adder.b.eq(self.b ^ (self.subtract << 31)),
            multiplier.a.eq(self.a),
            multiplier.b.eq(self.b),
            divider.a.eq(self.a),
            divider.b.eq(self.b),
            divider.root.eq(self.root),
        ]
        before = timing.short - timing.output
        picked = _late(m, "picked", before - timing.pick, self._pick(m))
        total = _late(m, "total", before - Adder().latency, adder.total)
        product = _late(m, "product", before - Multiplier32().latency, multiplier.product)

        chosen = Signal(32)
        with m.Switch(self.path):
            with m.Case(Path.PICK):
                m.d.comb += chosen.eq(picked)
            with m.Case(Path.ADD):
                m.d.comb += chosen.eq(total)
            with m.Case(Path.MULTIPLY):
                m.d.comb += chosen.eq(product)
            with m.Case(Path.DIVIDE):
                m.d.comb += chosen.eq(divider.result)
        # The canonical NaN has no sign, so ReLU leaves it alone; -0 becomes +0.
        kept = Signal(32, reset_less=True)
        m.d.sync += kept.eq(Mux(self.relu & chosen[31], 0, chosen))
        m.d.comb += [self.result.eq(kept), self.nonfinite.eq(kept[23:31].all())]
        return m

    def _pick(self, m: Module) -> Signal:
        """What needs no arithmetic, one cycle after the operands."""
        m.submodules.compare = compare = Compare().create()
        a = BINARY32.unpack(m, self.a, "a")
        b = BINARY32.unpack(m, self.b, "b")
        same, held = Signal(32, reset_less=True), Signal(32, reset_less=True)
        opened, unordered = Signal(reset_less=True), Signal(reset_less=True)
        picked = Signal(32)
        m.d.comb += [compare.a.eq(self.a), compare.b.eq(self.b)]
        m.d.sync += [
            same.eq(Mux(a.nan, Const(BINARY32.nan, 32), self.a)),
            held.eq(self.b),
            opened.eq(~b.sign & ~b.zero & ~b.nan),
            unordered.eq(a.nan | b.nan),
        ]
        with m.Switch(self.pick):
            with m.Case(Pick.MAXIMUM):
                m.d.comb += picked.eq(compare.maximum)
            with m.Case(Pick.MINIMUM):
                m.d.comb += picked.eq(compare.minimum)
            with m.Case(Pick.GATE):
                m.d.comb += picked.eq(Mux(opened, same, 0))
            with m.Case(Pick.GREATER):
                m.d.comb += picked.eq(Mux(compare.greater, BINARY32.bias << 23, 0))
            with m.Case(Pick.PEAK):
                # What is held comes first, so it stays when they are equal.
                m.d.comb += picked.eq(Mux(compare.greater | unordered, compare.maximum, held))
            with m.Default():
                m.d.comb += picked.eq(same)
        return picked


def _late(m: Module, name: str, cycles: int, value: Value) -> Value:
    """``value`` as it was ``cycles`` ago."""
    for cycle in range(1, cycles + 1):
        later = Signal(len(value), name=f"{name}_{cycle}", reset_less=True)
        m.d.sync += later.eq(value)
        value = later
    return value
