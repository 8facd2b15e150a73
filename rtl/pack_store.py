"""Pack slots: what SORE makes of a few chunks, kept until the store unit has read it."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import memory
from amaranth.lib.wiring import Component, In, Out

from rtl.units import MEMORY_WORD, pack_port

__all__ = ["AXES", "CHUNKS", "SLOTS", "PackStore"]

AXES = ("ff", "bp")
"""Streams of SORE, in the order of ``axis`` of :func:`rtl.units.pack_port`."""

SLOTS = 2
"""Pack slots: the store unit reads one while the other fills."""

CHUNKS = 4
"""Packed chunks of a slot and axis."""

_WORDS = 16


class PackStore(Component):
    """Writes the two streams of SORE into a pack slot, a memory an axis.

    A word a cycle from each stream, never a wait. A word can be read one cycle after it came;
    ``data`` follows one cycle after its address. ``stored`` rises one cycle after the last word.

    Members
    -------
    start: In(1), forget what was counted: the words that follow are those of ``slot``.
    slot: In(1), pack slot, constant until all is stored.
    chunks: In(3), chunks that come, 1 to ``CHUNKS``, constant until all is stored.
    ff_word, ff_valid, ff_ready, ff_last: In(256), In(1), Out(1), In(1), FF stream of SORE.
    bp_word, bp_valid, bp_ready, bp_last: In(256), In(1), Out(1), In(1), BP stream of SORE.
    stored: Out(1), all chunks of both streams are in memory.
    pack: In :func:`rtl.units.pack_port`, the store unit.
    """

    def __init__(self) -> None:
        ports = {"start": In(1), "slot": In(1), "chunks": In(3)}
        for axis in AXES:
            ports |= {
                f"{axis}_word": In(MEMORY_WORD), f"{axis}_valid": In(1),
                f"{axis}_ready": Out(1), f"{axis}_last": In(1),
            }
        super().__init__(ports | {"stored": Out(1), "pack": In(pack_port())})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        complete, answers = [], []
        for axis in AXES:
            word, valid, ready, last = (
                getattr(self, f"{axis}_{name}") for name in ("word", "valid", "ready", "last")
            )
            store = memory.Memory(shape=MEMORY_WORD, depth=SLOTS * CHUNKS * _WORDS, init=[])
            m.submodules[f"{axis}_store"] = store
            write, read = store.write_port(), store.read_port()
            chunk = Signal(range(CHUNKS + 1), name=f"{axis}_chunk")
            position = Signal(range(_WORDS), name=f"{axis}_position")
            m.d.comb += [
                ready.eq(1),
                write.en.eq(valid),
                write.addr.eq(Cat(position, chunk[:2], self.slot)),
                write.data.eq(word),
                read.en.eq(1),
                read.addr.eq(Cat(self.pack.word, self.pack.chunk, self.pack.slot)),
            ]
            with m.If(self.start):
                m.d.sync += [chunk.eq(0), position.eq(0)]
            with m.Elif(valid):
                m.d.sync += [
                    chunk.eq(chunk + last),
                    position.eq(Mux(last, 0, position + 1)),
                ]
            complete.append(chunk == self.chunks)
            answers.append(read.data)
        axis1 = Signal(reset_less=True)
        m.d.sync += axis1.eq(self.pack.axis)
        m.d.comb += [
            self.stored.eq(complete[0] & complete[1]),
            self.pack.data.eq(Mux(axis1, answers[1], answers[0])),
        ]
        return m
