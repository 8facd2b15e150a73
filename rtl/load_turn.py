"""The way of the words through the load unit: straight on, or through the corner turn."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import Architecture
from rtl.chunk import LANES
from rtl.corner_turn import CornerTurn
from rtl.load_decode import MARK
from rtl.units import MEMORY_WORD

__all__ = ["LoadTurn"]

_BLOCKS = 4
"""More than the corner turn holds, counting the block whose last word is at its output."""


class LoadTurn(Component):
    """Words whose mark says so are turned in blocks of 16; all others pass in the same cycle.

    Turned words of the next instruction gather while those of the last one leave. The marks of a
    block are those of its last word; they come out with the last of the turned words.

    Members
    -------
    word, mark: In(256), In, :data:`rtl.load_decode.MARK`.
    valid, ready: In(1), Out(1), of ``word``.
    turn: In(1), which kind of word is wanted now.
    placed, placed_mark: Out(256), Out, the word and its marks.
    placed_valid, placed_ready: Out(1), In(1), of ``placed``.
    full: Out(1), ``placed`` is the last word of a turned block, or is not turned.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "word": In(MEMORY_WORD),
                "mark": In(MARK),
                "valid": In(1),
                "ready": Out(1),
                "turn": In(1),
                "placed": Out(MEMORY_WORD),
                "placed_mark": Out(MARK),
                "placed_valid": Out(1),
                "placed_ready": In(1),
                "full": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.corner = corner = CornerTurn()
        m.submodules.marks = marks = SyncFIFO(width=MARK.size, depth=_BLOCKS)
        gathered, left = Signal(range(LANES)), Signal(range(LANES))
        m.d.comb += [
            corner.word.eq(self.word),
            corner.valid.eq(self.valid & self.mark.turn),
            corner.turned_ready.eq(self.turn & self.placed_ready),
            marks.w_data.eq(self.mark),
            marks.w_en.eq(corner.valid & corner.ready & (gathered == LANES - 1)),
            marks.r_en.eq(corner.turned_valid & corner.turned_ready & self.full),
            self.ready.eq(Mux(self.mark.turn, corner.ready, ~self.turn & self.placed_ready)),
        ]
        with m.If(self.turn):
            m.d.comb += [
                self.placed.eq(corner.turned),
                self.placed_valid.eq(corner.turned_valid),
                self.full.eq(left == LANES - 1),
                self.placed_mark.eq(Mux(self.full, marks.r_data, 0)),
            ]
        with m.Else():
            m.d.comb += [
                self.placed.eq(self.word),
                self.placed_valid.eq(self.valid & ~self.mark.turn),
                self.full.eq(1),
                self.placed_mark.eq(self.mark),
            ]
        with m.If(corner.valid & corner.ready):
            m.d.sync += gathered.eq(gathered + 1)
        with m.If(corner.turned_valid & corner.turned_ready):
            m.d.sync += left.eq(left + 1)
        return m
