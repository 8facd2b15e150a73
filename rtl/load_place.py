"""The placing side of the load unit: words into operand buffers and vector registers."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from rtl.architecture import Architecture
from rtl.chunk import LANES
from rtl.links import PACKED_WEIGHT
from rtl.load_cursor import LoadCursor
from rtl.load_decode import MARK, PLAN
from rtl.load_fill import LoadFill
from rtl.load_turn import LoadTurn
from rtl.registers import ErrorCode
from rtl.units import ERROR_BITS, MEMORY_WORD, fill_port

__all__ = ["LoadPlace", "column_slices"]

_WEIGHTS = data.ArrayLayout(PACKED_WEIGHT, LANES)


def column_slices(architecture: Architecture) -> int:
    """Words of 16 columns side by side in a column tile."""
    return max(1, architecture.cols // LANES)


class LoadPlace(Component):
    """Executes plans with the words that come, one a cycle (a row of 16 weights takes
    ``16 / C`` cycles if C is smaller), without a gap between plans.

    Writes appear one cycle after their word; ``error`` and ``done`` one cycle after the write.
    After a plan for vector registers the next one begins when the last line has been taken.

    Members
    -------
    plan, plan_valid, plan_ready: In, In(1), Out(1), :data:`rtl.load_decode.PLAN`.
    word, mark: In(256), In, a word and its :data:`rtl.load_decode.MARK`.
    word_valid, word_ready: In(1), Out(1), of ``word``.
    w2e_en: Out, one bit a row buffer.
    w2e_address: Out(16), word to write.
    w2e_data: Out(256), what to write.
    n2s_en: Out, one bit a column buffer.
    n2s_address: Out(20), word to write.
    n2s_data: Out, one :data:`rtl.links.PACKED_WEIGHT` a column.
    fill: Out, :func:`rtl.units.fill_port`.
    done: Out(1), strobe, a plan is complete.
    error: Out(4), strobe, RANGE or FIELD of :class:`rtl.registers.ErrorCode`.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self._steps, self._slices = architecture.line_steps, column_slices(architecture)
        super().__init__(
            {
                "plan": In(PLAN),
                "plan_valid": In(1),
                "plan_ready": Out(1),
                "word": In(MEMORY_WORD),
                "mark": In(MARK),
                "word_valid": In(1),
                "word_ready": Out(1),
                "w2e_en": Out(architecture.rows),
                "w2e_address": Out(16),
                "w2e_data": Out(MEMORY_WORD),
                "n2s_en": Out(architecture.cols),
                "n2s_address": Out(20),
                "n2s_data": Out(data.ArrayLayout(PACKED_WEIGHT, architecture.cols)),
                "fill": Out(fill_port()),
                "done": Out(1),
                "error": Out(ERROR_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.turn = turn = LoadTurn(self.architecture)
        m.submodules.fill = fill = LoadFill(self.architecture)
        plan = Signal(PLAN, name="current", reset_less=True)
        active, begin, finish = Signal(), Signal(), Signal()
        valid, take, used = Signal(), Signal(), Signal()
        draining, write, final, index = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            self.plan_ready.eq(~active | finish),
            begin.eq(self.plan_valid & self.plan_ready),
            turn.word.eq(self.word),
            turn.mark.eq(self.mark),
            turn.valid.eq(self.word_valid),
            self.word_ready.eq(turn.ready),
            turn.turn.eq(plan.turn),
            turn.placed_ready.eq(take),
            valid.eq(active & turn.placed_valid),
            used.eq(valid & take),
            fill.begin.eq(begin),
            fill.first.eq(self.plan.line),
            fill.register.eq(plan.register),
            fill.half.eq(plan.half),
            fill.word.eq(turn.placed),
            fill.valid.eq(valid & plan.fill & ~draining),
            write.eq(valid & (plan.w2e | (plan.n2s & ~index))),
        ]
        connect(m, flipped(self.fill), fill.fill)
        with m.If(plan.fill):
            m.d.comb += [
                take.eq(active & fill.ready & ~draining),
                finish.eq(active & draining & fill.ready),
            ]
        with m.Else():
            m.d.comb += [
                take.eq(active & (plan.w2e | (plan.n2s & (index | final)))),
                finish.eq((active & ~plan.w2e & ~plan.n2s) | (used & turn.placed_mark.last)),
            ]
        with m.If(begin):
            m.d.sync += [active.eq(1), plan.eq(self.plan)]
        with m.Elif(finish):
            m.d.sync += active.eq(0)
        m.d.sync += draining.eq(plan.fill & ~finish & (draining | (used & turn.placed_mark.last)))

        part = self._parts(m, plan, write, final)
        weights = self._weights(m, plan, turn, begin, used, index)
        cursor = self._cursor(m, plan, turn, begin, write, final)
        outside = self._write(m, plan, turn, cursor, write, weights, part)
        done1, error1 = Signal(), Signal(ERROR_BITS)
        fault = Mux(finish & plan.fault, ErrorCode.FIELD, ErrorCode.NONE)
        m.d.sync += [
            done1.eq(finish),
            self.done.eq(done1),
            error1.eq(Mux(outside | fill.beyond, ErrorCode.RANGE, fault)),
            self.error.eq(error1),
        ]
        return m

    def _parts(self, m: Module, plan: Signal, write: Signal, final: Signal) -> Signal:
        """Which part of a row of weights is written, if it takes several cycles."""
        part = Signal(range(max(2, self._steps)))
        m.d.comb += final.eq(part == self._steps - 1)
        with m.If(write & plan.n2s):
            m.d.sync += part.eq(Mux(final, 0, part + 1))
        return part

    def _weights(
        self, m: Module, plan: Signal, turn: LoadTurn, begin: Signal, used: Signal, index: Signal
    ) -> Signal:
        """The 16 weights of a row; sets ``index`` while the word holds indices of a chunk."""
        entry = Signal(range(LANES))
        row = Signal(range(LANES // 2))
        indices = Signal(2 * MEMORY_WORD, reset_less=True)
        nibbles = Signal(MEMORY_WORD // 4)
        weights = Signal(_WEIGHTS)
        m.d.comb += [
            index.eq(plan.n2s & (entry < plan.index_words)),
            row.eq(entry - plan.index_words),
            nibbles.eq(Mux(plan.index_words == 0, 0, indices.word_select(row, len(nibbles)))),
        ]
        for lane in range(LANES):
            m.d.comb += [
                weights[lane].value.eq(turn.placed.word_select(lane, 16)),
                weights[lane].index.eq(nibbles.word_select(lane, 4)),
            ]
        with m.If(begin | (used & turn.placed_mark.end0)):
            m.d.sync += entry.eq(0)
        with m.Elif(used):
            m.d.sync += entry.eq(entry + 1)
        with m.If(used & index):
            m.d.sync += indices.word_select(entry[0], MEMORY_WORD).eq(turn.placed)
        return weights

    def _cursor(
        self, m: Module, plan: Signal, turn: LoadTurn, begin: Signal, write: Signal, final: Signal
    ) -> LoadCursor:
        """The cursor, and how it goes on after a write."""
        m.submodules.cursor = cursor = LoadCursor(self.architecture)
        mark = turn.placed_mark
        m.d.comb += [
            cursor.begin.eq(begin),
            cursor.plan.eq(self.plan),
            cursor.stride.eq(plan.stride),
            cursor.last_unit.eq(Mux(plan.w2e, self.architecture.rows - 1, self._slices - 1)),
        ]
        step_on = [cursor.step.eq(1), cursor.settle.eq(1), cursor.reset.eq(1)]
        next_line = [cursor.back.eq(1), cursor.deeper.eq(1)]
        with m.If(write):
            with m.If(plan.w2e & ~plan.turn):
                # Row by row the words of one tap, then those of the next.
                with m.If(mark.end1):
                    m.d.comb += [*next_line, cursor.note.eq(1)]
                with m.Elif(mark.end0):
                    m.d.comb += [cursor.step.eq(1), cursor.rise.eq(1)]
                with m.Else():
                    m.d.comb += cursor.deeper.eq(1)
            with m.Elif(plan.w2e):
                # A word for each of 16 rows, along the walk; then the next 16 rows.
                with m.If(~turn.full):
                    m.d.comb += cursor.step.eq(1)
                with m.Elif(mark.end0):
                    m.d.comb += step_on
                with m.Else():
                    m.d.comb += next_line
            with m.Elif(~final):
                m.d.comb += cursor.step.eq(1)
            with m.Elif(plan.across):
                with m.If(mark.end0):
                    m.d.comb += next_line
                with m.Else():
                    m.d.comb += cursor.step.eq(1)
            with m.Elif(mark.end2):
                m.d.comb += step_on
            with m.Else():
                m.d.comb += next_line
        return cursor

    def _write(
        self, m: Module, plan: Signal, turn: LoadTurn, cursor: LoadCursor, write: Signal,
        weights: Signal, part: Signal,
    ) -> Signal:
        """The output registers; returns whether a write is suppressed as it lies outside."""
        w2e_words, n2s_words = self.architecture.w2e_words, self.architecture.n2s_words
        inside, row, columns = Signal(), Signal(), Signal(self._slices)
        chosen = Signal(_WEIGHTS.size // self._steps, reset_less=True)
        m.d.comb += [
            inside.eq(cursor.address < Mux(plan.w2e, w2e_words, n2s_words)),
            row.eq(write & inside & plan.w2e),
            columns.eq((write & inside & plan.n2s) << cursor.unit),
        ]
        m.d.sync += [
            self.w2e_en.eq(row << cursor.unit),
            self.w2e_address.eq(cursor.address),
            self.w2e_data.eq(turn.placed),
            self.n2s_en.eq(Cat(
                columns[number // LANES] for number in range(self.architecture.cols)
            )),
            self.n2s_address.eq(cursor.address),
            chosen.eq(weights.as_value().word_select(part, len(chosen))),
        ]
        m.d.comb += self.n2s_data.eq(Cat(chosen for _ in range(self._slices)))
        return write & ~inside
