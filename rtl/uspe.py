"""USPE: the unified sparse processing element.

One FP16 multiplier and one FP32 adder do dense and N:M work alike (paper, SAT architecture): a
step picks, out of a group of activations, the one that belongs to the packed weight. The adder's
own pipeline holds the L interleaved sums, so the loop around it costs no storage and never
starves.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import memory
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import MAX_N, Architecture
from rtl.fp import Adder, Multiplier
from rtl.links import LANES, PACKED_WEIGHT, PSUM, column_link, row_link

__all__ = ["Uspe", "UspeTiming"]


@dataclass(frozen=True)
class UspeTiming:
    """Latencies of a USPE in clock cycles, as formulas over the architecture."""

    architecture: Architecture

    hop: int = 1
    """A row or weight word reaches the neighbour's port one cycle later."""

    @property
    def operand(self) -> int:
        """From a word at the port to its product at the adder: hop, selection, multiplier."""
        return self.hop + 1 + Multiplier().latency

    @property
    def result(self) -> int:
        """From a word at the port to the sum that includes it at the south port (WS)."""
        return self.operand + Adder(self.architecture.adder_stages).latency

    @property
    def drain_hop(self) -> int:
        """Cycles a finished OS sum takes through one USPE on its way out: L + 1.

        Rows start one cycle apart and own L results each; a hop of L + 1 makes the results of
        row r follow those of row r + 1 without a gap or a collision.
        """
        return self.architecture.interleave + 1


class Uspe(Component):
    """Processing element with a store for two sets of stationary weights.

    A MAC starts every cycle. A word at the west or north port reaches the east or south port one
    cycle later; latencies are those of :class:`UspeTiming`. Sums leave southward: in WS
    immediately, in OS through the drain chain.

    While ``step.valid`` is low the L running sums recirculate through the adder unchanged, so a
    stall may last any multiple of L cycles. Reset clears the valid bits; data is don't-care.

    Members
    -------
    west, east: In, Out :func:`rtl.links.row_link`.
    north, south: In, Out :func:`rtl.links.column_link`.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "west": In(row_link()),
                "east": Out(row_link()),
                "north": In(column_link(architecture)),
                "south": Out(column_link(architecture)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        adder = Adder(self.architecture.adder_stages)
        lanes, weight = self._hop(m)
        step = self.east.step

        # Select the operands. An idle cycle multiplies +0 by +0, which leaves a sum as it is.
        chosen = self._store(m, weight)
        multiplier = Multiplier().create()
        m.submodules.multiplier = multiplier
        activation = Signal(16, reset_less=True)
        value = Signal(16, reset_less=True)
        m.d.sync += [
            activation.eq(
                Mux(step.valid, lanes.as_value().word_select(chosen.index, 16), 0)
            ),
            value.eq(Mux(step.valid, chosen.value, 0)),
        ]
        m.d.comb += [multiplier.a.eq(activation), multiplier.b.eq(value)]

        # Accumulate.
        opens, closes, fixed = (
            Signal(name=name) for name in ("opens", "closes", "fixed")
        )
        m.d.comb += Cat(opens, closes, fixed).eq(
            self._delay(
                m, "control", 1 + Multiplier().latency,
                Cat(step.valid & step.first, step.valid & step.last, step.stationary),
            )
        )
        core = adder.create()
        m.submodules.adder = core
        from_north = Signal()
        m.d.comb += [
            from_north.eq(opens & fixed),
            core.a.eq(multiplier.product),
            core.b.eq(
                Mux(opens, Mux(fixed, self.north.psum.value, 0), core.total)
            ),
        ]

        # Let finished sums out.
        emit = Signal()
        emit_fixed = Signal()
        m.d.comb += Cat(emit, emit_fixed).eq(
            self._delay(m, "emit", adder.latency, Cat(closes, fixed))
        )
        drained = self._drain(m, emit & ~emit_fixed, core.total, from_north)
        with m.If(emit & emit_fixed):
            m.d.comb += [self.south.psum.valid.eq(1), self.south.psum.value.eq(core.total)]
        with m.Else():
            m.d.comb += self.south.psum.eq(drained)
        return m

    def _hop(self, m: Module) -> tuple[Signal, Signal]:
        """Register the row and weight words once; returns the lanes and the weight word here."""
        weight = Signal.like(self.north.weight, name="weight")
        lanes = Signal(LANES, name="lanes", reset_less=True)
        m.d.sync += [
            self.east.step.eq(self.west.step),
            lanes.eq(self.west.lanes),
            weight.eq(self.north.weight),
        ]
        m.d.comb += [
            self.east.lanes.eq(lanes),
            self.south.weight.eq(weight),
            self.south.weight.hops.eq(weight.hops - 1),
            self.south.weight.load.eq(weight.load & (weight.hops != 0)),
        ]
        return lanes, weight

    def _store(self, m: Module, weight: Signal) -> Signal:
        """The stationary weights; returns the weight that this step uses."""
        step = self.east.step
        m.submodules.store = store = memory.Memory(
            shape=PACKED_WEIGHT, depth=2 * MAX_N, init=[]
        )
        write, read = store.write_port(), store.read_port(domain="comb")
        chosen = Signal(PACKED_WEIGHT, name="chosen")
        m.d.comb += [
            write.en.eq(weight.load & (weight.hops == 0)),
            write.addr.eq(Cat(weight.slot, weight.bank)),
            write.data.eq(weight.weight),
            read.addr.eq(Cat(step.slot, step.bank)),
            chosen.eq(Mux(step.stationary, read.data, weight.weight)),
        ]
        return chosen

    def _drain(self, m: Module, own: Signal, total: Signal, consumed: Signal) -> Signal:
        """The drain chain: own results go in first, then those of the rows further north."""
        entry = Signal(PSUM, name="drain_entry")
        m.d.comb += [
            entry.valid.eq(own | (self.north.psum.valid & ~consumed)),
            entry.value.eq(Mux(own, total, self.north.psum.value)),
        ]
        hops = UspeTiming(self.architecture).drain_hop
        leaving = Signal(PSUM, name="drained")
        m.d.comb += leaving.valid.eq(self._delay(m, "drain_valid", hops, entry.valid))
        m.d.comb += leaving.value.eq(
            self._delay(m, "drain_value", hops, entry.value, reset_less=True)
        )
        return leaving

    @staticmethod
    def _delay(
        m: Module, name: str, cycles: int, value: Signal, *, reset_less: bool = False
    ) -> Signal:
        """``value`` as it was ``cycles`` ago."""
        for cycle in range(1, cycles + 1):
            later = Signal(len(value), name=f"{name}_{cycle}", reset_less=reset_less)
            m.d.sync += later.eq(value)
            value = later
        return value
