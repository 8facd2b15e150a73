"""One number or formula, in LaTeX or plainly, read into an expression without evaluating text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from models.math.expressions import Call, Expression, Number, Symbol
from models.math.units import UNITS

__all__ = ["CONSTANTS", "FUNCTIONS", "GREEK", "Malformed", "Token", "bare_word", "read_scalar",
           "tokenise", "variants"]


class Malformed(ValueError):
    """Text that is not read as mathematics: beyond the reader, too long or too deep."""


class Token(NamedTuple):
    """A piece of an answer.

    ``word`` is a word or the content of ``\\text{}``, ``symbol`` a variable or a constant, and
    ``command`` a function or a construct of LaTeX, without its backslash.
    ``run`` has the letters that a variable was written among, without space between.
    """

    kind: Literal["number", "symbol", "word", "command", "sign"]
    text: str
    spaced: bool = False
    run: str = ""


_LONGEST_EXPONENT = 4
_DEEPEST = 30
_LONGEST_WORD = 3
"""Longer runs of letters are words, shorter ones products of variables, except for units."""

GREEK = frozenset((
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta",
    "iota", "kappa", "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi",
    "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Sigma", "Phi", "Psi",
    "Omega", "ell", "hbar"))
"""Letters by the names that LaTeX has for them."""
CONSTANTS = {"pi": "pi", "infty": "oo", "infinity": "oo", "inf": "oo", "oo": "oo", "e": "e",
             "i": "i", "E": "e", "I": "i"}
"""Names of constants as written. Capitals are so only where SymPy's printed form has them."""
FUNCTIONS = {
    **{name: name for name in (
        "sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "ln", "exp", "asin",
        "acos", "atan", "abs", "floor")},
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "ceil": "ceil", "ceiling": "ceil",
    "log": "log", "sqrt": "sqrt", "binomial": "binom", "factorial": "factorial"}
"""Functions of one argument, and ``sqrt``, ``log`` and ``binom``, by the names they go by."""

_CONSTRUCTS = frozenset(("frac", "binom", "pm", "mp", "lfloor", "rfloor", "lceil", "rceil", "vert"))
_STYLED = re.compile(r"\\(?:mathbb|mathbf|mathcal|vec|overline|bar|hat|widehat|boldsymbol)\s*"
                     r"\{([^{}]*)\}")
_TEXT = re.compile(r"\\(?:text|mbox|textbf|textit|mathrm|textrm|operatorname|rm)\s*\{([^{}]*)\}")
_PIECE = re.compile(
    rf"(?P<text>{_TEXT.pattern.replace('([', '(?P<words>[')})"
    rf"|(?P<styled>{_STYLED.pattern.replace('([', '(?P<inner>[')})"
    r"|(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|\\(?P<command>[A-Za-z]+)|(?P<letters>[A-Za-z]+)"
    r"|(?P<sign>\*\*|<=|>=|!=|==|\\[{}|]|[-+*/^_=<>(){}\[\]|,;:!°%])")


def tokenise(text: str) -> list[Token]:
    """The tokens of an answer that :func:`models.math.latex.cleaned` returned."""
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        blank = re.compile(r"\s*").match(text, at)
        assert blank is not None
        spaced, at = blank.end() > at, blank.end()
        if at == len(text):
            break
        found = _PIECE.match(text, at)
        if found is None:
            raise Malformed(text[at])
        at = found.end()
        tokens += _tokens(found, spaced)
    return tokens


def read_scalar(tokens: Sequence[Token]) -> Expression:
    """The expression of tokens; :class:`Malformed` if they are none."""
    reader = _Reader(tokens)
    expression = reader.sum()
    if reader.at < len(tokens):
        raise Malformed(tokens[reader.at].text)
    return expression


def bare_word(text: str) -> bool:
    """Whether two or three letters that are a whole answer spell a word, no product of variables.

    A product is in lower case, and has no vowel or only letters of a, b, c, u, v, w, x, y and z:
    ``xy``, ``ab`` and ``mn`` are products; ``no``, ``Tom`` and ``BAC`` are words.
    """
    product = text.islower() and (not set(text) & set("aeiou") or set(text) <= set("abcuvwxyz"))
    return len(text) > 1 and not product


def variants(expression: Expression) -> tuple[Expression, ...]:
    """The two expressions that one with plus-minus signs stands for; itself where it has none."""
    upper, lower = _resolve(expression, True), _resolve(expression, False)
    return (upper,) if upper == lower else (upper, lower)


def _resolve(expression: Expression, upper: bool) -> Expression:
    if not isinstance(expression, Call):
        return expression
    parts = tuple(_resolve(argument, upper) for argument in expression.arguments)
    if expression.name in ("pm", "mp"):
        return parts[0] if (expression.name == "pm") == upper else Call("neg", parts)
    return Call(expression.name, parts)


