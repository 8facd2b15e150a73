"""The queue of one unit: instructions wait here for their turn and for other units.

**Eight bits are enough.** Instructions are counted modulo 256 for each unit. A wait for the
instructions of a unit up to number ``target`` is judged by ``completed - target`` as a signed
number. It is never below -128, because at most ``LAG`` instructions of a unit are dispatched and
not complete. It is never above 127, because dispatch stalls once about ``LAG`` instructions have
followed one that is still at the head of its queue, and a target is at most 14 before the newest
instruction of its time. For the same reason a target before the first instruction holds.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from rtl.instruction import WORD_BITS, Unit
from rtl.queue import Queue
from rtl.units import unit_port

__all__ = ["COUNTS", "ENTRY", "LAG", "QUEUE_DEPTH", "UNITS", "IssueQueue"]

UNITS = tuple(unit for unit in Unit if unit is not Unit.CONTROL)
"""Units with a queue."""
QUEUE_DEPTH = 8
LAG = 100
"""Dispatch stalls when so many instructions have followed one still at the head of its queue, or
when so many of a unit are dispatched and not complete."""

_COUNT_BITS = 8

COUNTS = data.ArrayLayout(_COUNT_BITS, len(UNITS))
"""A count of instructions for each unit, modulo 256."""

ENTRY = data.StructLayout({
    "word": WORD_BITS, "needed": len(UNITS), "targets": COUNTS, "number": _COUNT_BITS,
})
"""An instruction in a queue: units that it waits for, up to which of their instructions, and its
place in the program modulo 256."""


class IssueQueue(Component):
    """The last ``QUEUE_DEPTH`` instructions of a unit, and the counts of all.

    An instruction is at ``port`` one cycle after it came, or after the ``done`` that it waited
    for. Once offered it stays offered until taken.

    Members
    -------
    clear: In(1), strobe while nothing is under way: a new program begins.
    stop: In(1), offer nothing that has not been offered.
    entry: In, :data:`ENTRY`; its number is that of the newest instruction even if not ``push``.
    push, room: In(1), Out(1), strobe to enter, only if there is room.
    late: Out(1), the head has been here for ``LAG`` instructions.
    dispatched, completed: Out(8), Out(8), this unit's instructions, modulo 256.
    all_completed: In, :data:`COUNTS`, those of all units.
    quiet: Out(1), nothing offered, nothing taken and not complete.
    busy: Out(1), something taken and not complete.
    blocked: Out(1), the head waits for another instruction.
    port: Out :func:`rtl.units.unit_port`.
    """

    def __init__(self) -> None:
        super().__init__({
            "clear": In(1), "stop": In(1),
            "entry": In(ENTRY), "push": In(1), "room": Out(1), "late": Out(1),
            "dispatched": Out(_COUNT_BITS), "completed": Out(_COUNT_BITS),
            "all_completed": In(COUNTS),
            "quiet": Out(1), "busy": Out(1), "blocked": Out(1),
            "port": Out(unit_port()),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.queue = queue = Queue(ENTRY.size, QUEUE_DEPTH)
        head = Signal(ENTRY)
        taken = Signal(_COUNT_BITS)
        offered, waits, take = Signal(), Signal(), Signal()
        margins = [Signal(_COUNT_BITS, name=f"margin_{unit.name.lower()}") for unit in UNITS]
        age, lag = Signal(_COUNT_BITS), Signal(_COUNT_BITS)
        port = self.port
        m.d.comb += [
            queue.clear.eq(self.clear),
            queue.word.eq(self.entry),
            queue.valid.eq(self.push),
            head.eq(queue.head),
            *(margin.eq(self.all_completed[u] - head.targets[u])
              for u, margin in enumerate(margins)),
            waits.eq(Cat(head.needed[u] & margin[-1] for u, margin in enumerate(margins)).any()),
            port.valid.eq(queue.head_valid & ~waits & (~self.stop | offered)),
            port.word.eq(head.word),
            take.eq(port.valid & port.ready),
            queue.head_ready.eq(take),
            lag.eq(self.dispatched - self.completed),
            self.room.eq(queue.ready & (lag < LAG)),
            age.eq(self.entry.number - head.number),
            self.busy.eq(taken != self.completed),
            self.quiet.eq(~self.busy & ~offered),
            self.blocked.eq(queue.head_valid & waits & ~self.stop),
        ]
        m.d.sync += [
            offered.eq(port.valid & ~port.ready),
            # A cycle late, so that it may be one instruction more.
            self.late.eq(queue.head_valid & (age >= LAG)),
        ]
        with m.If(self.clear):
            m.d.sync += [count.eq(0) for count in (self.dispatched, self.completed, taken)]
        with m.Else():
            m.d.sync += [
                self.dispatched.eq(self.dispatched + self.push),
                self.completed.eq(self.completed + port.done),
                taken.eq(taken + take),
            ]
        return m
