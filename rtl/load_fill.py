"""Words to lines of vector registers."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import Architecture
from rtl.chunk import LANES
from rtl.fp import Widen
from rtl.isa import LINES, VECTORS
from rtl.netlist import place
from rtl.units import MEMORY_WORD, fill_port

__all__ = ["LoadFill"]


class LoadFill(Component):
    """Lines of a vector register, one after the other: two FP32 words a line, or one FP16 word.

    A line is valid one cycle after its last word; a word a cycle. A line beyond the register is
    dropped.

    Members
    -------
    begin: In(1), begin with ``first`` of ``register``; not in the same cycle as a word.
    register, first: In, In, the vector register and its first line.
    half: In(1), words are FP16 lines.
    word: In(256), low lanes first.
    valid, ready: In(1), Out(1), of ``word``.
    beyond: Out(1), this word would complete a line that does not exist.
    fill: Out, :func:`rtl.units.fill_port`.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "begin": In(1),
                "register": In(range(VECTORS)),
                "first": In(range(LINES)),
                "half": In(1),
                "word": In(MEMORY_WORD),
                "valid": In(1),
                "ready": Out(1),
                "beyond": Out(1),
                "fill": Out(fill_port()),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        fill = self.fill
        line = Signal(range(2 * LINES))
        second, half = Signal(), Signal()
        older, newest = (
            Signal(MEMORY_WORD, name=name, reset_less=True) for name in ("older", "newest")
        )
        accept, complete = Signal(), Signal()
        m.d.comb += [
            self.ready.eq(~fill.valid | fill.ready),
            accept.eq(self.valid & self.ready),
            complete.eq(accept & (self.half | second)),
            self.beyond.eq(complete & (line >= LINES)),
        ]
        with m.If(accept):
            m.d.sync += [
                older.eq(newest), newest.eq(self.word), half.eq(self.half), second.eq(~second),
            ]
        with m.If(self.ready):
            m.d.sync += fill.valid.eq(complete & ~self.beyond)
        with m.If(complete):
            m.d.sync += [fill.register.eq(self.register), fill.line.eq(line), line.eq(line + 1)]
        with m.If(self.begin):
            m.d.sync += [line.eq(self.first), second.eq(0)]

        # The converters keep nothing: while a line waits they see its word again.
        narrow = Signal(MEMORY_WORD)
        m.d.comb += narrow.eq(Mux(accept, self.word, newest))
        pair = Cat(older, newest)
        for lane in range(LANES):
            core = Widen().create()
            place(m, platform, f"widen_{lane}", core, "widen")
            m.d.comb += [
                core.value.eq(narrow.word_select(lane, 16)),
                fill.data[lane].eq(Mux(half, core.result, pair.word_select(lane, 32))),
            ]
        return m
