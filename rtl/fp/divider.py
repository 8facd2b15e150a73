"""Pipelined FP32 division and square root in one unit, round to nearest even, subnormals honoured.

Both are the same digit recurrence, non-restoring: the remainder is doubled, and a trial is taken
off it, or put back if the remainder is negative; the sign of what comes out is the next digit.
The trial is the divisor, or twice the root so far with the next digit's bits below. One adder a
digit serves both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib.wiring import Component, In, Out

from rtl.fp.format import BINARY32, leading_zeros
from rtl.fp.rounding import DROP, kind_of, round_and_pack

__all__ = ["DivideRoot", "DivideRootCore"]

_DIGITS = 24  # after the leading one: 23 of the fraction, and the guard bit
_DIGITS_PER_STAGE = 2
# Count zeros, normalise, leading digit; the other digits; move to the subnormal range, round.
_STAGES = 3 + _DIGITS // _DIGITS_PER_STAGE + 2

# Remainders lie between -4 and 4, trials below 4, both with 24 bits below the point.
_REMAINDER = 27
_TRIAL = 26
_ONE = BINARY32.bias << BINARY32.fraction_bits


@dataclass(frozen=True)
class DivideRoot:
    """FP32 ``a / b`` or ``sqrt(a)``, correctly rounded: golden model and hardware.

    Throughput is one result a cycle, latency 17 cycles, whichever operation.
    """

    @property
    def latency(self) -> int:
        """Clock cycles from operands to result."""
        return _STAGES

    def compute(
        self,
        a: npt.NDArray[np.uint32],
        b: npt.NDArray[np.uint32],
        root: npt.NDArray[np.unsignedinteger],
    ) -> npt.NDArray[np.uint32]:
        """Golden: bits of ``sqrt(a)`` where ``root`` is not 0, else of ``a / b``; canonical NaN."""
        dividend, divisor = a.view(np.float32), b.view(np.float32)
        with np.errstate(all="ignore"):
            result = np.where(root != 0, np.sqrt(dividend), dividend / divisor)
        return BINARY32.canonical(result.view(np.uint32))

    def create(self) -> DivideRootCore:
        """Hardware of this unit."""
        return DivideRootCore()


class DivideRootCore(Component):
    """Hardware of :class:`DivideRoot`.

    Operands enter and a result leaves every cycle, 17 cycles later; no valid bit, no
    back-pressure; both operations mix freely. Two digits a stage. Reset state is don't-care.

    Members
    -------
    a, b: In(32), binary32 operands; a square root ignores ``b``.
    root: In(1), 1 for sqrt(a), 0 for a / b.
    result: Out(32), binary32 result.
    """

    def __init__(self) -> None:
        super().__init__({"a": In(32), "b": In(32), "root": In(1), "result": Out(32)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        remainder, quotient, divisor, root, rest = self._leading_digit(m)
        for digit in range(_DIGITS):
            remainder, quotient = self._digit(m, digit, remainder, quotient, divisor, root)
            if digit % _DIGITS_PER_STAGE == _DIGITS_PER_STAGE - 1:
                remainder, quotient, divisor, root, rest = (
                    self._register(m, f"{name}_{digit + 1}", value)
                    for name, value in (("remainder", remainder), ("quotient", quotient),
                                        ("divisor", divisor), ("root", root), ("rest", rest))
                )
        self._finish(m, remainder, quotient, divisor, root, rest)
        return m

    @staticmethod
    def _register(m: Module, name: str, value: Value) -> Signal:
        register = Signal(value.shape(), name=name, reset_less=True)
        m.d.sync += register.eq(value)
        return register

    def _leading_digit(self, m: Module) -> tuple[Signal, Signal, Signal, Signal, Signal]:
        """Stages 1 to 3: operands such that the first digit is a one, and that digit's step.

        Returns the remainder, the quotient so far, the divisor, the operation, and what waits for
        the end in one word: exponent field (10, signed), sign, kind (2).
        """
        def at(stage: int, name: str, value: Value) -> Signal:
            return self._register(m, f"{name}{stage}", value)

        # Count zeros. A root is a division by one until the digits start: no case of its own.
        a = BINARY32.unpack(m, self.a, "a")
        b = BINARY32.unpack(m, Mux(self.root, Const(_ONE, 32), self.b), "b")
        a_significand, b_significand = Signal(24), Signal(24)
        m.d.comb += [
            a_significand.eq(Cat(a.fraction, ~a.subnormal)),
            b_significand.eq(Cat(b.fraction, ~b.subnormal)),
        ]
        a1, b1 = at(1, "a", a_significand), at(1, "b", b_significand)
        a_zeros1 = at(1, "a_zeros", leading_zeros(m, a_significand, "a"))
        b_zeros1 = at(1, "b_zeros", leading_zeros(m, b_significand, "b"))
        # A subnormal has the scale of exponent 1. Halving an exponent needs its bias twice.
        bias = Mux(self.root, Const(2 * BINARY32.bias, 8), Const(BINARY32.bias, 8))
        exponent = Signal(signed(10))
        m.d.comb += exponent.eq((a.exponent | a.subnormal) - (b.exponent | b.subnormal) + bias)
        exponent1 = at(1, "exponent", exponent)
        root1 = at(1, "root", self.root)
        sign1 = at(1, "sign", a.sign ^ b.sign)
        kind1 = at(
            1, "kind",
            kind_of(
                zero=a.zero | b.infinite,
                infinite=a.infinite | b.zero,
                nan=a.nan | b.nan | (a.zero & b.zero) | (a.infinite & b.infinite)
                | (self.root & a.sign & ~a.zero),
            ),
        )

        # Normalise.
        a2 = at(2, "a", (a1 << a_zeros1)[:24])
        b2 = at(2, "b", (b1 << b_zeros1)[:24])
        normal_exponent = Signal(signed(10))
        m.d.comb += normal_exponent.eq(exponent1 - a_zeros1 + b_zeros1)
        exponent2 = at(2, "exponent", normal_exponent)
        root2 = at(2, "root", root1)
        sign2, kind2 = at(2, "sign", sign1), at(2, "kind", kind1)

        # Leading digit: twice a if it is below b, or if the root's exponent would be odd.
        once = Signal(signed(25))
        twofold = Signal(25)
        twice = Signal()
        field = Signal(signed(10))
        m.d.comb += [
            once.eq(a2 - b2),
            twofold.eq((a2 << 1) - b2),
            twice.eq(Mux(root2, exponent2[0], once[24])),
            field.eq(Mux(root2, exponent2 >> 1, exponent2 - twice)),
        ]
        first = Mux(twice, twofold, once[:24])
        remainder3 = at(3, "remainder", Cat(Const(0, 1), first, Const(0, 1)))
        rest3 = at(3, "rest", Cat(field, sign2, kind2))
        return remainder3, Const(1, 1), at(3, "divisor", b2), at(3, "root", root2), rest3

    @staticmethod
    def _trial(quotient: Value, below: Value, divisor: Value, root: Value) -> Value:
        return Mux(root, Cat(below, quotient), Cat(Const(0, 1), divisor))

    def _digit(
        self, m: Module, digit: int, remainder: Signal, quotient: Value, divisor: Signal,
        root: Signal,
    ) -> tuple[Signal, Value]:
        """The next remainder, and the quotient with one digit more."""
        # A root's trial, for d the weight of Q's last digit: 2R - (2Q + d/2) tries the digit
        # after it; if R is negative that last digit was tried in vain, and 2R + (2Q + 3d/2)
        # takes it back and tries the next at once.
        take = Signal(name=f"take_{digit}")
        below = Cat(Const(0, _DIGITS - 1 - digit), Const(1, 1), ~take)
        trial = Signal(_TRIAL, name=f"trial_{digit}")
        left = Signal(_REMAINDER, name=f"left_{digit}")
        m.d.comb += [
            take.eq(~remainder[_REMAINDER - 1]),
            trial.eq(self._trial(quotient, below, divisor, root)),
            # One adder: to take off is to add the complement and one, and 2R has room for the one.
            left.eq(Cat(take, remainder[:-1]) + (trial ^ take.replicate(_REMAINDER))),
        ]
        return left, Cat(~left[_REMAINDER - 1], quotient)

    def _finish(
        self, m: Module, remainder: Signal, quotient: Signal, divisor: Signal, root: Signal,
        rest: Signal,
    ) -> None:
        """The last two stages: move a subnormal quotient down; round."""
        field = Signal(signed(10))
        deep = Signal(5)
        # A last digit of one never comes out even: the quotient would have 25 bits, and times
        # the divisor, or itself, more than the operand has. So only a zero there asks, and then
        # the remainder is negative, by one trial if nothing is left.
        residue = Signal(_REMAINDER)
        lowered = Signal(25 + DROP)
        m.d.comb += [
            field.eq(rest[:10]),
            deep.eq(Mux(field > 0, 0, Mux(field <= -DROP, DROP, (1 - field)[:5]))),
            residue.eq(remainder + self._trial(quotient, Const(1, 1), divisor, root)),
            lowered.eq(Cat(Const(0, DROP), quotient) >> deep),
        ]
        kept = self._register(m, "kept", lowered[DROP:])
        sticky = self._register(m, "sticky", lowered[:DROP].any() | residue.any())
        base = self._register(m, "base", Mux(field > 0, (field - 1)[:9], 0))
        tail = self._register(m, "tail", rest[10:])
        m.d.sync += self.result.eq(
            round_and_pack(
                m, sign=tail[0], kind=tail[1:], base=base, significand=kept[1:], guard=kept[0],
                sticky=sticky,
            )
        )
