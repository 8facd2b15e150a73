"""The decoder takes exactly the words that the instruction set defines, proven for all 2^256.

The claim is not the decoder's code over again: the legal values of a field are written as aligned
blocks, each a pattern of its upper bits, and no comparison of magnitudes occurs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import and_, or_

import pytest
from amaranth.hdl import Assert, Module, Signal, Value
from faulty import faulty
from prover import prove, refute

import rtl.decoder
from rtl.decoder import Decoder
from rtl.instruction import Field, Instruction
from rtl.isa import INSTRUCTIONS
from rtl.registers import ErrorCode


def blocks(low: int, high: int) -> Iterator[tuple[int, int]]:
    """``low`` to ``high`` as aligned blocks of a power of two: first value, log2 of the size."""
    while low <= high:
        size = 0
        while low % (2 << size) == 0 and low + (2 << size) - 1 <= high:
            size += 1
        yield low, size
        low += 1 << size


def among(bits: Value, low: int, high: int) -> Value:
    """Whether unsigned ``bits`` are ``low`` to ``high``: their upper bits are those of a block."""
    return reduce(or_, [bits[size:] == first >> size for first, size in blocks(low, high)])


def obeys(bits: Value, field: Field) -> Value:
    """Whether a field has a legal value; negative ones are those with the top bit."""
    if field.low >= 0:
        return among(bits, field.low, field.top)
    return among(bits, 0, field.top) | among(bits, (1 << field.width) + field.low,
                                             (1 << field.width) - 1)


def legal(word: Signal, instruction: Instruction) -> Value:
    """Whether ``word`` is that instruction."""
    offset, rules = 0, [among(word[:8], instruction.opcode, instruction.opcode)]
    for field in instruction.all_fields:
        if field.checked:
            rules.append(obeys(word[offset : offset + field.width], field))
        offset += field.width
    return reduce(and_, rules) & (word[offset:] == 0)


def design(core: Decoder) -> tuple[Module, list[Signal]]:
    """A decoder whose word is free."""
    m = Module()
    m.submodules.decoder = core
    word = Signal(256)
    m.d.comb += core.word.eq(word)
    kinds = [Signal(name=f"legal_{instruction.mnemonic}") for instruction in INSTRUCTIONS]
    for kind, instruction in zip(kinds, INSTRUCTIONS, strict=True):
        m.d.comb += kind.eq(legal(word, instruction))
        m.d.comb += Assert(~kind | (core.unit == instruction.unit))
    opcodes = {instruction.opcode for instruction in INSTRUCTIONS}
    defined = reduce(or_, [among(word[:8], opcode, opcode) for opcode in opcodes])
    m.d.comb += [
        Assert((core.error == ErrorCode.NONE) == reduce(or_, kinds)),
        Assert((core.error == ErrorCode.OPCODE) == ~defined),
        Assert(core.error <= ErrorCode.FIELD),
    ]
    return m, [word]


def test_blocks() -> None:
    """The other way of writing a range, against the range."""
    for low, high in ((1, 8), (0, 4), (1, 10), (3, 3), (1, 64), (0, 11)):
        values = [first + n for first, size in blocks(low, high) for n in range(1 << size)]
        assert values == list(range(low, high + 1))


def test_legal_words_and_no_others() -> None:
    assert prove(*design(Decoder()), depth=1)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("for rule in _broken(field, view)",
         "for rule in _broken(field, view) if field.name != 'chunk_words'"),
        ("yield word[field.name] > field.top",
         "yield word[field.name] > field.top + (field.name == 'period')"),
        ("self.word[instruction.width :].any()", "self.word[instruction.width + 1 :].any()"),
    ],
)
def test_fault_is_found(right: str, wrong: str) -> None:
    """A rule never looked at, one that is one off, a reserved bit let through."""
    broken = faulty(rtl.decoder, right, wrong)
    assert refute(*design(broken.Decoder()), cycles=1)
