"""The vector engine: optimiser steps, drain arithmetic and pruning, instruction by instruction.

The paper's WUVE is a fixed pipeline for one optimiser. This is the same arithmetic as a small
vector engine, so that an optimiser is a sequence of instructions and nothing here knows which.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import Architecture
from rtl.chunk import LANES
from rtl.error_codes import ErrorCode
from rtl.fp import Narrow
from rtl.netlist import place
from rtl.pack_store import AXES, PackStore
from rtl.sore import Sore
from rtl.units import SCALAR_VALUES, fill_port, pack_port, take_port, unit_port
from rtl.vector_drain import ADDRESS_BITS, ResultReader
from rtl.vector_file import VectorFile
from rtl.vector_issue import LINE_ORDER, VectorIssue
from rtl.vector_lane import LaneTiming, VectorLane
from rtl.vector_timing import VectorTiming

__all__ = ["VectorUnit"]


class VectorUnit(Component):
    """Registers, 16 lanes, SORE, and the sequencer that drives them.

    A line of 16 results a cycle; an instruction takes :meth:`VectorTiming.cycles` and may overlap
    the next one by the rules stated there, which never show in a result. ``error`` comes with the
    ``done`` of the instruction that it belongs to. A line whose operand is beyond the end of the
    result buffers is not written.

    Members
    -------
    port: In :func:`rtl.units.unit_port`, instructions VECTOR, PRUNE and CLEAR.
    scalars: In, :data:`rtl.units.SCALAR_VALUES`.
    fill: In :func:`rtl.units.fill_port`, lines from memory; they wait for results of the engine.
    take: In :func:`rtl.units.take_port`, lines to memory.
    pack: In :func:`rtl.units.pack_port`, packed chunks to memory.
    out_en, out_address, out_data: Out(1), Out(20), In, result buffers, FEED_LATENCY cycles later.
    nonfinite: Out(1), sticky: a watched result was Inf or NaN.
    clear: In(1), clear ``nonfinite``.
    """

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture.require_chip()
        super().__init__({
            "port": In(unit_port()),
            "scalars": In(SCALAR_VALUES),
            "fill": In(fill_port()),
            "take": In(take_port()),
            "pack": In(pack_port()),
            "out_en": Out(1), "out_address": Out(ADDRESS_BITS),
            "out_data": In(data.ArrayLayout(32, architecture.cols)),
            "nonfinite": Out(1),
            "clear": In(1),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        timing, lane = VectorTiming(self._architecture), LaneTiming()
        m.submodules.sequencer = issue = VectorIssue(self._architecture)
        m.submodules.reader = reader = ResultReader(self._architecture)
        m.submodules.file = file = VectorFile()
        port = self.port
        m.d.comb += [
            issue.valid.eq(port.valid), issue.word.eq(port.word), port.ready.eq(issue.ready),
            issue.scalars.eq(self.scalars),
            reader.walk.eq(issue.walk), issue.bad.eq(reader.bad),
            self.out_en.eq(reader.out_en), self.out_address.eq(reader.out_address),
            reader.out_data.eq(self.out_data),
        ]
        for name in ("valid", "register", "line", "data"):
            m.d.comb += getattr(file.fill, name).eq(getattr(self.fill, name))
        m.d.comb += [
            self.fill.ready.eq(file.fill.ready),
            file.take.register.eq(self.take.register), file.take.line.eq(self.take.line),
            self.take.data.eq(file.take.data),
        ]

        # ``after[n]`` goes beside the line that was issued n cycles ago.
        short, long = timing.operand + lane.short, timing.operand + lane.long
        after: list[data.View] = [issue.order]
        for cycle in range(1, long + 1):
            order = Signal(LINE_ORDER, name=f"order_{cycle}")
            m.d.sync += order.eq(after[-1])
            if cycle == short + 1:
                m.d.sync += order.valid.eq(after[-1].valid & after[-1].long)
            after.append(order)

        a, b = self._operands(m, issue, file, reader, after[timing.operand])
        path, relu, retired = Signal(2), Signal(), Signal(LINE_ORDER)
        # The hazard rules keep a short and a long line from ending together.
        ends_long = after[long - 1].valid
        m.d.comb += [
            path.eq(Mux(ends_long, after[long - 1].path, after[short - 1].path)),
            relu.eq(Mux(ends_long, after[long - 1].relu, after[short - 1].relu)),
            retired.eq(Mux(after[long].valid, after[long], after[short])),
            retired.valid.eq(after[long].valid | (after[short].valid & ~after[short].long)),
        ]
        operands = after[timing.operand]
        results, nonfinite = [], []
        for number in range(LANES):
            unit = VectorLane()
            place(m, platform, f"lane_{number}", unit, "vector_lane")
            m.d.comb += [
                unit.a.eq(a.word_select(number, 32)),
                unit.b.eq(b.word_select(number, 32)),
                unit.subtract.eq(operands.subtract),
                unit.root.eq(operands.root),
                unit.pick.eq(after[timing.operand + lane.pick].pick),
                unit.path.eq(path),
                unit.relu.eq(relu),
            ]
            results.append(unit.result)
            nonfinite.append(unit.nonfinite)

        written = Signal()
        m.d.comb += [
            written.eq(retired.valid & retired.write),
            file.write_en.eq(written),
            file.write_register.eq(retired.register),
            file.write_line.eq(retired.line),
            file.write_data.eq(Cat(results)),
        ]
        with m.If(self.clear | issue.clear):
            m.d.sync += self.nonfinite.eq(0)
        with m.Elif(written & retired.watch & Cat(nonfinite).any()):
            m.d.sync += self.nonfinite.eq(1)

        stored = self._prune(m, platform, issue.pack, a, operands.valid & operands.prune)
        ends = Signal()
        m.d.comb += [issue.stored.eq(stored), ends.eq(retired.valid & retired.last)]
        m.d.sync += [
            port.done.eq(ends | issue.finish),
            port.error.eq(
                Mux(
                    issue.finish, issue.error,
                    Mux(ends & retired.fault, ErrorCode.RANGE, ErrorCode.NONE),
                )
            ),
        ]
        return m

    @staticmethod
    def _operands(
        m: Module, issue: VectorIssue, file: VectorFile, reader: ResultReader, order: data.View
    ) -> tuple[Signal, Signal]:
        """Lines a and b, ``VectorTiming.operand`` cycles after their issue."""
        from_register, constant = Signal(), Signal(32, reset_less=True)
        a_line, b_line = (
            Signal(len(file.a_data.as_value()), name=name, reset_less=True)
            for name in ("a_line", "b_line")
        )
        a = Signal.like(a_line, name="a")
        everywhere = Cat(constant for _ in range(LANES))
        m.d.comb += [
            file.a_en.eq(issue.a_en), file.b_en.eq(issue.b_en),
            file.a_register.eq(issue.a_register), file.b_register.eq(issue.b_register),
            file.a_line.eq(issue.a_line), file.b_line.eq(issue.b_line),
            a.eq(Mux(order.drain, reader.line.as_value(), a_line)),
        ]
        m.d.sync += [
            from_register.eq(issue.b_en),
            constant.eq(issue.constant),
            a_line.eq(file.a_data),
            b_line.eq(Mux(from_register, file.b_data.as_value(), everywhere)),
        ]
        return a, b_line

    def _prune(
        self, m: Module, platform: object, order: data.View, line: Signal, valid: Value
    ) -> Signal:
        """Lines to FP16, through SORE, into a pack slot; returns whether all chunks are there.

        The pack slots always take a word, so SORE takes one each cycle: nothing here waits.
        """
        m.submodules.sore = sore = Sore()
        m.submodules.packs = packs = PackStore()
        words = []
        for number in range(LANES):
            narrow = Narrow().create()
            place(m, platform, f"narrow_{number}", narrow, "narrow")
            m.d.comb += narrow.value.eq(line.word_select(number, 32))
            words.append(narrow.result)
        arrives = Signal()
        m.d.sync += arrives.eq(valid)
        m.d.comb += [
            sore.word.eq(Cat(words)), sore.valid.eq(arrives),
            sore.n.eq(order.n), sore.m_log2.eq(order.m_log2),
            packs.start.eq(order.start), packs.slot.eq(order.slot), packs.chunks.eq(order.chunks),
            packs.pack.axis.eq(self.pack.axis), packs.pack.slot.eq(self.pack.slot),
            packs.pack.chunk.eq(self.pack.chunk), packs.pack.word.eq(self.pack.word),
            self.pack.data.eq(packs.pack.data),
        ]
        for axis in AXES:
            for name in ("word", "valid", "last"):
                m.d.comb += getattr(packs, f"{axis}_{name}").eq(getattr(sore, f"{axis}_{name}"))
            m.d.comb += getattr(sore, f"{axis}_ready").eq(getattr(packs, f"{axis}_ready"))
        return packs.stored
