"""Words, text and hardware layout of every instruction agree; what is illegal is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtl.errors import ParameterError
from rtl.instruction import HEADER, WORD_BITS, Field, Instruction, Unit
from rtl.isa import (
    INSTRUCTIONS,
    STORE,
    VECTOR,
    IllegalWord,
    assemble,
    by_name,
    decode,
    disassemble,
)
from rtl.registers import ErrorCode

EACH = pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda one: one.mnemonic)
HEADER_BITS = sum(field.width for field in HEADER)


def values(instruction: Instruction) -> st.SearchStrategy[dict[str, int]]:
    """Legal values of all fields but the opcode."""
    return st.fixed_dictionaries({
        field.name: st.sampled_from([field.low, field.default, field.top])
        | st.integers(field.low, field.top)
        for field in instruction.all_fields if field.name != "opcode"
    })


def place(instruction: Instruction, name: str) -> int:
    """Lowest bit of a field."""
    names = [field.name for field in instruction.all_fields]
    return sum(field.width for field in instruction.all_fields[: names.index(name)])


@EACH
@settings(max_examples=40)
@given(drawn=st.data())
def test_round_trips(instruction: Instruction, drawn: st.DataObject) -> None:
    """Word, decoded fields, text and word again; the hardware's layout sees the same fields."""
    fields = drawn.draw(values(instruction))
    word = instruction.encode(**fields)
    assert 0 < word < 1 << WORD_BITS
    decoded = decode(word)
    assert decoded.instruction is instruction
    assert decoded.values == fields
    assert decoded.encode() == word
    assert assemble(disassemble(word)) == word
    hardware = instruction.layout.from_bits(word)
    for name, value in fields.items():
        assert hardware[name] == value
    assert hardware["opcode"] == instruction.opcode
    assert hardware["reserved"] == 0


@EACH
def test_defaults(instruction: Instruction) -> None:
    """Without fields the text is the mnemonic alone, and hexadecimal numbers are read too."""
    word = assemble(instruction.mnemonic)
    assert word == instruction.encode()
    assert disassemble(word) == instruction.mnemonic
    assert assemble(f"{instruction.mnemonic} after_load=0xF") == word | 0xF << 8
    assert by_name(instruction.mnemonic) is instruction


@EACH
@settings(max_examples=20)
@given(drawn=st.data())
def test_reserved_bits(instruction: Instruction, drawn: st.DataObject) -> None:
    """Any bit beyond the fields makes the word illegal, also beyond the word."""
    bit = drawn.draw(st.integers(instruction.width, WORD_BITS + 8))
    word = instruction.encode(**drawn.draw(values(instruction))) | 1 << bit
    with pytest.raises(IllegalWord) as caught:
        decode(word)
    rule = f"bits above {instruction.width} of {instruction.mnemonic} are set"
    assert (caught.value.word, caught.value.code, caught.value.reason) == (
        word, ErrorCode.RESERVED, rule)


def test_undefined_opcodes() -> None:
    """All 256 of them: zero is none, so that cleared memory is no program."""
    known = {instruction.opcode for instruction in INSTRUCTIONS}
    assert 0 not in known
    for opcode in set(range(256)) - known:
        with pytest.raises(IllegalWord, match=f"opcode {opcode:#04x} is undefined$") as caught:
            decode(0x1234500 | opcode)
        assert caught.value.code is ErrorCode.OPCODE


CHECKED = [(one, field) for one in INSTRUCTIONS for field in one.all_fields
           if field.checked and field.name != "opcode"]


@pytest.mark.parametrize(("instruction", "field"), CHECKED,
                         ids=[f"{one.mnemonic}.{field.name}" for one, field in CHECKED])
@settings(max_examples=20)
@given(drawn=st.data())
def test_fields_beyond_their_rule(
    instruction: Instruction, field: Field, drawn: st.DataObject
) -> None:
    """A value that fits but is not legal is refused, whatever the other fields hold."""
    floor = -(1 << (field.width - 1)) if field.signed else 0
    ceiling = floor + (1 << field.width) - 1
    ranges = [(floor, field.low - 1), (field.top + 1, ceiling)]
    value = drawn.draw(st.one_of(
        *(st.integers(low, top) for low, top in ranges if low <= top)))
    word = instruction.encode(**drawn.draw(values(instruction)))
    mask, lowest = (1 << field.width) - 1, place(instruction, field.name)
    word = word & ~(mask << lowest) | (value & mask) << lowest
    with pytest.raises(IllegalWord) as caught:
        decode(word)
    rule = f"{instruction.mnemonic}.{field.name}={value} is not {field.low} to {field.top}"
    assert (caught.value.code, caught.value.reason) == (ErrorCode.FIELD, rule)
    assert str(caught.value) == f"{word:#x} is no instruction: {rule}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stroe a=1", "mnemonic='stroe': must be an instruction; nearest legal value: store"),
        ("qqq", "mnemonic='qqq': must be an instruction"),
        ("store b=1", "store.b=1: no such field"),
        ("store opcode=2", "store.opcode=2: no such field"),
        ("store lines=0", "store.lines=0: must be 1 to 64; nearest legal value: 1"),
        ("store lines=0x41", "store.lines=65: must be 1 to 64; nearest legal value: 64"),
        ("shape step_x=-129", "shape.step_x=-129: must be -128 to 127; nearest legal value: -128"),
        ("store lines=many", "store.lines='many': must be NAME=NUMBER"),
        ("store lines=", "store.lines='lines=': must be NAME=NUMBER"),
        ("store lines", "store.lines='lines': must be NAME=NUMBER"),
    ],
)
def test_text_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        assemble(text)


def test_values_that_are_refused() -> None:
    """The encoder says the same."""
    with pytest.raises(ParameterError) as caught:
        VECTOR.encode(op=12)
    error = caught.value
    assert (error.parameter, error.value, error.nearest) == ("vector.op", 12, 11)
    assert error.rule == "must be 0 to 11"


def test_declarations_that_are_refused() -> None:
    """An instruction wider than a word, or with two fields of one name."""
    rule = f"wide={HEADER_BITS + 240}: must fit 256 bits; nearest legal value: 256"
    with pytest.raises(ParameterError, match=f"^{re.escape(rule)}$"):
        Instruction("wide", 0x7F, Unit.STORE, "", (Field("all", 240, ""),))
    with pytest.raises(ParameterError, match="field names must differ"):
        Instruction("twice", 0x7F, Unit.STORE, "", (Field("a", 1, ""), Field("a", 1, "")))


def test_signed_fields() -> None:
    """Two's complement in the word."""
    word = assemble("shape first_y=-1")
    assert decode(word)["first_y"] == -1
    assert word >> place(by_name("shape"), "first_y") & 0xFFF == 0xFFF
    assert Field("plain", 4, "").checked is False
    assert STORE.fields[1].top == (1 << 32) - 1
