"""The corner turn: 16 x 16 blocks in by rows, out by columns, a word a cycle.

Element ``c`` of row ``r`` goes to bank ``(r + c) mod side`` at address ``r``. The elements of a
row and the elements of a column are then all in different banks, so that a rotation on the way in
and one on the way out turn the block. Two halves of each bank take turns: one fills while the other
leaves. A grid of shift registers would need a register a bit and could not let a block out
while the next one stalls half-way in.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, memory
from amaranth.lib.wiring import Component, In, Out
from amaranth.utils import exact_log2

from rtl.chunk import LANES

__all__ = ["CornerTurn"]


class CornerTurn(Component):
    """Streaming transposer of ``side`` x ``side`` blocks of ``width_bits`` elements.

    Word ``j`` of a turned block has element ``j`` of each of the block's words, in their order.
    A word a cycle, without a gap between blocks; a complete block leaves whether or not more words
    come in. First word out ``side + 1`` cycles after the first word in. Two blocks fit in, besides
    the word at the output. ``side`` is a power of two from 2; blocks are always complete.

    Members
    -------
    word: In, ``side`` elements of ``width_bits``.
    valid, ready: In(1), Out(1), of ``word``.
    turned: Out, likewise.
    turned_valid, turned_ready: Out(1), In(1), of ``turned``.
    """

    def __init__(self, width_bits: int = 16, side: int = LANES) -> None:
        self.width_bits, self.side, self._bits = width_bits, side, exact_log2(side)
        layout = data.ArrayLayout(unsigned(width_bits), side)
        super().__init__(
            {
                "word": In(layout),
                "valid": In(1),
                "ready": Out(1),
                "turned": Out(layout),
                "turned_valid": Out(1),
                "turned_ready": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        side, bits = self.side, self._bits
        # Words in and out so far: the low bits count in the block, the upper two are its number.
        written, read = Signal(bits + 2), Signal(bits + 2)
        row, column = written[:bits], read[:bits]
        blocks = Signal(2)
        write, take = Signal(), Signal()
        m.d.comb += [
            blocks.eq(written[bits:] - read[bits:]),
            self.ready.eq(blocks != 2),
            write.eq(self.valid & self.ready),
            take.eq((blocks != 0) & (~self.turned_valid | self.turned_ready)),
        ]
        entering = self._rotate(m, "entering", self.word.as_value(), row)
        stored = Signal(side * self.width_bits)
        for number in range(side):
            bank = memory.Memory(shape=self.width_bits, depth=2 * side, init=[])
            m.submodules[f"bank_{number}"] = bank
            into, out = bank.write_port(), bank.read_port(domain="comb")
            # This bank has the column's element of the row that many positions back.
            source = Signal(bits, name=f"source_{number}")
            m.d.comb += [
                into.en.eq(write),
                into.addr.eq(written[: bits + 1]),
                into.data.eq(entering.word_select(number, self.width_bits)),
                source.eq(number - column),
                out.addr.eq(Cat(source, read[bits])),
                stored.word_select(number, self.width_bits).eq(out.data),
            ]
        # Back by as much as the column's row 0 went forward: one position a column.
        back = Signal(bits)
        m.d.comb += back.eq(-column)
        leaving = self._rotate(m, "leaving", stored, back)
        word = Signal(side * self.width_bits, reset_less=True)
        m.d.comb += self.turned.eq(word)
        with m.If(write):
            m.d.sync += written.eq(written + 1)
        with m.If(take):
            m.d.sync += [read.eq(read + 1), word.eq(leaving), self.turned_valid.eq(1)]
        with m.Elif(self.turned_ready):
            m.d.sync += self.turned_valid.eq(0)
        return m

    def _rotate(self, m: Module, name: str, word: Value, lanes: Value) -> Signal:
        """``word`` with each element ``lanes`` positions further up, around the end."""
        for level, doubled in enumerate(lanes):
            rotated = Signal(len(word), name=f"{name}_{level}")
            m.d.comb += rotated.eq(
                Mux(doubled, word.rotate_left(self.width_bits << level), word)
            )
            word = rotated
        return word
