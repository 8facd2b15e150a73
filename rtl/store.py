"""The store unit: vector registers and packed chunks to memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from rtl.architecture import Architecture
from rtl.axi import axi_write
from rtl.chunk import LANES, WORD_BYTES
from rtl.fp import Narrow
from rtl.isa import LINES, STORE, Decoded, StoreSource
from rtl.netlist import place
from rtl.registers import ErrorCode
from rtl.units import BASE_ADDRESSES, MEMORY_WORD, pack_port, take_port, unit_port
from rtl.write_dma import WORD_ADDRESS, WriteDma, WriteTiming

__all__ = ["StoreTiming", "StoreUnit"]

_ITEM = data.StructLayout(
    {"address": WORD_ADDRESS, "word": MEMORY_WORD, "flush": 1, "blank": 1})
"""A word on its way to the DMA."""


@dataclass(frozen=True)
class StoreTiming:
    """Cycles of the store unit, as formulas; cycle 0 is the one in which it takes an instruction.

    They hold while memory takes an address and a beat a cycle and no more bursts than
    :attr:`rtl.write_dma.WriteTiming.outstanding` lack their response.
    """

    architecture: Architecture

    fill: int = 4
    """First word at the DMA: instruction register, read, rounding, queue."""

    @property
    def write(self) -> WriteTiming:
        """Timing of the DMA."""
        return WriteTiming(self.architecture)

    def addresses(self, instruction: Decoded, base: int) -> list[int]:
        """Absolute addresses of the words that ``instruction`` writes, ``base`` in words too."""
        source = instruction["source"]
        if source >= StoreSource.PACKED_FF:
            row = instruction["chunk_words"]
            count = row * instruction["chunks"]
        else:
            width = 2 if source == StoreSource.SINGLE else 1
            row, count = width * instruction["run"], width * instruction["lines"]
        start, pitch = base + instruction["offset"], instruction["pitch"]
        return [start + number // row * pitch + number % row for number in range(count)]

    def issue(self, words: int) -> int:
        """From an instruction of ``words`` words to the next: one word a cycle.

        One that writes nothing takes a cycle too.
        """
        return max(words, 1)

    def first_aw(self, addresses: Sequence[int]) -> int:
        """First AW on the port: its burst's last word is known by then."""
        return self.fill + self.write.bursts(addresses)[0].last_word + self.write.launch

    def cycles(self, addresses: Sequence[int], response: int) -> int:
        """``done``, if memory answers a burst ``response`` cycles after its last beat."""
        if not addresses:
            return self.fill + self.write.blank
        last_beat = self.fill + self.write.last_beat(self.write.bursts(addresses))
        return last_beat + response + self.write.answer


