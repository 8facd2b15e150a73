"""Pipelined FP32 multiplier, round to nearest even, subnormals honoured.

Significands are multiplied as they come: a subnormal's leading zeros are counted beside the
multiplication, and one shift then serves subnormal operands and subnormal results.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib.wiring import Component, In, Out

from rtl.fp.format import BINARY32, leading_zeros
from rtl.fp.rounding import DROP, kind_of, round_and_pack

__all__ = ["Multiplier32", "Multiplier32Core"]

_STAGES = 4


@dataclass(frozen=True)
class Multiplier32:
    """FP32 multiplier: ``compute`` is the golden model, ``create`` the hardware.

    Throughput is one product a cycle, latency 4 cycles.
    """

    @property
    def latency(self) -> int:
        """Clock cycles from operands to product."""
        return _STAGES

    def compute(
        self, a: npt.NDArray[np.uint32], b: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.uint32]:
        """Golden: bits of the products of two arrays of FP32 bits; NaN is canonical."""
        with np.errstate(all="ignore"):
            product = a.view(np.float32) * b.view(np.float32)
        return BINARY32.canonical(product.view(np.uint32))

    def create(self) -> Multiplier32Core:
        """Hardware of this multiplier."""
        return Multiplier32Core()


class Multiplier32Core(Component):
    """Hardware of :class:`Multiplier32`.

    A pair enters and a product leaves every cycle, 4 cycles later; no valid bit, no
    back-pressure. Stages 1 and 2 multiply (two registers for the DSPs to take in), stage 3
    moves the product to where it is rounded, stage 4 rounds. Reset state is don't-care.

    Members
    -------
    a, b: In(32), binary32 operands.
    product: Out(32), binary32 product.
    """

    def __init__(self) -> None:
        super().__init__({"a": In(32), "b": In(32), "product": Out(32)})

    def elaborate(self, platform: object) -> Module:
        m = Module()

        # Multiply. Two subnormals give next to nothing, so one operand's zeros are enough.
        a = BINARY32.unpack(m, self.a, "a")
        b = BINARY32.unpack(m, self.b, "b")
        left, right, small = (
            Signal(24, name=name) for name in ("left", "right", "small")
        )
        m.d.comb += [
            left.eq(Cat(a.fraction, ~a.subnormal)),
            right.eq(Cat(b.fraction, ~b.subnormal)),
            small.eq(Mux(a.subnormal, left, right)),
        ]
        zeros = leading_zeros(m, small, "small")
        exact1 = Signal(48, reset_less=True)
        zeros1 = Signal(5, reset_less=True)
        exponents1 = Signal(9, reset_less=True)
        sign1 = Signal(reset_less=True)
        kind1 = Signal(2, reset_less=True)
        m.d.sync += [
            exact1.eq(left * right),
            zeros1.eq(zeros),
            # A subnormal has the scale of exponent 1.
            exponents1.eq((a.exponent | a.subnormal) + (b.exponent | b.subnormal)),
            sign1.eq(a.sign ^ b.sign),
            kind1.eq(
                kind_of(
                    zero=a.zero | b.zero,
                    infinite=a.infinite | b.infinite,
                    nan=a.nan | b.nan | (a.infinite & b.zero) | (a.zero & b.infinite),
                )
            ),
        ]

        # Plan the move: up by the zeros, but no further than the subnormal range allows.
        reach = Signal(signed(10))
        base = Signal(signed(10))
        exact2 = Signal(48, reset_less=True)
        raise2 = Signal(5, reset_less=True)
        lower2 = Signal(5, reset_less=True)
        base2 = Signal(9, reset_less=True)
        sign2 = Signal(reset_less=True)
        kind2 = Signal(2, reset_less=True)
        m.d.comb += [reach.eq(exponents1 - BINARY32.bias), base.eq(reach - zeros1)]
        m.d.sync += [
            exact2.eq(exact1),
            raise2.eq(Mux(reach < 0, 0, Mux(base < 0, reach[:5], zeros1))),
            lower2.eq(Mux(reach < 0, Mux(reach < -DROP, DROP, (-reach)[:5]), 0)),
            base2.eq(Mux(base < 0, 0, base[:9])),
            sign2.eq(sign1),
            kind2.eq(kind1),
        ]

        # Move: 24 bits, two more below, and everything further down is sticky.
        raised = Signal(48)
        lowered = Signal(26 + DROP)
        moved3 = Signal(27, reset_less=True)
        base3 = Signal(9, reset_less=True)
        sign3 = Signal(reset_less=True)
        kind3 = Signal(2, reset_less=True)
        m.d.comb += [
            raised.eq(exact2 << raise2),
            lowered.eq(Cat(Const(0, DROP), exact2[22:]) >> lower2),
        ]
        m.d.sync += [
            moved3.eq(
                Mux(
                    lower2 == 0,
                    Cat(raised[:22].any(), raised[22:]),
                    Cat(lowered[:DROP].any() | exact2[:22].any(), lowered[DROP:]),
                )
            ),
            base3.eq(base2),
            sign3.eq(sign2),
            kind3.eq(kind2),
        ]

        # Round: a product below 2 moves up once more, unless it is subnormal.
        once = Signal()
        normal = Signal(27)
        field = Signal(9)
        m.d.comb += [
            once.eq(~moved3[26] & (base3 != 0)),
            normal.eq(Mux(once, moved3 << 1, moved3)),
            field.eq(base3 - once),
        ]
        m.d.sync += self.product.eq(
            round_and_pack(
                m, sign=sign3, kind=kind3, base=field, significand=normal[3:], guard=normal[2],
                sticky=normal[:2].any(),
            )
        )
        return m
