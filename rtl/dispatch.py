"""The dispatcher: instructions in program order into the queues of the four units.

**No program can deadlock.** A wait names instructions ahead of its own in the program, and a unit
takes its instructions in program order. So of all instructions that are dispatched and not
complete, the first in the program waits for nothing: it is at the head of its queue or in its unit,
and a unit finishes what it took. Each completion makes another one the first. Dispatch itself
stalls only for instructions that are already dispatched (a full queue, a lag, or a CONTROL
instruction, which waits for all of them), and those complete without it.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from rtl.architecture import Architecture
from rtl.axi import read_client
from rtl.chunk import WORD_BYTES
from rtl.decoder import Decoder
from rtl.fetch import Fetch, FetchTiming
from rtl.instruction import WORD_BITS, Unit
from rtl.isa import END, HOST
from rtl.issue import ENTRY, UNITS, IssueQueue
from rtl.netlist import place
from rtl.registers import ErrorCode
from rtl.units import BASE_ADDRESSES, ERROR_BITS, unit_port

__all__ = ["DISPATCH_EVENTS", "Dispatch", "DispatchTiming"]

_NAMES = tuple(unit.name.lower() for unit in UNITS)

DISPATCH_EVENTS = data.StructLayout({
    "instructions": 1, **{f"{name}_busy": 1 for name in _NAMES},
    **{f"{name}_wait": 1 for name in _NAMES},
})
"""What the counters of these names count, cycle by cycle."""


@dataclass(frozen=True)
class DispatchTiming:
    """Latencies of the dispatcher in clock cycles; an instruction a cycle goes through it."""

    decode: int = 1
    """From the fetch unit's ``valid`` to the checked instruction in hand."""
    queue: int = 1
    """From there to ``valid`` at the unit, if its queue is empty and it waits for nothing."""
    wake: int = 1
    """From ``done`` to ``valid`` of an instruction that waited for it, or to the CONTROL
    instruction in hand that did."""
    stop: int = 1
    """From END, or an error, to the stop of the fetch unit."""

    @property
    def fetch(self) -> FetchTiming:
        """Those of the fetch unit."""
        return FetchTiming()

    @property
    def begin(self) -> int:
        """From ``start`` to ``ar_valid`` for the first burst of the program."""
        return self.fetch.request

    @property
    def issue(self) -> int:
        """From a beat on the bus to ``valid`` at the unit of its first instruction."""
        return self.fetch.deliver + self.decode + self.queue

    @property
    def fence(self) -> int:
        """From the last ``done`` ahead of a fence to ``valid`` of the instruction behind it."""
        return self.wake + 1 + self.queue

    @property
    def finish(self) -> int:
        """From the last ``done`` to the program's, if no prefetched beat is outstanding."""
        return self.wake + self.stop + self.fetch.stop


