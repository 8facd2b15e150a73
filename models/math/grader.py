"""Whether two answers are the same, and by which rule.

Both are read into structures (:mod:`models.math.latex`) and compared part by part. Rational numbers
are compared exactly; other formulas by their values with 100 digits, at fixed points where they
have variables. So no text is evaluated, nothing is simplified, and the work is bounded by the
length of the answers, in any thread and without a process to kill.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from mpmath import isfinite

from models.math.expressions import (
    POINTS,
    Expression,
    Number,
    Undefined,
    exact_value,
    has_variables,
    nodes,
    value_at,
)
from models.math.extraction import boxed, extract_answer
from models.math.latex import (
    LONGEST,
    Answer,
    Equation,
    Group,
    Malformed,
    Scalar,
    Words,
    plain_text,
    read_answer,
)
from models.math.units import units_agree

__all__ = ["RULES", "TOLERANCE", "Grade", "boxed", "extract_answer", "grade", "readings"]

RULES = ("string", "text", "number", "decimal tolerance", "symbolic", "list", "tuple", "set",
         "matrix", "equation", "different")
"""The same text; the same words; equal rational numbers; numbers close to each other, one of them a
decimal; formulas of equal value; several answers equal one by one; the same relation; none."""

TOLERANCE = 1e-4
"""Greatest relative difference of numbers of which one is a decimal."""

_SECONDS = 1.0
"""Of processor time, so that a busy machine changes no grade. Answers take milliseconds; what is
not compared by then is only compared as text."""

_SAME = 1e-30
_ZERO = 1e-80


class Grade(NamedTuple):
    """Whether answers are equal, and the rule of :data:`RULES` that says so."""

    equal: bool
    rule: str


def grade(answer: str, reference: str, *, tolerance: float = TOLERANCE) -> Grade:
    """Compare two answers; whichever is called the reference does not matter.

    Any string equals itself, and no string raises. Units count where both answers have one. A
    decimal equals another number within a relative ``tolerance``; numbers without decimals, and
    two of whole value however they are written, must be equal exactly.
    """
    if answer == reference:
        return Grade(True, "string")
    compare = _Comparison(tolerance, time.thread_time() + _SECONDS)
    found = [rule for one in readings(answer) for other in readings(reference)
             if (rule := compare(one, other))]
    if found:
        return Grade(True, min(found, key=RULES.index))
    if _only_words(answer) or _only_words(reference):
        words = plain_text(answer)
        if words and words == plain_text(reference):
            return Grade(True, "text")
    return Grade(False, "different")


def readings(text: str) -> tuple[Answer, ...]:
    """All that an answer may be, nothing if it cannot be read."""
    return _read(text) if len(text) <= LONGEST else ()


@lru_cache(maxsize=4096)
def _read(text: str) -> tuple[Answer, ...]:
    try:
        return read_answer(text)
    except (Malformed, RecursionError):
        return ()


def _only_words(text: str) -> bool:
    found = readings(text)
    return not found or any(isinstance(each, Words) for each in found)


class _Value(NamedTuple):
    """What a formula is worth: exactly, or at each point, ``None`` where it has no value."""

    exact: Fraction | None
    points: tuple[Any, ...]
    decimal: bool


class _Late(Exception):
    pass


class _Comparison:
    """Rules for two answers; each returns the rule's name, or nothing if they differ."""

    def __init__(self, tolerance: float, deadline: float) -> None:
        self.tolerance, self.deadline = tolerance, deadline
        self.values: dict[Expression, _Value] = {}

    def __call__(self, one: Answer, other: Answer) -> str:
        try:
            return self.same(one, other)
        except (_Late, RecursionError):
            return ""

    def same(self, one: Answer, other: Answer) -> str:
        self.in_time()
        if isinstance(one, Equation) or isinstance(other, Equation):
            return self.equations(one, other)
        if isinstance(one, Scalar) and isinstance(other, Scalar):
            return self.scalars(one, other)
        if isinstance(one, Group) and isinstance(other, Group):
            return self.groups(one, other)
        if isinstance(one, Words) and isinstance(other, Words):
            return "text" if one.text == other.text else ""
        return ""

    def scalars(self, one: Scalar, other: Scalar) -> str:
        if not units_agree(one.unit, other.unit):
            return ""
        if one.expression == other.expression:
            return "symbolic" if exact_value(one.expression) is None else "number"
        left, right = self.value(one.expression), self.value(other.expression)
        decimal = left.decimal or right.decimal
        if left.exact is not None and right.exact is not None:
            if left.exact == right.exact:
                return "number"
            # Rounding does not write a whole number for another one.
            decimal = decimal and not left.exact.denominator == right.exact.denominator == 1
            room = Fraction(self.tolerance) * max(abs(left.exact), abs(right.exact))
            return ("decimal tolerance" if decimal and abs(left.exact - right.exact) <= room
                    else "")
        if self.everywhere(left, right, lambda a, b: abs(a - b) <= max(
                _SAME * max(abs(a), abs(b)), _ZERO)):
            return "symbolic"
        if decimal and self.everywhere(left, right, lambda a, b: abs(a - b) <= self.tolerance * max(
                abs(a), abs(b))):
            return "decimal tolerance"
        return ""

    def everywhere(self, left: _Value, right: _Value, close: Callable[[Any, Any], bool]) -> bool:
        """Whether two values are close at all points, and have one at the same points, some."""
        count = max(len(left.points), len(right.points))
        pairs = list(zip(_repeated(left.points, count), _repeated(right.points, count),
                         strict=True))
        defined = [(a, b) for a, b in pairs if a is not None and b is not None]
        return (2 * len(defined) >= count and all((a is None) == (b is None) for a, b in pairs)
                and all(a == b or (isfinite(a) and isfinite(b) and bool(close(a, b)))
                        for a, b in defined))

    def in_time(self) -> None:
        if time.thread_time() > self.deadline:
            raise _Late

    def value(self, expression: Expression) -> _Value:
        if expression not in self.values:
            self.values[expression] = self.evaluated(expression)
        return self.values[expression]

    def evaluated(self, expression: Expression) -> _Value:
        decimal = any(isinstance(part, Number) and part.decimal for part in nodes(expression))
        exact = exact_value(expression)
        if exact is not None:
            expression = Number(exact)
        points: list[Any] = []
        for point in range(POINTS if has_variables(expression) else 1):
            self.in_time()
            try:
                points.append(value_at(expression, point))
            except Undefined:
                points.append(None)
        return _Value(exact, tuple(points), decimal)

    def groups(self, one: Group, other: Group) -> str:
        kinds = {one.kind, other.kind}
        if len(one.items) != len(other.items) or one.brackets != other.brackets:
            return ""
        if kinds <= {"list", "set"} or kinds == {"union"}:
            rule = "list" if kinds == {"list"} else "set"
            return rule if self.matched(one.items, other.items) else ""
        if len(kinds) > 1 or not all(map(self.same, one.items, other.items)):
            return ""
        return "matrix" if kinds == {"matrix"} else "tuple"

    def matched(self, left: Sequence[Answer], right: Sequence[Answer]) -> bool:
        """Whether items can be paired so that all pairs are equal."""
        partner: dict[int, int] = {}

        def place(item: int, tried: set[int]) -> bool:
            for at, candidate in enumerate(right):
                if at not in tried and self.same(left[item], candidate):
                    tried.add(at)
                    if at not in partner or place(partner[at], tried):
                        partner[at] = item
                        return True
            return False

        return all(place(item, set()) for item in range(len(left)))

    def equations(self, one: Answer, other: Answer) -> str:
        if not isinstance(one, Equation):
            one, other = other, one
        assert isinstance(one, Equation)
        if not isinstance(other, Equation):
            return self.same(one.sides[-1], other) if one.name else ""
        if one.signs != other.signs or len(one.sides) != len(other.sides):
            return ""
        if all(map(self.same, one.sides, other.sides)):
            return "equation"
        return "equation" if one.signs == ("=",) and self.proportional(one, other) else ""

    def proportional(self, one: Equation, other: Equation) -> bool:
        """Whether left less right of one equation is that of the other, times a constant."""
        ratios: list[Any] = []
        for a, b in zip(self.differences(one), self.differences(other), strict=True):
            if a is None or b is None or not a or not b:
                return False
            ratios.append(a / b)
        return all(abs(ratio - ratios[0]) <= _SAME * abs(ratios[0]) for ratio in ratios)

    def differences(self, equation: Equation) -> list[Any]:
        """Left less right at every point; ``None`` where there is none."""
        values = [self.value(side.expression).points if isinstance(side, Scalar) else (None,)
                  for side in equation.sides]
        left, right = (_repeated(points, POINTS) for points in values)
        return [None if a is None or b is None else a - b
                for a, b in zip(left, right, strict=True)]


def _repeated(points: Sequence[Any], count: int) -> Sequence[Any]:
    return points if len(points) == count else [points[0]] * count
