"""The write DMA: gathers words into beats, beats into bursts, and tells when memory has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import Architecture
from rtl.axi import BOUNDARY, INCR, Response, axi_write
from rtl.chunk import WORD_BYTES
from rtl.registers import ErrorCode
from rtl.units import ERROR_BITS, MEMORY_WORD

__all__ = ["WORD_ADDRESS", "Burst", "WriteDma", "WriteTiming"]

WORD_ADDRESS = 64 - (WORD_BYTES.bit_length() - 1)
"""Bits of an absolute word address."""


@dataclass(frozen=True)
class Burst:
    """One burst: byte address of its first beat, beats, and which word (from 0) was its last."""

    address: int
    beats: int
    last_word: int


@dataclass(frozen=True)
class WriteTiming:
    """Which bursts the DMA makes and when, as formulas over the architecture."""

    architecture: Architecture

    outstanding: int = 32
    """Bursts whose address has been offered and whose response has not come, at most."""
    queued: int = 8
    """Closed bursts that wait for the address channel, at most; a power of two."""
    launch: int = 3
    """From the cycle in which a burst's last word is taken to AW and W: register, queue, port."""
    answer: int = 1
    """From the last response to ``done``."""
    blank: int = 2
    """From a blank that is taken to ``done``, if nothing before it is under way."""

    @property
    def beat_words(self) -> int:
        """Words of a beat."""
        return self.architecture.bus_bytes // WORD_BYTES

    @property
    def beats(self) -> int:
        """Depth of the beat queue: one burst leaves while the next one gathers."""
        return max(2 * self.architecture.burst_beats, 8)

    def bursts(self, addresses: Sequence[int]) -> list[Burst]:
        """Golden: the bursts of words at ``addresses``, absolute, flushed after the last one."""
        found: list[Burst] = []
        page = BOUNDARY // self.architecture.bus_bytes
        start = beat = -2
        for number, address in enumerate(addresses):
            here = address // self.beat_words
            follows = (here == beat + 1 and here % page != 0
                       and here - start < self.architecture.burst_beats)
            if here == beat or follows:
                found.pop()
            else:
                start = here
            beat = here
            found.append(Burst(start * self.architecture.bus_bytes, beat - start + 1, number))
        return found

    def last_beat(self, bursts: Sequence[Burst]) -> int:
        """From the cycle in which the first word is taken to that of the last beat.

        Words come one a cycle, memory takes an address and a beat a cycle, and no more bursts than
        :attr:`outstanding` lack their response.
        """
        cycle = 0
        for burst in bursts:
            cycle = max(cycle, burst.last_word + self.launch - 1) + burst.beats
        return cycle


