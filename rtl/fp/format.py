"""The two IEEE 754 formats of the datapath, declared once for hardware and golden model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value

__all__ = ["BINARY16", "BINARY32", "FloatFormat", "Unpacked", "leading_zeros"]


@dataclass(frozen=True)
class FloatFormat:
    """An IEEE 754 binary interchange format.

    Members: ``exponent_bits``, ``fraction_bits``; bits are ordered fraction, exponent, sign from
    the least significant end.
    """

    exponent_bits: int
    fraction_bits: int

    @property
    def width(self) -> int:
        """Total number of bits."""
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def bias(self) -> int:
        """Exponent bias."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def max_exponent(self) -> int:
        """The all-ones exponent field of infinities and NaNs."""
        return (1 << self.exponent_bits) - 1

    @property
    def infinity(self) -> int:
        """Bits of +Inf."""
        return self.max_exponent << self.fraction_bits

    @property
    def nan(self) -> int:
        """Bits of the canonical quiet NaN (numerics contract, rule 4)."""
        return self.infinity | 1 << (self.fraction_bits - 1)

    def canonical(self, bits: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.unsignedinteger]:
        """Bits with every NaN replaced by the canonical one."""
        magnitude = bits & bits.dtype.type((1 << (self.width - 1)) - 1)
        return np.where(magnitude > self.infinity, bits.dtype.type(self.nan), bits)

    def unpack(self, m: Module, value: Value, name: str) -> Unpacked:
        """Split ``value`` into named fields and classify it, in combinational logic."""
        return Unpacked(self, m, value, name)


class Unpacked:
    """Fields and classes of one floating-point value.

    Members: ``sign``, ``exponent`` (biased), ``fraction``, ``subnormal`` (exponent field zero, so
    also for zero), ``zero``, ``infinite``, ``nan``.
    """

    def __init__(self, form: FloatFormat, m: Module, value: Value, name: str) -> None:
        end = form.fraction_bits + form.exponent_bits
        self.fraction = Signal(form.fraction_bits, name=f"{name}_fraction")
        self.exponent = Signal(form.exponent_bits, name=f"{name}_exponent")
        self.sign = Signal(name=f"{name}_sign")
        self.subnormal = Signal(name=f"{name}_subnormal")
        self.zero = Signal(name=f"{name}_zero")
        self.infinite = Signal(name=f"{name}_infinite")
        self.nan = Signal(name=f"{name}_nan")
        special = Signal(name=f"{name}_special")
        m.d.comb += [
            self.fraction.eq(value[: form.fraction_bits]),
            self.exponent.eq(value[form.fraction_bits : end]),
            self.sign.eq(value[end]),
            self.subnormal.eq(self.exponent == 0),
            special.eq(self.exponent == form.max_exponent),
            self.zero.eq(self.subnormal & (self.fraction == 0)),
            self.infinite.eq(special & (self.fraction == 0)),
            self.nan.eq(special & (self.fraction != 0)),
        ]


def leading_zeros(m: Module, value: Value, name: str) -> Signal:
    """Count the zeros above the most significant one of ``value`` (its width if all zero).

    A binary search with a named signal a level: Amaranth does not share sub-expressions, so an
    unnamed tree would be emitted many times over.
    """
    width = len(value)
    levels = max(1, (width - 1).bit_length())
    count = Signal(range(width + 1), name=f"{name}_lz")
    # Pad at the bottom with ones, so that an all-zero value counts exactly its width.
    padding = (1 << levels) - width
    rest: Value = Cat(Const((1 << padding) - 1, padding), value) if padding else value
    bits: list[Signal] = []
    for level in reversed(range(levels)):
        half = 1 << level
        upper_zero = Signal(name=f"{name}_lz_bit{level}")
        narrowed = Signal(half, name=f"{name}_lz_rest{level}")
        m.d.comb += [
            upper_zero.eq(rest[half:] == 0),
            narrowed.eq(Mux(upper_zero, rest[:half], rest[half:])),
        ]
        bits.append(upper_zero)
        rest = narrowed
    total = Cat(*reversed(bits))
    m.d.comb += count.eq(total if padding else total + (rest == 0))
    return count


BINARY16 = FloatFormat(exponent_bits=5, fraction_bits=10)
"""IEEE binary16, the operand format."""
BINARY32 = FloatFormat(exponent_bits=8, fraction_bits=23)
"""IEEE binary32, the accumulator format."""