class Dispatch(Component):
    """Runs a program: fetches, checks, and hands its instructions to the units.

    Latencies are those of :class:`DispatchTiming`. The first error stops dispatching; what a unit
    has been offered or has taken is still completed, then the program is done and the queues are
    forgotten.

    Members
    -------
    start: In(1), strobe while not running; the program and base registers are looked at then.
    resume: In(1), strobe: go on after a host point.
    program: In(64), byte address of the program.
    bases: In, :data:`rtl.units.BASE_ADDRESSES`, only checked here.
    running: Out(1), from the cycle after ``start`` to that of ``done``.
    waiting: Out(1), at a host point.
    done: Out(1), strobe: the program ended.
    ready_again: Out(1), strobe: another start may come from the next cycle on.
    host: Out(1), strobe: a host point is reached.
    error: Out, :class:`rtl.registers.ErrorCode` of the program, until the next start.
    error_at: Out(32), number of the instruction; of the newest dispatched for a unit's error.
    point: Out(16), number of the newest host point.
    events: Out, :data:`DISPATCH_EVENTS`.
    load, compute, vector, store: Out :func:`rtl.units.unit_port`.
    ar_valid, ar_ready, ar_address, ar_length: Out, In, Out, Out, see :class:`rtl.fetch.Fetch`.
    r_valid, r_ready, r_data, r_error, r_last: In, Out, In, In, In, see there.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "start": In(1), "resume": In(1), "program": In(64), "bases": In(BASE_ADDRESSES),
                "running": Out(1), "waiting": Out(1), "done": Out(1), "ready_again": Out(1),
                "host": Out(1), "error": Out(ERROR_BITS), "error_at": Out(32), "point": Out(16),
                "events": Out(DISPATCH_EVENTS),
                **{name: Out(unit_port()) for name in _NAMES},
                **read_client(architecture).members,
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.fetch = fetch = Fetch(self.architecture)
        m.d.comb += fetch.program.eq(self.program)
        m.d.comb += fetch.program.eq(self.program)
        for name in read_client(self.architecture).members:
            inner, outer = getattr(fetch, name), getattr(self, name)
            inward = fetch.signature.members[name].flow is In
            m.d.comb += inner.eq(outer) if inward else outer.eq(inner)

        # The instruction in hand.
        m.submodules.decoder = decoder = Decoder()
        held, leaves = Signal(), Signal()
        word = Signal(WORD_BITS, reset_less=True)
        code, unit = Signal.like(decoder.error), Signal.like(decoder.unit)
        m.d.comb += [decoder.word.eq(fetch.word), fetch.ready.eq(~held | leaves)]
        with m.If(fetch.ready):
            m.d.sync += [
                held.eq(fetch.valid),
                word.eq(fetch.word),
                code.eq(Mux(fetch.failed, ErrorCode.FETCH, decoder.error)),
                unit.eq(decoder.unit),
            ]
        count = Signal(32)
        m.d.comb += self.events.instructions.eq(leaves)
        with m.If(leaves):
            m.d.sync += count.eq(count + 1)

        push, stop = Signal(), Signal()
        queues = self._queues(m, platform, word, count, stop)
        for u, queue in zip(UNITS, queues, strict=True):
            m.d.comb += queue.push.eq(push & (unit == u))
        all_complete, quiet, room = Signal(), Signal(), Signal()
        m.d.comb += [
            all_complete.eq(Cat(q.dispatched == q.completed for q in queues).all()),
            quiet.eq(Cat(q.quiet for q in queues).all()),
            room.eq(Cat(q.room for q in queues).bit_select(unit, 1)
                    & ~Cat(q.late for q in queues).any()),
        ]
        fault = Signal(ERROR_BITS)
        for name in reversed(_NAMES):
            error = getattr(self, name).error
            with m.If(error.any()):
                m.d.comb += fault.eq(error)
        misaligned = Signal()
        m.d.comb += misaligned.eq(
            self.program[: (self.architecture.bus_bytes - 1).bit_length()].any()
            | Cat(base[: (WORD_BYTES - 1).bit_length()] for base in self.bases).any()
        )

        with m.FSM() as state:
            m.d.comb += stop.eq(~state.ongoing("RUN"))
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += [
                    self.error.eq(Mux(misaligned, ErrorCode.BASE, ErrorCode.NONE)),
                    self.error_at.eq(0), count.eq(0), held.eq(0),
                ]
                m.d.comb += fetch.start.eq(~misaligned)
                m.next = "STOP"
                with m.If(~misaligned):
                    m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += self.running.eq(1)
                with m.If(fault.any() | self.error.any()):
                    m.next = "STOP"
                with m.Elif(held & code.any()):
                    m.d.sync += [self.error.eq(code), self.error_at.eq(count)]
                    m.next = "STOP"
                with m.Elif(held & (unit == Unit.CONTROL)):
                    m.d.comb += leaves.eq(all_complete)
                    with m.If(leaves & (word[:8] == END.opcode)):
                        m.next = "STOP"
                    with m.If(leaves & (word[:8] == HOST.opcode)):
                        m.d.comb += self.host.eq(1)
                        m.d.sync += self.point.eq(data.View(HOST.layout, word).point)
                        m.next = "HOST"
                with m.Elif(held):
                    m.d.comb += [push.eq(room), leaves.eq(room)]
            with m.State("HOST"):
                m.d.comb += [self.running.eq(1), self.waiting.eq(1)]
                with m.If(self.resume):
                    m.next = "RUN"
            with m.State("STOP"):
                m.d.comb += [self.running.eq(1), fetch.stop.eq(1)]
                with m.If(fetch.idle & quiet):
                    m.d.comb += [self.done.eq(1), self.ready_again.eq(1)]
                    m.next = "IDLE"
        with m.If(self.running & (self.error == ErrorCode.NONE) & fault.any()):
            m.d.sync += [self.error.eq(fault), self.error_at.eq(count - 1)]
        return m

    def _queues(
        self, m: Module, platform: object, word: Signal, count: Signal, stop: Signal
    ) -> list[IssueQueue]:
        """The units' queues; ``word`` is the instruction that may enter, ``count`` its number."""
        queues = [IssueQueue() for _ in UNITS]
        entry = Signal(ENTRY)
        header = data.View(END.layout, word)
        m.d.comb += [entry.word.eq(word), entry.number.eq(count)]
        for u, (name, queue) in enumerate(zip(_NAMES, queues, strict=True)):
            place(m, platform, f"{name}_queue", queue, "issue_queue")
            connect(m, queue.port, flipped(getattr(self, name)))
            after = header[f"after_{name}"]
            m.d.comb += [
                entry.needed[u].eq(after.any()),
                entry.targets[u].eq(queue.dispatched + 1 - after),
                queue.entry.eq(entry),
                queue.clear.eq(self.start),
                queue.stop.eq(stop),
                self.events[f"{name}_busy"].eq(queue.busy),
                self.events[f"{name}_wait"].eq(queue.blocked),
                *(other.all_completed[u].eq(queue.completed) for other in queues),
            ]
        return queues
