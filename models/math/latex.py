"""Answers as they are written, in LaTeX or plainly, read into structures: no text is evaluated.

The reader takes what answers consist of: numbers with separators, units and bases, fractions, mixed
numbers, roots, functions, variables, lists, tuples, intervals, sets, matrices, equations and
inequalities. What is beyond it raises :class:`Malformed`, and so does what is too long or too deep.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from models.math.expressions import Call, Expression, Number, Symbol, has_variables
from models.math.scalars import (
    CONSTANTS,
    Malformed,
    Token,
    bare_word,
    read_scalar,
    tokenise,
    variants,
)
from models.math.units import RATES, SCALES, UNITS, unit_name

__all__ = ["LONGEST", "Answer", "Equation", "Group", "Malformed", "Scalar", "Words", "cleaned",
           "plain_text", "read_answer"]

LONGEST = 1000
"""Characters of an answer that is read; longer ones are only compared as text."""

_MOST_ITEMS = 64
_ROW = "\x1e"


@dataclass(frozen=True)
class Scalar:
    """One number or formula, and its unit, ``base 2`` for a number in that base, or nothing."""

    expression: Expression
    unit: str = ""


@dataclass(frozen=True)
class Words:
    """An answer in words."""

    text: str


@dataclass(frozen=True)
class Group:
    """Several answers. Order counts in a tuple, which may be an interval, a ratio and a matrix."""

    kind: Literal["list", "set", "union", "tuple", "ratio", "matrix"]
    items: tuple[Answer, ...]
    brackets: str = ""


@dataclass(frozen=True)
class Equation:
    """``left = right``, or with another sign of ``signs``; ``sides`` has all of them in order.

    Inequalities all point the same way, ``<`` or ``<=``.
    """

    signs: tuple[str, ...]
    sides: tuple[Answer, ...]
    name: str = ""
    """The left side as text, where it is a name that stands for the right side."""


Answer = Scalar | Words | Group | Equation

_SPACES = re.compile(r"\\[,;:! ]|\\q?quad|~|\\(?:displaystyle|textstyle|limits)(?![A-Za-z])")
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?")
_SWAPS = (
    (re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])"), ""),
    (re.compile(r",\\!\s*"), "{,}"), (_SPACES, " "), (_SIZES, ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree(?![A-Za-z])"), "°"),
    (re.compile(r"\\%"), "%"), (re.compile(r"\\?[$]|\\[()\[\]]|[€£]"), " "),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])"), "*"), (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\leq?(?:slant)?(?![A-Za-z])"), "<="),
    (re.compile(r"\\geq?(?:slant)?(?![A-Za-z])"), ">="),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"), (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:approx|equiv)(?![A-Za-z])"), "="),
    (re.compile(r"\\[lr]?vert(?![A-Za-z])"), "|"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"), (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:emptyset|varnothing)(?![A-Za-z])"), r"\\{\\}"),
    (re.compile(r"\\cup(?![A-Za-z])"), "\u222a"),
    (re.compile(r"\\in(?![A-Za-z])"), "\u2208"),
    (re.compile(r"(?<=\d)\{,\}(?=\d{3})"), ""),
    (re.compile(r"(?<![\d.])(\d{1,3}) (?=\d{3}(?: \d{3})*(?!\d))"), r"\1"),
    (re.compile(r"(?<=\d{3}) (?=\d{3}(?: \d{3})*(?!\d))"), ""),
    (re.compile(r"\\neq?(?![A-Za-z])|≠"), "!="),
)
_CHARACTERS = str.maketrans({
    "\u2212": "-", "\u2013": "-", "\u00d7": "*", "·": "*", "⋅": "*", "÷": "/", "\u2044": "/",
    "≤": "<=", "≥": ">=",
    "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "±": r"\pm ", "∅": r"\{\}", "≈": "=", "º": "°",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "²": "^{2}", "³": "^{3}",
    "θ": r"\theta ", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
})
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\s*\{?(\d+)\}?")
_ROOT = re.compile(r"\\sqrt (\d+(?:\.\d+)?)")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d]|,\d)")
_MATRIX = re.compile(r"\\begin\s*\{([pbvBV]?matrix|array)\}(?:\s*\{[^{}]*\})?(.*)\\end\s*\{\1\}",
                     re.DOTALL)
_OPENING, _CLOSING = frozenset((r"\{", "(", "[", "{")), frozenset((r"\}", ")", "]", "}"))
_TEMPERATURES = {"C": "celsius", "F": "fahrenheit"}
"""Scales by their letters behind a sign of degrees."""
_RATE_LETTERS = frozenset("mglhst")
_ANGLES = frozenset(("sin", "cos", "tan", "sec", "csc", "cot"))
_RELATIONS = ("=", "!=", "<", ">", "<=", ">=")
_SET_TOKENS = {"\u222a": "cup", "\u2208": "in"}


def cleaned(text: str) -> str:
    """``text`` without what LaTeX has for looks, with one sign for each operation."""
    # Two backslashes end a row of a matrix; elsewhere somebody escaped one.
    text = text.replace(r"\\", _ROW if r"\begin" in text else "\\").translate(_CHARACTERS)
    text = _ROOT.sub(r"\\sqrt{\1}", _REPEATING.sub(_repeating, text))
    for pattern, new in _SWAPS:
        text = pattern.sub(new, text)
    return text.strip().rstrip(".,;").strip()


def _repeating(found: re.Match[str]) -> str:
    """The fraction that a decimal with repeating digits is."""
    whole, period = found.group(1) + found.group(2), found.group(3)
    top = int(whole + period) - int(whole or 0)
    return rf"\frac{{{top}}}{{{'9' * len(period)}{'0' * len(found.group(2))}}}"


def plain_text(text: str) -> str:
    """An answer as words: without LaTeX, signs at its ends and differences of case and space."""
    text = re.sub(r"\\(?:text|mbox|textbf|mathrm|textrm)\s*\{([^{}]*)\}", r" \1 ", text)
    return " ".join(re.sub(r"[$\\{}]", " ", text).casefold().split()).strip("().,;: ")


def read_answer(text: str) -> tuple[Answer, ...]:
    """All that an answer may be: two where commas are thousands separators or part a list.

    Raises :class:`Malformed` for what cannot be read.
    """
    if len(text) > LONGEST:
        raise Malformed("too long")
    text = cleaned(text)
    joined = _without_separators(text)
    readings = [joined, text] if joined != text else [text]
    found: list[Answer] = []
    for reading in readings:
        try:
            found.append(_whole(reading))
        except Malformed:
            if reading is readings[-1] and not found:
                raise
    return tuple(found)


def _without_separators(text: str) -> str:
    """``text`` with numbers joined at their thousands separators, outside of brackets."""
    def join(found: re.Match[str]) -> str:
        before = text[:found.start()]
        depth = sum(before.count(each) for each in "([") - sum(before.count(each) for each in ")]")
        inside = depth + before.count(r"\{") - before.count(r"\}")
        return found.group() if inside > 0 else found.group().replace(",", "")

    return _THOUSANDS.sub(join, text)


def _whole(text: str) -> Answer:
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        rows = [row for row in matrix.group(2).split(_ROW) if row.strip()]
        cells = [[_structure(_marked(cell)) for cell in row.split("&")] for row in rows]
        if sum(map(len, cells)) > _MOST_ITEMS:
            raise Malformed("too many items")
        brackets = "|" if matrix.group(1) == "vmatrix" else ""
        return Group("matrix", tuple(Group("tuple", tuple(row)) for row in cells), brackets)
    tokens = _marked(text)
    return _word(tokens) or _structure(tokens)


def _word(tokens: Sequence[Token]) -> Words | None:
    """The word that an answer or an item of several consists of, where letters spell one."""
    spelt = tokens[0].run if tokens else ""
    # Several runs, as of ``no no``, are longer than the first.
    alone = len(tokens) == len(spelt) and all(token.run == spelt for token in tokens)
    return Words(spelt.casefold()) if alone and bare_word(spelt) else None


def _marked(text: str) -> list[Token]:
    """Tokens, with those that only join answers among them."""
    tokens: list[Token] = []
    for part in re.split("([\u222a\u2208])", text):
        tokens += ([Token("sign", _SET_TOKENS[part])] if part in _SET_TOKENS else tokenise(part))
    return [Token("sign", ",") if _joins(tokens, at) else token for at, token in enumerate(tokens)]


def _joins(tokens: Sequence[Token], at: int) -> bool:
    """Whether a token is *and* or *or* between two answers."""
    token = tokens[at]
    return token.kind == "word" and token.text in ("and", "or") and 0 < at < len(tokens) - 1


def _structure(tokens: Sequence[Token]) -> Answer:
    if not tokens:
        raise Malformed("nothing")
    if all(token.kind == "word" for token in tokens):
        return Words(" ".join(token.text for token in tokens))
    parts = _split(tokens, (",", ";"))
    if len(parts) > 1:
        return Group("list", _items([part for part in parts if part]))
    parts = _split(tokens, ("cup",))
    if len(parts) > 1:
        return Group("union", _items(parts))
    parts = _split(tokens, (":",))
    if len(parts) > 1:
        return Group("ratio", _items(parts))
    member = _split(tokens, ("in",))
    if len(member) == 2:
        return _structure(member[1])
    related = _relation(tokens)
    return related or _bracketed(tokens) or _scalar(tokens)


def _items(parts: Sequence[Sequence[Token]]) -> tuple[Answer, ...]:
    if len(parts) > _MOST_ITEMS:
        raise Malformed("too many items")
    items: list[Answer] = []
    for part in parts:
        item = _word(part) or _structure(part)
        # The two values of a plus-minus among others are items themselves.
        items += item.items if isinstance(item, Group) and item.kind == "list" else (item,)
    return tuple(items)


def _split(tokens: Sequence[Token], signs: tuple[str, ...]) -> list[Sequence[Token]]:
    """Tokens between those of ``signs`` that are in no brackets."""
    parts, depth, start = [], 0, 0
    for at, token in enumerate(tokens):
        if token.kind == "sign":
            depth += (token.text in _OPENING) - (token.text in _CLOSING)
            if depth == 0 and token.text in signs:
                parts.append(tokens[start:at])
                start = at + 1
    return [*parts, tokens[start:]]


def _relation(tokens: Sequence[Token]) -> Answer | None:
    signs = [token.text for token in tokens if token.kind == "sign"
             and token.text in _RELATIONS]
    sides = _split(tokens, _RELATIONS)
    if len(sides) == 1 or len(signs) != len(sides) - 1:
        return None
    if any(sign[0] == ">" for sign in signs):
        if any(sign[0] == "<" for sign in signs):
            raise Malformed("signs of both directions")
        sides.reverse()
        signs = [sign.replace(">", "<") for sign in reversed(signs)]
    name = "".join(token.text for token in sides[0])
    answers = tuple(_structure(side) for side in sides)
    if set(signs) == {"="}:
        first = answers[0]
        if isinstance(first, Scalar) and not has_variables(first.expression):
            return answers[-1]
        named = re.fullmatch(r"[A-Za-z](?:_\w+)?(?:\([A-Za-z]\))?|\\?[a-z]+", name)
        return Equation(("=",), (first, answers[-1]), name if named else "")
    return _interval(signs, answers) or Equation(tuple(signs), answers)


def _interval(signs: Sequence[str], sides: Sequence[Answer]) -> Group | None:
    """The interval that an inequality of one variable alone stands for."""
    scalars = [side for side in sides if isinstance(side, Scalar)]
    places = [at for at, side in enumerate(scalars) if isinstance(side.expression, Symbol)
              and side.expression.name not in CONSTANTS.values()]
    bounds = [side for at, side in enumerate(scalars) if at not in places]
    if (len(scalars) < len(sides) or len(places) != 1 or len(sides) > 3
            or not {"<", "<="} >= set(signs)
            or any(has_variables(side.expression) for side in bounds)):
        return None
    place = places[0]
    infinite = Symbol("oo")
    low, high = Scalar(Call("neg", (infinite,))), Scalar(infinite)
    opening, closing = "(", ")"
    if place > 0:
        if place == 2:
            return None
        low, opening = scalars[place - 1], "[" if signs[place - 1] == "<=" else "("
    if place < len(sides) - 1:
        if place + 2 < len(sides):
            return None
        high, closing = scalars[place + 1], "]" if signs[place] == "<=" else ")"
    return Group("tuple", (low, high), opening + closing)


def _bracketed(tokens: Sequence[Token]) -> Answer | None:
    first, last = tokens[0], tokens[-1]
    if first.text not in _OPENING or last.text not in _CLOSING or not _enclose(tokens):
        return None
    inner = tokens[1:-1]
    parts = _split(inner, (",", ";"))
    if (first.text, last.text) == (r"\{", r"\}") or (first.text == "{" and len(parts) > 1):
        return Group("set", _items(parts) if inner else ())
    if len(parts) > 1:
        return Group("tuple", _items(parts), first.text + last.text)
    return _structure(inner) if first.text + last.text in ("()", "{}") else None


def _enclose(tokens: Sequence[Token]) -> bool:
    """Whether the first bracket is closed by the last token."""
    depth = 0
    for at, token in enumerate(tokens):
        if token.kind == "sign":
            depth += (token.text in _OPENING) - (token.text in _CLOSING)
        if depth == 0:
            return at == len(tokens) - 1
    return False


def _scalar(tokens: Sequence[Token]) -> Answer:
    based = _in_base(tokens)
    if based:
        return based
    number, words = _split_unit(tokens)
    if any(token.kind == "word" for token in number):
        raise Malformed("words inside")
    values = variants(read_scalar(number))
    scalars = tuple(_measured(value, words) for value in values)
    return scalars[0] if len(scalars) == 1 else Group("list", scalars)


def _measured(value: Expression, words: Sequence[str]) -> Scalar:
    """A number and the words behind it: those that multiply it, a power, the unit."""
    if words in (["squared"], ["cubed"]):
        return Scalar(Call("^", (value, Number(Fraction(2 if words == ["squared"] else 3)))))
    scaled = 0
    while scaled < len(words) and words[scaled] in SCALES:
        value = Call("*", (value, Number(SCALES[words[scaled]])))
        scaled += 1
    unit = " ".join(words[scaled:]).replace("°", "degree")
    return Scalar(value, unit_name(re.sub(r"\^ (?=\d)", "^", unit)))


def _in_base(tokens: Sequence[Token]) -> Scalar | None:
    texts = [token.text for token in tokens]
    if [token.kind for token in tokens[:2]] != ["number", "sign"] or texts[1] != "_":
        return None
    base = "".join(texts[2:]).removeprefix("{").removesuffix("}")
    if not (texts[0].isdigit() and base.isdigit()):
        return None
    return Scalar(Number(Fraction(texts[0])), f"base {base}")


def _split_unit(tokens: Sequence[Token]) -> tuple[Sequence[Token], list[str]]:
    """Tokens of the number, and the words behind it."""
    # Of an angle inside a function the degree is no unit.
    signs = () if any(token.text in _ANGLES for token in tokens) else ("°", "%")
    start = len(tokens)
    while start > 0 and _in_unit(tokens, start - 1, signs):
        start -= 1
    while start < len(tokens) and not (tokens[start].kind == "word" or tokens[start].text in signs
                                       or _unit_letter(tokens, start)):
        start += 1
    if start == 0:
        raise Malformed("a unit alone")
    found = [_TEMPERATURES.get(token.text, token.text) for token in tokens[start:]
             if token.text not in "{}"]
    return tokens[:start], " ".join(found).split()


def _in_unit(tokens: Sequence[Token], at: int, signs: tuple[str, ...]) -> bool:
    token = tokens[at]
    return (token.kind == "word" or token.text in ("^", "{", "}", "/", *signs)
            or _unit_letter(tokens, at)
            or (token.kind == "number" and token.text in ("2", "3") and at > 0
                and tokens[at - 1].text in ("^", "{")))


def _unit_letter(tokens: Sequence[Token], at: int) -> bool:
    """Whether a letter is a unit: a scale of temperature, or one side of a rate as in km/h."""
    texts = [token.text for token in tokens]
    if tokens[at].kind != "symbol" or at == 0:
        return False
    if texts[at - 1] == "°" and texts[at] in _TEMPERATURES:
        return True
    if texts[at] not in _RATE_LETTERS:
        return False
    if texts[at - 1] == "/":
        over = at - 2
        return over > 0 and (_is_unit(tokens[over]) or (texts[over], texts[at]) in RATES)
    under = at + 2
    return texts[at + 1:under] == ["/"] and under < len(tokens) and tokens[
        at - 1].kind == "number" and (_is_unit(tokens[under])
                                      or (texts[at], texts[under]) in RATES)


def _is_unit(token: Token) -> bool:
    return token.kind == "word" and token.text in UNITS
