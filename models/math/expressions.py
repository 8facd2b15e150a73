"""Expressions of one number, and their value at a point: bounded work, whatever was written.

Nothing here evaluates text. Sizes are limited before a value is computed, so that towers of powers
and factorials cost as little as sums.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

from mpmath import MPContext

__all__ = ["POINTS", "Call", "Expression", "Number", "Symbol", "Undefined", "exact_value",
           "has_variables", "nodes", "value_at"]

POINTS = 12
"""Points that expressions with variables are compared at: so many that signs of several variables
do not go together by chance."""

_DIGITS = 100
_MOST_BITS = 20_000
"""Of exact numbers, and of the magnitude of others."""
_LARGEST_ANGLE = 10**20
_LARGEST_FACTORIAL = 2000

_LOCAL = threading.local()


@dataclass(frozen=True)
class Number:
    """A number as written; ``decimal`` if it has a decimal point or is in scientific notation."""

    value: Fraction
    decimal: bool = False


@dataclass(frozen=True)
class Symbol:
    """A variable, or one of the constants ``pi``, ``e``, ``i`` and ``oo``, infinity."""

    name: str


@dataclass(frozen=True)
class Call:
    """An operation or a function by name, and its arguments."""

    name: str
    arguments: tuple[Expression, ...]


Expression = Number | Symbol | Call


class Undefined(ArithmeticError):
    """An expression without a value at a point, or with one beyond the limits."""


def nodes(expression: Expression) -> Iterator[Expression]:
    """The expression and all its parts."""
    yield expression
    if isinstance(expression, Call):
        for argument in expression.arguments:
            yield from nodes(argument)


def has_variables(expression: Expression) -> bool:
    """Whether any part is a variable."""
    return any(isinstance(node, Symbol) and node.name not in _CONSTANTS
               for node in nodes(expression))


def exact_value(expression: Expression) -> Fraction | None:
    """The value of a rational number made by sums, products, quotients and whole powers; ``None``
    for any other expression."""
    if isinstance(expression, Number):
        return expression.value
    if isinstance(expression, Symbol) or expression.name not in _EXACT:
        return None
    found = [exact_value(argument) for argument in expression.arguments]
    values = [value for value in found if value is not None]
    if len(values) < len(found):
        return None
    try:
        result = _EXACT[expression.name](*values)
    except (ZeroDivisionError, Undefined):
        return None
    return result if max(map(_bits, result.as_integer_ratio())) <= _MOST_BITS else None


def value_at(expression: Expression, point: int) -> Any:
    """The complex value, an mpmath number of 100 digits, where every variable has a value of its
    own that depends on its name and on the number of the point.

    Values of a variable are real, from 0.25 to 150 in size, the greatest ones of both signs.
    Raises :class:`Undefined`.
    """
    context = _context()
    try:
        return _value(expression, point, context)
    except (ZeroDivisionError, ValueError, OverflowError, TypeError, context.NoConvergence):
        raise Undefined from None


def _context() -> Any:
    """A context of this thread: functions of mpmath change its precision while they run."""
    if not hasattr(_LOCAL, "context"):
        _LOCAL.context = MPContext()
        _LOCAL.context.dps = _DIGITS
    return _LOCAL.context


def _value(expression: Expression, point: int, mp: Any) -> Any:
    if isinstance(expression, Number):
        result = mp.mpf(expression.value.numerator) / expression.value.denominator
    elif isinstance(expression, Symbol):
        result = _symbol(expression.name, point, mp)
    else:
        arguments = [_value(argument, point, mp) for argument in expression.arguments]
        root = _odd_root(expression.arguments[1]) if expression.name == "^" else None
        result = (_FUNCTIONS[expression.name](mp, *arguments) if root is None
                  else _real_power(mp, arguments[0], root))
    if mp.isnan(result):
        raise Undefined
    if not mp.isinf(result) and result != 0 and abs(mp.mag(result)) > _MOST_BITS:
        raise Undefined
    return result


def _symbol(name: str, point: int, mp: Any) -> Any:
    if name in _CONSTANTS:
        return _CONSTANTS[name](mp)
    draw = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    # Every variable has each magnitude once, in an order of its own.
    rank = (point + draw[0]) % POINTS
    part = mp.mpf(int.from_bytes(hashlib.sha256(draw + bytes([rank])).digest()[:4])) / 2**32
    size = mp.mpf(2) ** (mp.mpf(rank) * 3 / 4 - 2) * (1 + part)
    # The two greatest differ in sign, so that each sign occurs, and far from zero.
    last = rank == POINTS - 1
    negative = (int.from_bytes(draw[1:3]) >> (rank - last) & 1) != last
    return -size if negative else size


def _bits(value: int) -> int:
    return value.bit_length()


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise Undefined
    size = max(map(_bits, base.as_integer_ratio()))
    if abs(exponent) * size > _MOST_BITS:
        raise Undefined
    return Fraction(base ** exponent.numerator)


def _exact_product(*factors: Fraction) -> Fraction:
    if sum(_bits(factor.numerator) + _bits(factor.denominator) for factor in factors) > _MOST_BITS:
        raise Undefined
    return prod(factors, start=Fraction(1))


_EXACT: dict[str, Callable[..., Fraction]] = {
    "+": lambda *terms: sum(terms, Fraction(0)), "*": _exact_product, "neg": lambda a: -a,
    "inv": lambda a: 1 / a, "^": _exact_power,
}


def _power(mp: Any, base: Any, exponent: Any) -> Any:
    if base == 0:
        if mp.re(exponent) <= 0:
            raise Undefined
        return mp.mpf(0)
    if not mp.isinf(base) and not mp.isinf(exponent):
        _limited(mp, exponent * mp.log(base))
    return mp.power(base, exponent)


def _odd_root(exponent: Expression) -> Fraction | None:
    """An exponent with an odd root in it."""
    value = exact_value(exponent)
    return value if value is not None and value.denominator % 2 and value.denominator > 1 else None


def _real_power(mp: Any, base: Any, exponent: Fraction) -> Any:
    """A power with an odd root in it: real where the base is negative, as roots are."""
    power = mp.mpf(exponent.numerator) / exponent.denominator
    if mp.im(base) == 0 and mp.re(base) < 0:
        return _power(mp, -base, power) * (-1 if exponent.numerator % 2 else 1)
    return _power(mp, base, power)


def _limited(mp: Any, exponent: Any) -> Any:
    if mp.isinf(exponent) or abs(exponent) > _MOST_BITS:
        raise Undefined
    return exponent


def _angle(mp: Any, value: Any) -> Any:
    if mp.isinf(value) or abs(value) > _LARGEST_ANGLE or abs(mp.im(value)) > _MOST_BITS:
        raise Undefined
    return value


def _factorial(mp: Any, value: Any) -> Any:
    if mp.im(value) != 0 or not -_LARGEST_FACTORIAL < mp.re(value) < _LARGEST_FACTORIAL:
        raise Undefined
    return mp.gamma(value + 1)


def _binomial(mp: Any, n: Any, k: Any) -> Any:
    return _factorial(mp, n) / (_factorial(mp, k) * _factorial(mp, n - k))


def _log(mp: Any, value: Any, base: Any) -> Any:
    return mp.log(value) / mp.log(base)


def _root(mp: Any, value: Any, degree: Any) -> Any:
    # A real root where there is one, as the sign means in school.
    if mp.im(value) == 0 and mp.re(value) < 0 and mp.isint(degree) and int(degree.real) % 2:
        return -_power(mp, -value, 1 / degree)
    return _power(mp, value, 1 / degree)


def _trigonometric(name: str) -> Callable[..., Any]:
    return lambda mp, value: getattr(mp, name)(_angle(mp, value))


def _plain(name: str) -> Callable[..., Any]:
    return lambda mp, value: getattr(mp, name)(value)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "+": lambda mp, *terms: sum(terms), "*": lambda mp, *factors: prod(factors),
    "neg": lambda mp, a: -a, "inv": lambda mp, a: 1 / a, "^": _power,
    "root": _root, "log": _log, "factorial": _factorial, "binom": _binomial,
    "abs": lambda mp, a: abs(a), "ln": lambda mp, a: mp.log(a),
    "exp": lambda mp, a: mp.exp(_limited(mp, a)),
    "floor": _plain("floor"), "ceil": _plain("ceil"),
    **{name: _trigonometric(name) for name in (
        "sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh")},
    **{name: _plain(name) for name in ("asin", "acos", "atan", "asinh", "acosh", "atanh")},
}

_CONSTANTS: dict[str, Callable[[Any], Any]] = {
    "pi": lambda mp: +mp.pi, "e": lambda mp: +mp.e, "i": lambda mp: mp.mpc(0, 1),
    "oo": lambda mp: mp.inf,
}
