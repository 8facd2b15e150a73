"""A queue of words between two blocks: first in, first out, and cleared on demand."""

from __future__ import annotations

from amaranth.hdl import Module, ResetInserter
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import Component, In, Out

from rtl.errors import ParameterError

__all__ = ["Queue"]


class Queue(Component):
    """``depth`` words of ``width`` bits in distributed memory, with valid/ready on both sides.

    A word a cycle; a word is at the head one cycle after it came in if the queue was empty.
    ``clear`` empties the queue; a word that comes in during the same cycle is lost with the rest.

    Members
    -------
    clear: In(1), forget all words.
    word, valid, ready: In, In(1), Out(1), words in.
    head, head_valid, head_ready: Out, Out(1), In(1), words out.
    """

    def __init__(self, width: int = 8, depth: int = 8) -> None:
        for name, value in (("width", width), ("depth", depth)):
            if value < 1:
                raise ParameterError(name, value, "must be at least 1", 1)
        self.width, self.depth = width, depth
        super().__init__(
            {
                "clear": In(1),
                "word": In(width), "valid": In(1), "ready": Out(1),
                "head": Out(width), "head_valid": Out(1), "head_ready": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        fifo = SyncFIFO(width=self.width, depth=self.depth)
        m.submodules.fifo = ResetInserter(self.clear)(fifo)
        m.d.comb += [
            fifo.w_data.eq(self.word), fifo.w_en.eq(self.valid), self.ready.eq(fifo.w_rdy),
            self.head.eq(fifo.r_data), self.head_valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.head_ready),
        ]
        return m