def _tokens(found: re.Match[str], spaced: bool) -> Iterator[Token]:
    """The tokens of a piece: several for letters that are variables side by side."""
    kind = found.lastgroup
    text = found.group(kind or 0)
    if found.group("text") is not None:
        words = " ".join(found.group("words").split())
        if words in FUNCTIONS:
            yield Token("command", words, spaced)
        elif words:
            yield Token("word", words.casefold(), spaced)
    elif found.group("styled") is not None:
        yield Token("symbol", found.group("styled"), spaced)
    elif found.group("number") is not None:
        yield Token("number", text, spaced)
    elif found.group("command") is not None:
        name = found.group("command")
        if name in FUNCTIONS or name in _CONSTRUCTS:
            yield Token("command", name, spaced)
        elif name in CONSTANTS or name in GREEK:
            yield Token("symbol", CONSTANTS.get(name, name), spaced)
        else:
            raise Malformed(name)
    elif found.group("letters") is not None:
        yield from _letters(found.group("letters"), spaced)
    else:
        yield Token("sign", {"**": "^", "==": "=", r"\|": "|"}.get(text, text), spaced)


def _letters(text: str, spaced: bool) -> Iterator[Token]:
    if text in FUNCTIONS:
        yield Token("command", text, spaced)
    elif len(text) > 1 and (text in CONSTANTS or text in GREEK):
        yield Token("symbol", CONSTANTS.get(text, text), spaced)
    elif (len(text) > _LONGEST_WORD or text in ("and", "or", "per")
          or (len(text) > 1 and text.casefold() in UNITS)):
        yield Token("word", text.casefold(), spaced)
    else:
        for letter in text:
            yield Token("symbol", CONSTANTS.get(letter, letter), spaced, text)


