"""What an instruction is: fields with widths and rules, and everything that follows from them.

An :class:`Instruction` is declared once (:mod:`rtl.isa`); encoder, decoder, assembler text,
hardware layout and legality check, and the reference page come from the declaration.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from rtl.errors import ParameterError

__all__ = ["HEADER", "WORD_BITS", "Field", "Instruction", "Unit"]

WORD_BITS = 256
"""Every instruction is one 256-bit word, two in a beat of a 512-bit bus."""


class Unit(enum.IntEnum):
    """Who executes an instruction; each unit works through its own queue in order."""

    LOAD = 0
    """Memory to the operand buffers and vector registers."""
    COMPUTE = 1
    """The array."""
    VECTOR = 2
    """The vector engine: WUVE, drain arithmetic, SORE."""
    STORE = 3
    """Vector registers and packed chunks to memory."""
    CONTROL = 4
    """The dispatcher itself."""


@dataclass(frozen=True)
class Field:
    """One field of an instruction: ``low`` to ``high`` are the legal values.

    ``high`` is the largest that fits when it is ``None``; ``low`` below zero makes the field
    signed (two's complement).
    """

    name: str
    width: int
    doc: str
    low: int = 0
    high: int | None = None

    @property
    def signed(self) -> bool:
        """Whether the field holds negative values."""
        return self.low < 0

    @property
    def top(self) -> int:
        """Largest legal value."""
        if self.high is not None:
            return self.high
        return (1 << (self.width - self.signed)) - 1

    @property
    def checked(self) -> bool:
        """Whether some value that fits is illegal."""
        floor = -(1 << (self.width - 1)) if self.signed else 0
        return self.low > floor or self.top < (1 << (self.width - self.signed)) - 1

    @property
    def default(self) -> int:
        """What an encoder takes when the field is not given."""
        return max(self.low, 0)

    def check(self, value: int) -> int:
        """``value`` if it is legal; raises :class:`ParameterError` otherwise."""
        if not self.low <= value <= self.top:
            nearest = min(max(value, self.low), self.top)
            raise ParameterError(self.name, value, f"must be {self.low} to {self.top}", nearest)
        return value


def _after(unit: Unit) -> Field:
    return Field(
        f"after_{unit.name.lower()}", 4,
        f"0: no wait. d > 0: wait until all but the last d - 1 {unit.name} instructions ahead of "
        "this one in the program are complete.",
    )


HEADER = (
    Field("opcode", 8, "Which instruction; zero is none."),
    *(_after(unit) for unit in Unit if unit is not Unit.CONTROL),
)
"""Fields that every instruction begins with."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its word is the header, the fields in order, and zeros."""

    mnemonic: str
    opcode: int
    unit: Unit
    action: str
    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = [field.name for field in self.all_fields]
        if len(set(names)) < len(names):
            raise ParameterError(self.mnemonic, names, "field names must differ")
        if self.width > WORD_BITS:
            raise ParameterError(self.mnemonic, self.width, f"must fit {WORD_BITS} bits", WORD_BITS)

    @cached_property
    def all_fields(self) -> tuple[Field, ...]:
        """Header and own fields."""
        return HEADER + self.fields

    @property
    def width(self) -> int:
        """Bits in use; those above are zero."""
        return sum(field.width for field in self.all_fields)

    @cached_property
    def layout(self) -> data.StructLayout:
        """The word as hardware sees it, with the unused bits as ``reserved``."""
        members: dict[str, object] = {
            field.name: signed(field.width) if field.signed else unsigned(field.width)
            for field in self.all_fields
        }
        if self.width < WORD_BITS:
            members["reserved"] = unsigned(WORD_BITS - self.width)
        return data.StructLayout(members)

    def encode(self, **values: int) -> int:
        """The word. Fields not given take 0, or the smallest legal value above it.

        Raises :class:`ParameterError` for an unknown field or a value outside its rule.
        """
        known = {field.name for field in self.all_fields} - {"opcode"}
        for name in values:
            if name not in known:
                raise ParameterError(f"{self.mnemonic}.{name}", values[name], "no such field")
        word, offset = 0, 0
        for field in self.all_fields:
            value = self.opcode if field.name == "opcode" else values.get(field.name, field.default)
            try:
                field.check(value)
            except ParameterError as error:
                raise ParameterError(f"{self.mnemonic}.{field.name}", value, error.rule,
                                     error.nearest) from None
            word |= (value & ((1 << field.width) - 1)) << offset
            offset += field.width
        return word

    def fields_of(self, word: int) -> dict[str, int]:
        """Values of the fields of ``word``, without the opcode; legal or not."""
        values, offset = {}, 0
        for field in self.all_fields:
            raw = word >> offset & ((1 << field.width) - 1)
            if field.signed and raw >> (field.width - 1):
                raw -= 1 << field.width
            values[field.name] = raw
            offset += field.width
        del values["opcode"]
        return values
