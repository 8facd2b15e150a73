"""Words from memory: single word requests become long bursts, and their beats words again.

The requester thinks in words and says nothing about beats. A burst stays open for as long as the
words that follow lie in its last beat or in the next one. What a word needs on its way back (zero
or memory, a new beat or the same, which part of it) waits in a queue of tags.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import Architecture
from rtl.axi import BOUNDARY, read_client
from rtl.chunk import WORD_BYTES
from rtl.registers import ErrorCode
from rtl.units import ERROR_BITS, MEMORY_WORD

__all__ = ["WORD_ADDRESS", "ReadDma", "ReadDmaTiming"]

_WORD_LOG2 = (WORD_BYTES - 1).bit_length()

WORD_ADDRESS = 64 - _WORD_LOG2
"""Bits of the address of a word."""


@dataclass(frozen=True)
class ReadDmaTiming:
    """Cycles of a :class:`ReadDma` and the length of its bursts, as formulas."""

    architecture: Architecture

    back: int = 3
    """From a beat at the port to its first word, if nothing is ahead of it."""

    @property
    def burst_beats(self) -> int:
        """Beats of the longest burst. Two fit the FIFO, so that one arrives while one is used."""
        return min(self.architecture.burst_beats, self.architecture.read_beats // 2,
                   BOUNDARY // self.architecture.bus_bytes)

    def issue(self, words: int) -> int:
        """From the first request to ``ar_valid`` of its burst of ``words`` words, one a cycle."""
        return words + 1


class ReadDma(Component):
    """Word requests in, words out, in order; one a cycle in each direction.

    A burst leaves when it cannot grow: the next word is elsewhere, it is as long as it may get, it
    ends at a 4 KB boundary, or the request came with ``flush``. ``zero`` requests are no accesses
    and leave it open. Beats are asked for only as far as they fit the FIFO, so that ``r_ready``
    never falls. Latencies are those of :class:`ReadDmaTiming`; an error response strobes ``error``
    one cycle later and the word is delivered as it came.

    Members
    -------
    address: In(59), word address (the byte address without its low bits).
    zero: In(1), deliver a zero word instead.
    flush: In(1), nothing that follows extends this burst or uses its last beat again.
    mark: In, ``mark_bits`` bits that go with the word.
    valid, ready: In(1), Out(1), of the request.
    word: Out(256), what is there, or zero.
    word_mark: Out, ``mark`` of its request.
    word_valid, word_ready: Out(1), In(1), of ``word``.
    error: Out(4), an :class:`rtl.registers.ErrorCode`, or 0.
    ar_valid, ar_ready, ar_address, ar_length: Out, In, Out, Out, see :func:`rtl.axi.read_client`.
    r_valid, r_ready, r_data, r_error, r_last: In, Out, In, In, In.
    """

    def __init__(self, architecture: Architecture, mark_bits: int = 1) -> None:
        self.architecture = architecture
        self._per_beat_log2 = (architecture.bus_bytes // WORD_BYTES - 1).bit_length()
        self._tag = data.StructLayout({
            "zero": 1, "fresh": 1, "lane": max(1, self._per_beat_log2), "mark": mark_bits,
        })
        super().__init__(
            {
                "address": In(WORD_ADDRESS),
                "zero": In(1),
                "flush": In(1),
                "mark": In(mark_bits),
                "valid": In(1),
                "ready": Out(1),
                "word": Out(MEMORY_WORD),
                "word_mark": Out(mark_bits),
                "word_valid": Out(1),
                "word_ready": In(1),
                "error": Out(ERROR_BITS),
                **read_client(architecture).members,
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beats = self.architecture.read_beats
        # One more than a power of two: the FIFO's output register holds an entry itself.
        m.submodules.tags = tags = SyncFIFOBuffered(
            width=self._tag.size, depth=(beats << self._per_beat_log2) + 1
        )
        m.submodules.beats = arrived = SyncFIFOBuffered(
            width=8 * self.architecture.bus_bytes, depth=beats + 1
        )
        self._request(m, tags, arrived)
        self._return(m, tags, arrived)
        return m

    def _request(self, m: Module, tags: SyncFIFOBuffered, arrived: SyncFIFOBuffered) -> None:
        """The coalescer, with the burst that is still open."""
        longest = ReadDmaTiming(self.architecture).burst_beats
        shift = self._per_beat_log2
        byte_bits = (self.architecture.bus_bytes - 1).bit_length()
        page_bits = (BOUNDARY - 1).bit_length() - byte_bits
        opened, sealed = Signal(), Signal()
        first, newest, following = (
            Signal(WORD_ADDRESS - shift, name=name, reset_less=True)
            for name in ("first_beat", "newest_beat", "following_beat")
        )
        length = Signal(8, reset_less=True)
        room = Signal(range(self.architecture.read_beats + 1), init=self.architecture.read_beats)

        beat = Signal(WORD_ADDRESS - shift)
        same, extends, elsewhere, send, accept = (
            Signal(name=name) for name in ("same", "extends", "elsewhere", "send", "accept")
        )
        m.d.comb += [
            beat.eq(self.address[shift:]),
            same.eq(opened & ~sealed & (beat == newest)),
            extends.eq(
                opened & ~sealed & (beat == following) & (length != longest - 1)
                & (beat[:page_bits] != 0)
            ),
            elsewhere.eq(~self.zero & ~same & ~extends),
            # With all tags taken nothing can follow, and the oldest may wait for this very burst.
            send.eq(
                opened & (sealed | ~tags.w_rdy | (self.valid & elsewhere))
                & (~self.ar_valid | self.ar_ready) & (room > length)
            ),
            self.ready.eq(tags.w_rdy & (~elsewhere | ~opened | send)),
            accept.eq(self.valid & self.ready),
        ]
        tag = Signal(self._tag)
        m.d.comb += [
            tag.zero.eq(self.zero),
            tag.fresh.eq(~self.zero & ~same),
            tag.lane.eq(self.address[:shift]),
            tag.mark.eq(self.mark),
            tags.w_data.eq(tag),
            tags.w_en.eq(accept),
        ]
        with m.If(send):
            m.d.sync += [
                opened.eq(0),
                self.ar_valid.eq(1),
                self.ar_address.eq(Cat(Const(0, byte_bits), first)),
                self.ar_length.eq(length),
            ]
        with m.Elif(self.ar_ready):
            m.d.sync += self.ar_valid.eq(0)
        with m.If(accept & self.flush):
            m.d.sync += sealed.eq(1)
        with m.If(accept & ~self.zero):
            m.d.sync += [newest.eq(beat), following.eq(beat + 1)]
            with m.If(elsewhere):
                m.d.sync += [opened.eq(1), sealed.eq(self.flush), first.eq(beat), length.eq(0)]
            with m.Elif(extends):
                m.d.sync += length.eq(length + 1)
        m.d.sync += room.eq(room - Mux(send, length + 1, 0) + (arrived.r_en & arrived.r_rdy))

    def _return(self, m: Module, tags: SyncFIFOBuffered, arrived: SyncFIFOBuffered) -> None:
        """Beats to words, as the tags say."""
        m.d.comb += [
            arrived.w_data.eq(self.r_data),
            arrived.w_en.eq(self.r_valid),
            self.r_ready.eq(arrived.w_rdy),
        ]
        m.d.sync += self.error.eq(
            Mux(
                self.r_valid & self.r_ready & self.r_error[1],
                Mux(self.r_error[0], ErrorCode.READ_DECODE, ErrorCode.READ_SLAVE),
                ErrorCode.NONE,
            )
        )
        tag = Signal(self._tag, name="oldest")
        kept = Signal(8 * self.architecture.bus_bytes, reset_less=True)
        beat = Signal.like(kept, name="beat_used")
        advance = Signal()
        m.d.comb += [
            tag.eq(tags.r_data),
            beat.eq(Mux(tag.fresh, arrived.r_data, kept)),
            advance.eq(
                tags.r_rdy & (~tag.fresh | arrived.r_rdy) & (~self.word_valid | self.word_ready)
            ),
            tags.r_en.eq(advance),
            arrived.r_en.eq(advance & tag.fresh),
        ]
        with m.If(advance):
            m.d.sync += [
                self.word_valid.eq(1),
                self.word.eq(Mux(tag.zero, 0, beat.word_select(tag.lane, MEMORY_WORD))),
                self.word_mark.eq(tag.mark),
                kept.eq(beat),
            ]
        with m.Elif(self.word_ready):
            m.d.sync += self.word_valid.eq(0)
