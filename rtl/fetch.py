"""The fetch unit: reads the program ahead of the dispatcher.

A burst is asked for only when the FIFO has room for all of it, so that its beats are taken as soon
as they come: they never stand in the way of the data of the loader, which shares the bus.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import Architecture
from rtl.axi import BOUNDARY, read_client
from rtl.instruction import WORD_BITS
from rtl.queue import Queue

__all__ = ["BURST", "DEPTH", "Fetch", "FetchTiming", "longest_burst"]

BURST = 8
"""Longest burst in beats, where the architecture allows it."""
DEPTH = 2 * BURST
"""Beats that fit the FIFO: one burst arrives while the other is worked off."""


@dataclass(frozen=True)
class FetchTiming:
    """Latencies of the fetch unit in clock cycles."""

    request: int = 2
    """From ``start`` to ``ar_valid``."""
    deliver: int = 1
    """From a beat on the bus to its first instruction, with the FIFO empty."""
    stop: int = 1
    """From ``stop`` to ``idle`` when no beat is outstanding."""


def longest_burst(architecture: Architecture) -> int:
    """Beats of a burst: a power of two, so that one at its multiples never crosses 4 KB."""
    return 1 << (min(BURST, architecture.burst_beats).bit_length() - 1)


class Fetch(Component):
    """Program words in order from address ``program`` on, an instruction a cycle.

    Latencies are those of :class:`FetchTiming`; ``DEPTH`` beats are asked for ahead. A bus error is
    kept with the words of its beat and appears as ``failed`` when they do, if ever. After ``stop``
    beats on their way are dropped, and ``idle`` tells when the last one is in.

    Members
    -------
    start: In(1), strobe while idle: begin at ``program``.
    program: In(64), byte address, a multiple of a beat.
    stop: In(1), forget the program; keep it up until idle.
    idle: Out(1), no program, and no beat outstanding.
    word, failed: Out(256), Out(1), an instruction, or that the bus had an error instead of it.
    valid, ready: Out(1), In(1), of ``word`` and ``failed``.
    ar_valid, ar_ready: Out(1), In(1), of the burst asked for.
    ar_address: Out(64), its byte address.
    ar_length: Out(8), its beats less one.
    r_valid, r_ready: In(1), Out(1), of a beat; ``r_ready`` is always 1.
    r_data: In, a beat.
    r_error: In(2), RRESP.
    r_last: In(1), last beat of a burst; beats are counted instead.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "start": In(1), "program": In(64), "stop": In(1), "idle": Out(1),
                "word": Out(WORD_BITS), "failed": Out(1), "valid": Out(1), "ready": In(1),
                **read_client(architecture).members,
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        active = Signal()
        room = Signal(range(DEPTH + 1))
        outstanding = Signal(range(DEPTH + 1))
        burst, beats = self._request(m, active, room)
        popped = self._deliver(m)
        m.d.comb += [
            self.r_ready.eq(1),
            self.idle.eq(~active & ~self.ar_valid & (outstanding == 0)),
        ]
        asked = Mux(burst, beats, 0)
        m.d.sync += [
            room.eq(room - asked + popped),
            outstanding.eq(outstanding + asked - self.r_valid),
        ]
        with m.If(self.start):
            m.d.sync += [active.eq(1), room.eq(DEPTH)]
        with m.Elif(self.stop):
            m.d.sync += active.eq(0)
        return m

    def _request(self, m: Module, active: Signal, room: Signal) -> tuple[Value, Value]:
        """Ask for bursts; returns the strobe of a new one, and its beats."""
        low = (self.architecture.bus_bytes - 1).bit_length()
        beat = Signal(64 - low)
        longest = longest_burst(self.architecture)
        within = (longest - 1).bit_length()
        beats = Signal(range(longest + 1))
        burst = Signal()
        m.d.comb += [
            beats.eq(longest - beat[:within]),
            burst.eq(active & ~self.stop & ~self.ar_valid & (room >= beats)),
        ]
        with m.If(self.start):
            m.d.sync += beat.eq(self.program[low:])
        with m.Elif(burst):
            m.d.sync += [
                self.ar_valid.eq(1),
                self.ar_address[low:].eq(beat),
                self.ar_length.eq(beats - 1),
                beat.eq(Cat(Const(0, within), beat[within:] + 1)),
            ]
        with m.Elif(self.ar_ready):
            m.d.sync += self.ar_valid.eq(0)
        return burst, beats

    def _deliver(self, m: Module) -> Value:
        """Keep the beats that come, and cut them into words; returns the strobe of a beat done."""
        width = 8 * self.architecture.bus_bytes
        m.submodules.beats = queue = Queue(width + 1, DEPTH)
        words = width // WORD_BITS
        place = Signal(range(max(2, words)))
        last = Signal()
        popped = Signal()
        m.d.comb += [
            queue.clear.eq(self.stop),
            queue.word.eq(Cat(self.r_data, self.r_error[1])),
            queue.valid.eq(self.r_valid),
            self.word.eq(queue.head[:width].word_select(place, WORD_BITS)),
            self.failed.eq(queue.head[width]),
            self.valid.eq(queue.head_valid),
            last.eq(place == words - 1),
            popped.eq(self.valid & self.ready & last),
            queue.head_ready.eq(popped),
        ]
        with m.If(self.start):
            m.d.sync += place.eq(0)
        with m.Elif(self.valid & self.ready):
            m.d.sync += place.eq(Mux(last, 0, place + 1))
        return popped


if BOUNDARY % (BURST * 128):
    raise AssertionError("an aligned burst of the widest bus would cross 4 KB")
