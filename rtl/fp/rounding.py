"""The last step of the FP32 units of the vector engine: round to nearest even and pack.

One definition for multiplication, division and square root, so that they cannot differ in it.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value

from rtl.fp.format import BINARY32

__all__ = ["DROP", "kind_of", "round_and_pack"]

DROP = 25
"""Moving a 24-bit significand down so far or further leaves nothing but the sticky bit."""


def kind_of(*, zero: Value, infinite: Value, nan: Value) -> Value:
    """Two bits that tell a result apart: 0 finite, 1 zero, 2 infinite, 3 NaN.

    NaN wins; the caller sees to it that zero and infinite exclude each other otherwise.
    """
    return Cat(zero | nan, infinite | nan)


def round_and_pack(
    m: Module, *, sign: Value, kind: Value, base: Value, significand: Value, guard: Value,
    sticky: Value,
) -> Signal:
    """Bits of a rounded binary32, in combinational logic.

    Parameters
    ----------
    kind: as :func:`kind_of` gives it; the rest matters for a finite result only.
    base: 9 bits: the exponent field less the hidden one, which adds to it; 0 for a subnormal.
    significand: 24 bits, the hidden one on top.
    guard, sticky: the bit below, and whether anything but zeros stands below that.
    """
    up = Signal(name="round_up")
    rounded = Signal(32, name="rounded")
    magnitude = Signal(31, name="rounded_magnitude")
    packed = Signal(32, name="packed")
    infinity = Const(BINARY32.infinity, 31)
    # The hidden one and the carry out of the fraction both land in the exponent, also into Inf.
    m.d.comb += [
        up.eq(guard & (sticky | significand[0])),
        rounded.eq(Cat(Const(0, BINARY32.fraction_bits), base) + significand + up),
        magnitude.eq(Mux(rounded >= BINARY32.infinity, infinity, rounded[:31])),
        packed.eq(
            Mux(
                kind[1],
                Mux(kind[0], Const(BINARY32.nan, 32), Cat(infinity, sign)),
                Mux(kind[0], Cat(Const(0, 31), sign), Cat(magnitude, sign)),
            )
        ),
    ]
    return packed