class WriteDma(Component):
    """AXI4 write manager, fed with one word a cycle.

    A word in the same beat as the word before, or in the next, extends the open burst, which
    closes at ``flush``, at any other address, after ``burst_beats`` beats and at 4 KB. AW is
    offered :attr:`WriteTiming.launch` cycles after a burst's last word, its length being known.

    A burst's W beats are offered as soon as its AW is *offered*, not taken, and follow each other
    without a gap; AW waits for W never, B is always taken. So neither a subordinate that waits for
    both channels, nor one that takes either first, can block it. One ID: memory applies the
    bursts in order. Up to :attr:`WriteTiming.outstanding` of them lack their response.

    ``done`` strobes once a ``flush``, in order, :attr:`WriteTiming.answer` cycle after the
    last response to what came before. A ``blank`` is a flush without a word.

    Members
    -------
    address: In(59), absolute address of the word, in words.
    word: In(256), the word.
    flush: In(1), it is the last one of an instruction.
    blank: In(1), there is no word, only a flush.
    valid, ready: In(1), Out(1), of ``address``, ``word``, ``flush`` and ``blank``.
    axi: Out, :func:`rtl.axi.axi_write`.
    done: Out(1), strobe: memory has all words up to the next flush.
    error: Out, strobes :class:`rtl.registers.ErrorCode` the cycle after a bad response.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "address": In(WORD_ADDRESS),
                "word": In(MEMORY_WORD),
                "flush": In(1),
                "blank": In(1),
                "valid": In(1),
                "ready": Out(1),
                "axi": Out(axi_write(architecture)),
                "done": Out(1),
                "error": Out(ERROR_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        timing = WriteTiming(self.architecture)
        words = timing.beat_words
        beat = data.StructLayout({"data": words * MEMORY_WORD, "words": words, "last": 1})
        burst = data.StructLayout({"beat": WORD_ADDRESS - (words - 1).bit_length(), "length": 8})
        # Numbers of bursts count modulo twice what can lie between any two of them.
        number = 1 + (timing.outstanding + timing.queued).bit_length()
        m.submodules.beats = beats = SyncFIFOBuffered(width=beat.size, depth=timing.beats)
        m.submodules.bursts = bursts = SyncFIFO(width=burst.size, depth=timing.queued)
        m.submodules.flushes = flushes = SyncFIFO(width=number, depth=timing.outstanding)
        self._gather(m, data.View(beat, beats.w_data), data.View(burst, bursts.w_data),
                     beats, bursts, flushes)
        self._send(m, data.View(beat, beats.r_data), data.View(burst, bursts.r_data),
                   beats, bursts, flushes)
        return m

    def _gather(
        self, m: Module, beat: data.View, burst: data.View,
        beats: SyncFIFOBuffered, bursts: SyncFIFO, flushes: SyncFIFO,
    ) -> None:
        """The beat under construction: what becomes of it depends on the next word."""
        words = len(beat.words)
        lane_bits = (words - 1).bit_length()
        page_bits = (BOUNDARY // self.architecture.bus_bytes).bit_length() - 1
        held, closing, blank = (Signal(name=name) for name in ("held", "closing", "held_blank"))
        address, start = (Signal.like(burst.beat, name=name, reset_less=True)
                          for name in ("held_beat", "start"))
        present = Signal(words, reset_less=True)
        content = Signal(len(beat.data), reset_less=True)
        count = Signal(range(max(self.architecture.burst_beats, 2)), reset_less=True)

        coming = Signal.like(address, name="coming")
        joins, same_page, same, follows = (
            Signal(name=name) for name in ("joins", "same_page", "same_beat", "follows"))
        room, accept, push = Signal(), Signal(), Signal()
        low, next_low = address[:page_bits], coming[:page_bits]
        m.d.comb += [
            coming.eq(self.address[lane_bits:]),
            joins.eq(held & ~closing & ~self.blank),
            same_page.eq(coming[page_bits:] == address[page_bits:]),
            same.eq(joins & same_page & (next_low == low)),
            follows.eq(joins & same_page & (next_low == low + 1)
                       & (count != self.architecture.burst_beats - 1)),
            room.eq(beats.w_rdy & bursts.w_rdy & flushes.w_rdy),
            self.ready.eq(room),
            accept.eq(self.valid & room),
            push.eq(held & room & (closing | (self.valid & ~same))),
        ]
        with m.If(accept):
            lane = Signal(words)
            m.d.comb += lane.eq(1 << self.address[:lane_bits])
            m.d.sync += [
                held.eq(1), closing.eq(self.flush | self.blank), blank.eq(self.blank),
                address.eq(coming),
                present.eq(Mux(same, present, 0) | lane),
            ]
            for n in range(words):
                with m.If(lane[n]):
                    m.d.sync += content.word_select(n, MEMORY_WORD).eq(self.word)
            with m.If(follows):
                m.d.sync += count.eq(count + 1)
            with m.Elif(~same):
                m.d.sync += [count.eq(0), start.eq(coming)]
        with m.Elif(push):
            m.d.sync += held.eq(0)

        closed = Signal(flushes.width)
        m.d.comb += [
            beat.data.eq(content), beat.words.eq(present), beat.last.eq(~follows),
            burst.beat.eq(start), burst.length.eq(count),
            beats.w_en.eq(push & ~blank),
            bursts.w_en.eq(push & ~blank & ~follows),
            flushes.w_en.eq(push & closing),
            flushes.w_data.eq(closed + ~blank),
        ]
        m.d.sync += closed.eq(closed + bursts.w_en)

    def _send(
        self, m: Module, beat: data.View, burst: data.View,
        beats: SyncFIFOBuffered, bursts: SyncFIFO, flushes: SyncFIFO,
    ) -> None:
        """The three channels. A burst is released to W when its AW is put on the port."""
        axi, limit = self.axi, WriteTiming(self.architecture).outstanding
        in_flight, released = Signal(range(limit + 1)), Signal(range(limit + 1))
        launch, sent = Signal(), Signal()
        m.d.comb += [
            launch.eq(bursts.r_rdy & (~axi.awvalid | axi.awready) & (in_flight != limit)),
            bursts.r_en.eq(launch),
            axi.awid.eq(0),
            axi.awsize.eq(self.architecture.bus_bytes.bit_length() - 1),
            axi.awburst.eq(INCR),
        ]
        with m.If(launch):
            m.d.sync += [
                axi.awvalid.eq(1),
                axi.awaddr.eq(burst.beat << (len(axi.awaddr) - len(burst.beat))),
                axi.awlen.eq(burst.length),
            ]
        with m.Elif(axi.awready):
            m.d.sync += axi.awvalid.eq(0)

        m.d.comb += [
            axi.wvalid.eq(beats.r_rdy & (released != 0)),
            axi.wdata.eq(beat.data),
            axi.wstrb.eq(Cat(word.replicate(WORD_BYTES) for word in beat.words)),
            axi.wlast.eq(beat.last),
            beats.r_en.eq(axi.wvalid & axi.wready),
            sent.eq(beats.r_en & axi.wlast),
        ]
        answered, ahead = Signal(flushes.width), Signal(flushes.width)
        m.d.comb += [
            axi.bready.eq(1),
            ahead.eq(answered - flushes.r_data),
            self.done.eq(flushes.r_rdy & ~ahead[-1]),
            flushes.r_en.eq(self.done),
        ]
        m.d.sync += [
            in_flight.eq(in_flight + launch - axi.bvalid),
            released.eq(released + launch - sent),
            answered.eq(answered + axi.bvalid),
            self.error.eq(ErrorCode.NONE),
        ]
        for response, code in ((Response.SLVERR, ErrorCode.WRITE_SLAVE),
                               (Response.DECERR, ErrorCode.WRITE_DECODE)):
            with m.If(axi.bvalid & (axi.bresp == response)):
                m.d.sync += self.error.eq(code)
