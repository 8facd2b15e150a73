"""The sequencer of the vector engine: instructions in, one line after another out."""

from __future__ import annotations

from collections.abc import Callable

from amaranth.hdl import Array, Const, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import Architecture
from rtl.chunk import LANES
from rtl.error_codes import ErrorCode
from rtl.fp.format import BINARY32
from rtl.instruction import WORD_BITS
from rtl.isa import LINES, PRUNE, VECTOR, VECTORS, Source, VectorOp
from rtl.units import ERROR_BITS, SCALAR_VALUES
from rtl.vector_drain import WALK
from rtl.vector_lane import Path, Pick
from rtl.vector_timing import REDUCTIONS, VectorTiming

__all__ = ["LINE_ORDER", "PACK_ORDER", "VectorIssue"]

LINE_ORDER = data.StructLayout({
    "valid": 1, "last": 1, "write": 1, "fault": 1, "prune": 1, "long": 1, "drain": 1,
    "subtract": 1, "root": 1, "pick": 3, "path": 2, "relu": 1, "watch": 1,
    "register": range(VECTORS), "line": range(LINES),
})
"""What goes beside a line through the lanes. ``last``: of its instruction; ``write``: the result
goes to ``line`` of ``register``; ``fault``: an access of the instruction was out of range."""

PACK_ORDER = data.StructLayout({"start": 1, "slot": 1, "chunks": 3, "n": 4, "m_log2": 3})
"""A PRUNE: all but ``start`` is constant while it is under way."""