class _Reader:
    """A recursive-descent reader of sums, products, powers and functions."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = list(tokens)
        self.at = self.depth = 0

    def sum(self) -> Expression:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Malformed("too deep")
        terms = [self.product()]
        while sign := self.take("+", "-", "pm", "mp"):
            term = self.product()
            terms.append(term if sign == "+" else Call("neg" if sign == "-" else sign, (term,)))
        self.depth -= 1
        return terms[0] if len(terms) == 1 else Call("+", tuple(terms))

    def product(self) -> Expression:
        factors = [self.signed()]
        while True:
            if self.take("*"):
                factors.append(self.signed())
            elif self.take("/"):
                factors.append(Call("inv", (self.signed(),)))
            elif self.begins_factor():
                if self.peek().kind == "number" and self.tokens[self.at - 1].kind == "number":
                    raise Malformed("two numbers side by side")
                factors.append(self.power())
            else:
                return factors[0] if len(factors) == 1 else Call("*", tuple(factors))

    def signed(self) -> Expression:
        signs: list[str] = []
        while sign := self.take("+", "-", "pm", "mp"):
            signs.append(sign)
        value = self.power()
        if signs.count("-") % 2:
            value = Call("neg", (value,))
        for sign in signs:
            if sign in ("pm", "mp"):
                value = Call(sign, (value,))
        return value

    def power(self) -> Expression:
        bases = [self.postfix()]
        while self.take("^"):
            if len(bases) > _DEEPEST:
                raise Malformed("too deep")
            negative = self.take("-")
            bases.append(Call("neg", (self.postfix(),)) if negative else self.postfix())
        result = bases.pop()
        while bases:
            result = Call("^", (bases.pop(), result))
        return result

    def postfix(self) -> Expression:
        value = self.primary()
        while sign := self.take("!", "°", "%"):
            if sign == "!":
                value = Call("factorial", (value,))
                continue
            unit: Expression = Call("inv", (Number(Fraction(100 if sign == "%" else 180)),))
            turn = (value, unit) if sign == "%" else (value, unit, Symbol("pi"))
            value = Call("*", turn)
        return value

    def primary(self) -> Expression:
        token = self.peek()
        self.at += 1
        if token.kind == "number":
            return self.mixed(_number(token.text))
        if token.kind == "symbol":
            return Symbol(token.text + self.subscript())
        if token.kind == "command":
            return self.command(token.text)
        if token.text in _BRACKETS:
            return self.enclosed(_BRACKETS[token.text])
        if token.text == "|":
            return Call("abs", (self.enclosed("|"),))
        raise Malformed(token.text)

    def mixed(self, whole: Number) -> Expression:
        """``whole``, with a fraction below 1 behind it added."""
        start, part = self.at, None
        if whole.decimal:
            return whole
        if self.take("frac"):
            try:
                top, bottom = self.argument(), self.argument()
            except Malformed:
                self.at = start
                return whole
            part = (top, bottom)
        elif (self.kind() == "number" and self.peek().spaced
              and [token.text for token in self.tokens[start + 1:start + 2]] == ["/"]
              and self.kind(2) == "number"):
            part = (_number(self.tokens[start].text), _number(self.tokens[start + 2].text))
            self.at += 3
        if part and all(isinstance(each, Number) and not each.decimal for each in part):
            top, bottom = (each for each in part if isinstance(each, Number))
            if top.value < bottom.value:
                return Call("+", (whole, Call("*", (top, Call("inv", (bottom,))))))
        self.at = start
        return whole

    def command(self, name: str) -> Expression:
        if name == "frac":
            top = self.argument()
            return Call("*", (top, Call("inv", (self.argument(),))))
        if name == "binom":
            top = self.argument()
            return Call("binom", (top, self.argument()))
        if name in _FENCES:
            value = self.enclosed(_FENCES[name][0])
            return Call(_FENCES[name][1], (value,))
        if name not in FUNCTIONS:
            raise Malformed(name)
        function = FUNCTIONS[name]
        if function == "sqrt":
            degree: Expression = Number(Fraction(2))
            if self.take("["):
                degree = self.enclosed("]")
            return Call("root", (self.argument(), degree))
        base = self.log_base() if function == "log" else None
        exponent = self.postfix() if self.take("^") else None
        if exponent == _MINUS_ONE and f"a{function}" in FUNCTIONS:
            function, exponent = f"a{function}", None
        value = self.function(function, base)
        return value if exponent is None else Call("^", (value, exponent))

    def log_base(self) -> Expression:
        """Base 10 for LaTeX's sign and the natural one for code are told apart by no one, so it is
        e in both."""
        return self.argument() if self.take("_") else Symbol("e")

    def function(self, name: str, base: Expression | None) -> Expression:
        if self.take("(", "["):
            values = [self.sum()]
            while self.take(","):
                values.append(self.sum())
            if not self.take(")", "]"):
                raise Malformed(name)
        else:
            values = [self.open_argument()]
        if name == "log":
            assert base is not None
            return Call(name, tuple(values) if len(values) == 2 else (_only(values), base))
        if name == "binom":
            return Call(name, (values[0], _only(values[1:])))
        return Call(name, (_only(values),))

    def open_argument(self) -> Expression:
        """An argument without brackets: ``2x`` of ``\\sin 2x``."""
        factors = [self.power()]
        while self.kind() in ("symbol", "number"):
            factors.append(self.power())
        return factors[0] if len(factors) == 1 else Call("*", tuple(factors))

    def argument(self) -> Expression:
        """An argument of a LaTeX command: in braces, or a single letter or digit."""
        if self.take("{"):
            return self.enclosed("}")
        if self.take("("):
            return self.enclosed(")")
        token = self.peek()
        if token.kind == "number" and token.text.isdigit() and len(token.text) > 1:
            self.tokens[self.at:self.at + 1] = [Token("number", token.text[0]),
                                                Token("number", token.text[1:])]
            self.at += 1
            return _number(token.text[0])
        return self.primary()

    def enclosed(self, closing: str) -> Expression:
        value = self.sum()
        if not self.take(closing):
            raise Malformed(closing)
        return value

    def subscript(self) -> str:
        if not self.take("_"):
            return ""
        if not self.take("{"):
            self.at += 1
            return f"_{self.tokens[self.at - 1].text}" if self.at <= len(self.tokens) else ""
        inner = ""
        while not self.take("}"):
            inner += self.peek().text
            self.at += 1
        return f"_{inner}"

    def begins_factor(self) -> bool:
        if self.at == len(self.tokens):
            return False
        token = self.peek()
        if token.kind == "command":
            return token.text not in ("pm", "mp", "rfloor", "rceil")
        return token.kind in ("number", "symbol") or token.text in _BRACKETS

    def peek(self) -> Token:
        if self.at >= len(self.tokens):
            raise Malformed("the end")
        return self.tokens[self.at]

    def kind(self, ahead: int = 0) -> str:
        place = self.at + ahead
        return self.tokens[place].kind if place < len(self.tokens) else ""

    def take(self, *texts: str) -> str:
        """The next token's text, passed over, if it is one of ``texts``; else nothing."""
        if self.at < len(self.tokens):
            token = self.tokens[self.at]
            if token.text in texts and token.kind in ("sign", "command"):
                self.at += 1
                return token.text
        return ""


_MINUS_ONE = Call("neg", (Number(Fraction(1)),))
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_FENCES = {"lfloor": ("rfloor", "floor"), "lceil": ("rceil", "ceil"), "vert": ("vert", "abs")}


def _number(text: str) -> Number:
    mantissa, _, exponent = text.lower().partition("e")
    if len(exponent.lstrip("+-")) > _LONGEST_EXPONENT:
        raise Malformed(text)
    return Number(Fraction(f"{mantissa.rstrip('.') or '0'}e{exponent or 0}"),
                  decimal="." in mantissa or bool(exponent))


def _only(values: Sequence[Expression]) -> Expression:
    if len(values) != 1:
        raise Malformed("arguments")
    return values[0]
