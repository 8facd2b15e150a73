"""The decoder: which unit a word is for, or why it is no instruction.

Hardware of :func:`rtl.isa.decode`, generated from the same declarations.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from rtl.instruction import WORD_BITS, Field, Unit
from rtl.isa import INSTRUCTIONS
from rtl.registers import ErrorCode
from rtl.units import ERROR_BITS

__all__ = ["Decoder"]


class Decoder(Component):
    """Legality check of a word, combinational.

    The first rule that a word breaks counts: opcode, reserved bits, fields. ``unit`` means nothing
    unless ``error`` is ``NONE``.

    Members
    -------
    word: In(256), any word.
    error: Out, :class:`rtl.registers.ErrorCode`: NONE, OPCODE, RESERVED or FIELD.
    unit: Out, :class:`rtl.instruction.Unit` that executes the instruction.
    """

    def __init__(self) -> None:
        super().__init__({
            "word": In(WORD_BITS), "error": Out(ERROR_BITS), "unit": Out(range(len(Unit))),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        named, spilt, outside, units = (list[Value]() for _ in range(4))
        for instruction in INSTRUCTIONS:
            name, view = instruction.mnemonic, data.View(instruction.layout, self.word)
            hit, breaks = Signal(name=f"is_{name}"), Signal(name=f"{name}_outside")
            m.d.comb += [
                hit.eq(self.word[:8] == instruction.opcode),
                breaks.eq(hit & Cat(
                    rule for field in instruction.fields for rule in _broken(field, view)
                ).any()),
            ]
            named.append(hit)
            spilt.append(hit & self.word[instruction.width :].any())
            outside.append(breaks)
            units.append(Mux(hit, instruction.unit, 0))
        m.d.comb += self.unit.eq(reduce(or_, units))
        with m.If(~Cat(named).any()):
            m.d.comb += self.error.eq(ErrorCode.OPCODE)
        with m.Elif(Cat(spilt).any()):
            m.d.comb += self.error.eq(ErrorCode.RESERVED)
        with m.Elif(Cat(outside).any()):
            m.d.comb += self.error.eq(ErrorCode.FIELD)
        return m


def _broken(field: Field, word: data.View) -> Iterator[Value]:
    """Comparisons of a field with its bounds, where a value beyond them would fit."""
    least = -(1 << (field.width - 1)) if field.signed else 0
    if field.low > least:
        yield word[field.name] < field.low
    if field.top < least + (1 << field.width) - 1:
        yield word[field.name] > field.top