class VectorIssue(Component):
    """Decides in each cycle which line goes, by the rules of :class:`VectorTiming`.

    The first line goes one cycle after its instruction was taken, then one every
    :meth:`VectorTiming.beats` cycles. Outputs hold for the cycle of the issue.

    Members
    -------
    valid, ready, word: In(1), Out(1), In(256), instructions as in :func:`rtl.units.unit_port`.
    scalars: In, :data:`rtl.units.SCALAR_VALUES`.
    order: Out, :data:`LINE_ORDER`.
    a_en, a_register, a_line: Out, Out, Out, operand a from a register.
    b_en, b_register, b_line: Out, Out, Out, operand b from a register, else ``constant``.
    constant: Out(32), operand b of all lanes.
    walk: Out, :data:`rtl.vector_drain.WALK`, operand a from the result buffers.
    bad: In(1), the beat under way is beyond their end.
    pack: Out, :data:`PACK_ORDER`.
    stored: In(1), all chunks of the PRUNE under way are in their slot.
    clear: Out(1), a CLEAR.
    finish: Out(1), an instruction that wrote no lines is complete.
    error: Out(4), with ``finish``, its :class:`rtl.error_codes.ErrorCode`.
    """

    def __init__(self, architecture: Architecture) -> None:
        self._timing = VectorTiming(architecture)
        self._beats = architecture.line_steps
        register, line = Out(range(VECTORS)), Out(range(LINES))
        super().__init__({
            "valid": In(1), "ready": Out(1), "word": In(WORD_BITS),
            "scalars": In(SCALAR_VALUES),
            "order": Out(LINE_ORDER),
            "a_en": Out(1), "a_register": register, "a_line": line,
            "b_en": Out(1), "b_register": register, "b_line": line,
            "constant": Out(32),
            "walk": Out(WALK), "bad": In(1),
            "pack": Out(PACK_ORDER), "stored": In(1),
            "clear": Out(1), "finish": Out(1), "error": Out(ERROR_BITS),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        held = Signal(WORD_BITS, reset_less=True)
        vector, prune = data.View(VECTOR.layout, held), data.View(PRUNE.layout, held)

        # What kind of instruction it is.
        is_vector, is_prune, reduces, repeats, long, walks = (
            Signal(name=name)
            for name in ("is_vector", "is_prune", "reduces", "repeats", "long", "walks")
        )
        line, count = Signal(range(LINES)), Signal(range(LINES + 1))
        refused = Signal(ERROR_BITS)
        m.d.comb += [
            is_vector.eq(vector.opcode == VECTOR.opcode),
            is_prune.eq(vector.opcode == PRUNE.opcode),
            reduces.eq(is_vector & vector.op.matches(*map(int, REDUCTIONS))),
            repeats.eq(
                is_vector & ~reduces & (vector.source == Source.VECTOR) & (vector.period != 0)
            ),
            long.eq(is_vector & (self.order.path == Path.DIVIDE)),
            walks.eq(is_vector & vector.drain),
            line.eq(Mux(is_prune, prune.line, vector.line)),
            count.eq(Mux(is_prune, prune.chunks * LANES, vector.lines)),
        ]
        rereads = repeats & (vector.b == vector.dest) & (line < vector.period)
        with m.If(is_prune & (prune.n << 1 > (1 << prune.m_log2))):
            m.d.comb += refused.eq(ErrorCode.FIELD)
        with m.Elif((is_vector | is_prune) & (line + count > LINES)):
            m.d.comb += refused.eq(ErrorCode.RANGE)
        with m.Elif((reduces & (vector.period == 0)) | rereads):
            m.d.comb += refused.eq(ErrorCode.FIELD)

        # Where it stands: line number, the same modulo ``period``, beat of the line.
        number, turn = Signal(range(LINES)), Signal(range(LINES))
        beat = Signal(range(max(2, self._beats)))
        active, packing = Signal(), Signal()
        take, leave, goes, first_beat, opens, last, step, issue, act = (
            Signal(name=name) for name in ("take", "leave", "goes", "first_beat", "opens", "last",
                                           "step", "issue", "act")
        )
        next_line, quiet = self._hazards(
            m, begins=step & first_beat & opens, issue=issue, long=long, line=line,
            first=number == 0, opens=opens,
            leads=is_vector & ~reduces & ~(walks & (self._beats > 1)), trails=is_vector,
        )
        m.d.comb += [
            self.ready.eq(~active | leave),
            take.eq(self.valid & self.ready),
            goes.eq(active & (is_vector | is_prune) & (refused == ErrorCode.NONE)),
            first_beat.eq(beat == 0),
            opens.eq((number == 0) | (reduces & (turn == 0))),
            last.eq(number + 1 == count),
            step.eq(goes & ~packing & (next_line | ~first_beat)),
            issue.eq(step & (~walks | (beat == self._beats - 1))),
            act.eq(active & ~goes & quiet),
            self.finish.eq(act | (packing & self.stored)),
            leave.eq(self.finish | (issue & last & ~is_prune)),
        ]
        with m.If(take):
            m.d.sync += held.eq(self.word)
        with m.If(take | leave):
            m.d.sync += [
                active.eq(take), packing.eq(0), number.eq(0), turn.eq(0), beat.eq(0),
            ]
        with m.Elif(issue):
            m.d.sync += [
                packing.eq(last), number.eq(number + 1), beat.eq(0),
                turn.eq(Mux(turn + 1 == vector.period, 0, turn + 1)),
            ]
        with m.Elif(step):
            m.d.sync += beat.eq(beat + 1)

        starts = data.View(VECTOR.layout, self.word)
        m.d.comb += [
            self.walk.load.eq(take),
            self.walk.c_base.eq(starts.c_base),
            self.walk.c_stride.eq(starts.c_stride),
            self.walk.run.eq(vector.run),
            self.walk.step.eq(step & walks),
            self.walk.issue.eq(issue),
            self.pack.start.eq(issue & is_prune & (number == 0)),
            self.pack.slot.eq(prune.slot),
            self.pack.chunks.eq(prune.chunks),
            self.pack.n.eq(prune.n),
            self.pack.m_log2.eq(prune.m_log2),
            self.clear.eq(act & ~is_vector & ~is_prune),
            self.error.eq(refused),
        ]
        first_round = Signal()
        m.d.comb += [
            first_round.eq(number == turn),
            self.order.valid.eq(issue),
            self.order.last.eq(last & ~is_prune),
            self.order.prune.eq(is_prune),
            self.order.long.eq(long),
            # Of a reduction only the values that stay count.
            self.order.watch.eq(vector.watch & (~reduces | (number + vector.period >= count))),
            self.order.register.eq(vector.dest),
            self.order.line.eq(Mux(reduces, turn, self.a_line)),
            self.a_en.eq(issue & ~walks),
            self.a_register.eq(Mux(is_prune, prune.a, vector.a)),
            self.a_line.eq(line + number),
            self.b_line.eq(Mux(reduces | repeats, turn, self.a_line)),
        ]
        self._operation(m, vector, reduces)
        self._operand_b(m, vector, issue & is_vector, reduces, first_round)
        self._faults(m, take, step & walks & self.bad, issue, is_vector)
        return m

    def _hazards(
        self, m: Module, *, begins: Value, issue: Signal, long: Signal, line: Signal, first: Value,
        opens: Signal, leads: Value, trails: Signal,
    ) -> tuple[Signal, Signal]:
        """Whether the next line may go, and whether all lines issued are in the registers.

        One counter runs from the first line of an instruction or round, one from the last line.
        """
        short_depth, long_depth = map(self._timing.depth, (VectorOp.ADD, VectorOp.DIV))
        since_first, since_last = (
            Signal(range(long_depth), name=name) for name in ("since_first", "since_last")
        )
        before_line = Signal.like(line, reset_less=True)
        before_leads, before_long = Signal(), Signal()
        follows, settled, quiet, may = (
            Signal(name=name) for name in ("follows", "settled", "quiet", "may")
        )
        wait = Mux(long, long_depth - 1, short_depth - 1)
        m.d.comb += [
            settled.eq(since_first == 0),
            quiet.eq(since_last == 0),
            follows.eq(before_leads & trails & (before_line == line) & (long | ~before_long)),
            may.eq(Mux(first & ~follows, quiet, settled | ~opens)),
        ]
        with m.If(begins):
            m.d.sync += [
                since_first.eq(wait),
                before_line.eq(line), before_leads.eq(leads), before_long.eq(long),
            ]
        with m.Elif(~settled):
            m.d.sync += since_first.eq(since_first - 1)
        with m.If(issue):
            m.d.sync += since_last.eq(wait)
        with m.Elif(~quiet):
            m.d.sync += since_last.eq(since_last - 1)
        return may, quiet

    def _operation(self, m: Module, vector: data.View, reduces: Signal) -> None:
        """What the lanes do."""
        order, op = self.order, vector.op
        m.d.comb += [
            order.drain.eq(vector.drain),
            order.subtract.eq(op == VectorOp.SUB),
            order.root.eq(op == VectorOp.SQRT),
            order.pick.eq(_look_up(Pick.of, op)),
            order.path.eq(_look_up(Path.of, op)),
            order.relu.eq(vector.relu & ~reduces),
        ]

    def _operand_b(
        self, m: Module, vector: data.View, issue: Value, reduces: Signal, first_round: Signal
    ) -> None:
        """From a register, what a reduction holds so far, or the same for all lanes."""
        fresh, from_vector = Signal(), Signal()
        minus_infinity = Const(1 << 31 | BINARY32.infinity, 32)
        m.d.comb += [
            fresh.eq(first_round & ~vector.keep),
            from_vector.eq(vector.source == Source.VECTOR),
            self.b_en.eq(issue & Mux(reduces, ~fresh, from_vector)),
            self.b_register.eq(Mux(reduces, vector.dest, vector.b)),
        ]
        with m.If(reduces):
            m.d.comb += self.constant.eq(Mux(vector.op == VectorOp.PEAK, minus_infinity, 0))
        with m.Elif(vector.source == Source.SCALAR):
            m.d.comb += self.constant.eq(self.scalars[vector.b])
        with m.Else():
            m.d.comb += self.constant.eq(vector.immediate)

    def _faults(
        self, m: Module, take: Signal, bad: Value, issue: Signal, is_vector: Signal
    ) -> None:
        """A line with a bad beat is not written; the instruction's last line tells of it."""
        in_line, before = Signal(), Signal()
        line_bad = Signal()
        m.d.comb += [
            line_bad.eq(in_line | bad),
            self.order.write.eq(is_vector & ~line_bad),
            self.order.fault.eq(before | bad),
        ]
        m.d.sync += [
            in_line.eq(line_bad & ~issue),
            before.eq(self.order.fault & ~take),
        ]


def _look_up(table: Callable[[VectorOp], int], op: Value) -> Value:
    """``table`` of ``op``; the dispatcher lets no undefined operation through."""
    last = max(VectorOp)
    return Array(int(table(VectorOp(min(code, last)))) for code in range(1 << len(op)))[op]