class StoreUnit(Component):
    """Executes ``store``; one word a cycle, also from one instruction to the next.

    An instruction occupies the unit for :meth:`StoreTiming.issue` cycles, then the next is taken;
    its ``done`` follows when memory has answered, :meth:`StoreTiming.cycles`, in order. ``take``
    and ``pack`` show an address in every cycle; what comes back is used or not.

    A guarded store taken while ``nonfinite`` is set writes nothing, and neither does one with lines
    beyond the register's end: RANGE, unless it is skipped anyway. Both complete in order. If a
    bus error comes in the cycle of a RANGE, RANGE is the one reported.

    Members
    -------
    port: In, :func:`rtl.units.unit_port`.
    bases: In, :data:`rtl.units.BASE_ADDRESSES`.
    nonfinite: In(1), the sticky flag.
    take: Out, :func:`rtl.units.take_port`.
    pack: Out, :func:`rtl.units.pack_port`.
    axi: Out, :func:`rtl.axi.axi_write`.
    skipped: Out(1), strobe: a guarded store is skipped.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "port": In(unit_port()),
                "bases": In(BASE_ADDRESSES),
                "nonfinite": In(1),
                "take": Out(take_port()),
                "pack": Out(pack_port()),
                "axi": Out(axi_write(architecture)),
                "skipped": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.dma = dma = WriteDma(self.architecture)
        # A word needs as many cycles to the DMA as there are places, so that it never waits inside.
        places = StoreTiming(self.architecture).fill
        m.submodules.queue = queue = SyncFIFO(width=_ITEM.size, depth=places)
        room = Signal(range(places + 1), init=places)
        issue, taken = Signal(), Signal()
        m.d.sync += room.eq(room + taken - issue)

        beyond, item = self._walk(m, room != 0, issue)
        valid, arriving = self._read(m, platform, issue, item)
        leaving = data.View(_ITEM, queue.r_data)
        m.d.comb += [
            queue.w_en.eq(valid),
            queue.w_data.eq(arriving),
            dma.valid.eq(queue.r_rdy),
            *(getattr(dma, name).eq(getattr(leaving, name)) for name in _ITEM.members),
            taken.eq(queue.r_rdy & dma.ready),
            queue.r_en.eq(taken),
            self.port.done.eq(dma.done),
            self.port.error.eq(Mux(beyond, ErrorCode.RANGE, dma.error)),
        ]
        connect(m, flipped(self.axi), dma.axi)
        return m

    def _walk(self, m: Module, free: Value, issue: Signal) -> tuple[Signal, Signal]:
        """Take instructions and count through their words.

        Returns the strobe of a range error, and address and flags of the word now read.
        """
        port, word = self.port, data.View(STORE.layout, self.port.word)
        packed, single = Signal(), Signal()
        row_words, words = Signal(8), Signal(8)
        skip, beyond, accept = Signal(), Signal(), Signal()
        start = Signal(WORD_ADDRESS)
        m.d.comb += [
            packed.eq(word.source >= StoreSource.PACKED_FF),
            single.eq(word.source == StoreSource.SINGLE),
            row_words.eq(Mux(packed, word.chunk_words, word.run << single)),
            words.eq(Mux(packed, word.chunks * word.chunk_words, word.lines << single)),
            skip.eq(word.guard & self.nonfinite),
            beyond.eq(~skip & ~packed & (word.line + word.lines > LINES)),
            accept.eq(port.valid & port.ready),
            start.eq(self.bases[word.base][-WORD_ADDRESS:] + word.offset),
        ]
        strobe = Signal()
        m.d.sync += [self.skipped.eq(accept & skip), strobe.eq(accept & beyond)]

        busy, blank, wide, last, row_ends = (
            Signal(name=name) for name in ("busy", "blank", "wide", "last", "row_ends"))
        left, row, place = (Signal(8, name=name, reset_less=True)
                            for name in ("left", "row", "place"))
        address, row_address = (Signal(WORD_ADDRESS, name=name, reset_less=True)
                                for name in ("address", "row_address"))
        next_row = Signal(WORD_ADDRESS)
        pitch = Signal(len(word.pitch), reset_less=True)
        source = Signal(StoreSource, reset_less=True)
        m.d.comb += [
            wide.eq(source == StoreSource.SINGLE),
            last.eq(left == 1),
            row_ends.eq(place == row - 1),
            next_row.eq(row_address + pitch),
            issue.eq(busy & free),
            port.ready.eq(~busy | (issue & last)),
            self.pack.word.eq(place),
            self.pack.axis.eq(source == StoreSource.PACKED_BP),
        ]
        with m.If(accept):
            m.d.sync += [
                busy.eq(1), blank.eq(skip | beyond), left.eq(Mux(skip | beyond, 1, words)),
                row.eq(row_words), place.eq(0), address.eq(start), row_address.eq(start),
                pitch.eq(word.pitch), source.eq(word.source),
                self.take.register.eq(word.a), self.take.line.eq(word.line),
                self.pack.slot.eq(word.a), self.pack.chunk.eq(0),
            ]
        with m.Elif(issue):
            m.d.sync += [
                busy.eq(~last), left.eq(left - 1),
                self.take.line.eq(self.take.line + (~wide | place[0])),
            ]
            with m.If(row_ends):
                m.d.sync += [
                    place.eq(0), self.pack.chunk.eq(self.pack.chunk + 1),
                    address.eq(next_row), row_address.eq(next_row),
                ]
            with m.Else():
                m.d.sync += [place.eq(place + 1), address.eq(address + 1)]

        item = Signal(data.StructLayout(
            {"address": WORD_ADDRESS, "flush": 1, "blank": 1, "upper": 1, "source": StoreSource}))
        m.d.comb += [
            item.address.eq(address), item.flush.eq(last), item.blank.eq(blank),
            item.upper.eq(place[0]), item.source.eq(source),
        ]
        return strobe, item

    def _read(
        self, m: Module, platform: object, issue: Signal, item: Signal
    ) -> tuple[Signal, Signal]:
        """What the ports bring a cycle after the address, rounded: valid and :data:`_ITEM`."""
        coming, ready = Signal(), Signal()
        read = Signal.like(item, name="read", reset_less=True)
        rounded = Signal.like(item, name="rounded", reset_less=True)
        plain = Signal(MEMORY_WORD, reset_less=True)
        half = Signal(MEMORY_WORD)
        m.d.sync += [
            coming.eq(issue), read.eq(item),
            ready.eq(coming), rounded.eq(read),
            plain.eq(Mux(
                read.source == StoreSource.SINGLE,
                self.take.data.as_value().word_select(read.upper, MEMORY_WORD),
                self.pack.data,
            )),
        ]
        for lane in range(LANES):
            core = Narrow().create()
            place(m, platform, f"narrow_{lane}", core, "narrow")
            m.d.comb += [
                core.value.eq(self.take.data[lane]),
                half.word_select(lane, 8 * WORD_BYTES // LANES).eq(core.result),
            ]
        arriving = Signal(_ITEM)
        m.d.comb += [
            arriving.address.eq(rounded.address),
            arriving.word.eq(Mux(rounded.source == StoreSource.HALF, half, plain)),
            Cat(arriving.flush, arriving.blank).eq(Cat(rounded.flush, rounded.blank)),
        ]
        return ready, arriving
