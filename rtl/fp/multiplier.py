"""FP16 x FP16 -> FP32, exact.

Two 11-bit significands give 22 bits and exponents from -48 to 31, so the product of any two
finite binary16 values, subnormals included, is a binary32 without rounding (numerics contract,
rule 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib.wiring import Component, In, Out

from rtl.fp.format import BINARY16, BINARY32, Unpacked, leading_zeros

__all__ = ["Multiplier", "MultiplierCore"]

# Both biases removed and the product's added: the sum of two fields plus this is a biased FP32.
_REBIAS = BINARY32.bias - 2 * BINARY16.bias


@dataclass(frozen=True)
class Multiplier:
    """Exact half-precision multiplier: ``compute`` is the golden model, ``create`` the hardware.

    ``latency`` is 2 clock cycles, throughput one product a cycle.
    """

    latency: int = 2

    def compute(
        self, a: npt.NDArray[np.uint16], b: npt.NDArray[np.uint16]
    ) -> npt.NDArray[np.uint32]:
        """Golden: bits of the FP32 products of two arrays of FP16 bits; NaN is canonical."""
        with np.errstate(invalid="ignore"):
            product = a.view(np.float16).astype(np.float32) * b.view(np.float16).astype(np.float32)
        return BINARY32.canonical(product.view(np.uint32))

    def create(self) -> MultiplierCore:
        """Hardware of this multiplier."""
        return MultiplierCore()


class MultiplierCore(Component):
    """Hardware of :class:`Multiplier`.

    Stage 1 normalises subnormal significands, stage 2 multiplies (one DSP) and packs. There is
    no valid bit and no back-pressure: a pair enters and a product leaves every cycle, 2 cycles
    later. Reset state is don't-care.

    Members
    -------
    a, b: In(16), binary16 operands.
    product: Out(32), binary32 product.
    """

    def __init__(self) -> None:
        super().__init__({"a": In(16), "b": In(16), "product": Out(32)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a = BINARY16.unpack(m, self.a, "a")
        b = BINARY16.unpack(m, self.b, "b")
        a_significand, a_exponent = self._normalise(m, a, "a")
        b_significand, b_exponent = self._normalise(m, b, "b")

        left = Signal(11, reset_less=True)
        right = Signal(11, reset_less=True)
        exponent = Signal(8, reset_less=True)
        sign, zero, special, nan = (
            Signal(name=name, reset_less=True) for name in ("sign", "zero", "special", "invalid")
        )
        m.d.sync += [
            left.eq(a_significand),
            right.eq(b_significand),
            exponent.eq(a_exponent + b_exponent + _REBIAS),
            sign.eq(a.sign ^ b.sign),
            zero.eq(a.zero | b.zero),
            special.eq(a.infinite | b.infinite),
            nan.eq(a.nan | b.nan | (a.infinite & b.zero) | (a.zero & b.infinite)),
        ]

        exact = Signal(22)
        carry = exact[21]
        finite = Signal(31)
        m.d.comb += [
            exact.eq(left * right),
            finite.eq(
                Cat(
                    Mux(carry, Cat(Const(0, 2), exact[:21]), Cat(Const(0, 3), exact[:20])),
                    (exponent + carry)[:8],
                )
            ),
        ]
        with m.If(nan):
            m.d.sync += self.product.eq(BINARY32.nan)
        with m.Elif(special):
            m.d.sync += self.product.eq(Cat(Const(BINARY32.infinity, 31), sign))
        with m.Elif(zero):
            m.d.sync += self.product.eq(Cat(Const(0, 31), sign))
        with m.Else():
            m.d.sync += self.product.eq(Cat(finite, sign))
        return m

    @staticmethod
    def _normalise(m: Module, x: Unpacked, name: str) -> tuple[Signal, Signal]:
        """Significand with its leading one at bit 10, and the exponent field it then has."""
        shift = leading_zeros(m, x.fraction, name)
        significand = Signal(11, name=f"{name}_significand")
        exponent = Signal(signed(7), name=f"{name}_normal_exponent")
        with m.If(x.subnormal):
            # value = fraction * 2^-24: moving the leading one to bit 10 costs shift + 1.
            m.d.comb += [
                significand.eq((x.fraction << shift) << 1),
                exponent.eq(-shift),
            ]
        with m.Else():
            m.d.comb += [
                significand.eq(Cat(x.fraction, Const(1, 1))),
                exponent.eq(x.exponent),
            ]
        return significand, exponent
