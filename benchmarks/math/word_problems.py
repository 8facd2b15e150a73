"""Generated word problems of one to three steps, each solved by code, in words and checked by code.

A problem is a quantity and what happens to it, told of people and things: amounts that are got,
sold or lost, so many in each of so many boxes, prices and change, rates, shares, per cent.
Sentences that change nothing occur too. Solutions have the same plan and steps in both forms; the
check undoes the steps from the answer back to a number of the problem, each by its inverse, and so
reads the problem a second time. All answers are whole numbers.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

from algorithms import ParameterError, closest

__all__ = ["LANGUAGES", "SPLITS", "Language", "Problem", "Split", "Step", "problems"]

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

Words = tuple[str, ...]
Operation = Literal["add", "subtract", "multiply", "divide", "percent", "discount", "change"]

_HELD_OUT = 5
"""One problem of so many is held out, by its text, so that no seed can mix the splits."""

_CODE: dict[Operation, str] = {
    "add": "{x} + {n}", "subtract": "{x} - {n}", "multiply": "{x} * {n}", "divide": "{x} // {n}",
    "percent": "{x} * {n} // 100", "discount": "{x} * (100 - {n}) // 100", "change": "{n} - {x}",
}
_INVERSE: dict[Operation, str] = {
    "add": "{x} - {n}", "subtract": "{x} + {n}", "multiply": "{x} / {n}", "divide": "{x} * {n}",
    "percent": "{x} * 100 / {n}", "discount": "{x} * 100 / (100 - {n})", "change": "{n} - {x}",
}
"""True division: a wrong answer must not be rounded into a right number."""


class Step(NamedTuple):
    """One thing that happens to the quantity."""

    operation: Operation
    number: int

    def apply(self, value: int) -> int | None:
        """The new quantity; ``None`` where it is no whole number above 0."""
        n = self.number
        exact = {"add": Fraction(value + n), "subtract": Fraction(value - n),
                 "multiply": Fraction(value * n), "divide": Fraction(value, n),
                 "percent": Fraction(value * n, 100), "discount": Fraction(value * (100 - n), 100),
                 "change": Fraction(n - value)}[self.operation]
        return int(exact) if exact.denominator == 1 and exact > 0 else None


@dataclass(frozen=True)
class Problem:
    """A question, where its quantity starts, and the steps to the answer."""

    question: str
    start: int
    steps: tuple[Step, ...]

    @property
    def values(self) -> tuple[int, ...]:
        """The quantity at the start and after each step."""
        found = [self.start]
        for step in self.steps:
            value = step.apply(found[-1])
            assert value is not None
            found.append(value)
        return tuple(found)

    @property
    def answer(self) -> str:
        """The gold answer."""
        return str(self.values[-1])

    @property
    def plan(self) -> str:
        """The steps by name: the text before code and calculations."""
        return f"Steps: {', '.join(step.operation for step in self.steps)}."

    @property
    def code(self) -> str:
        """Python that prints the answer."""
        lines = [f"count = {self.start}"]
        lines += [f"count = {_CODE[step.operation].format(x='count', n=step.number)}"
                  for step in self.steps]
        return "\n".join([*lines, "print(count)"])

    @property
    def calculations(self) -> str:
        """The steps as equations, with all results between."""
        return " ".join(
            f"{_CODE[step.operation].format(x=before, n=step.number)} = {after}.".replace("//", "/")
            for step, before, after in zip(self.steps, self.values, self.values[1:], strict=False))

    def check(self, answer: str) -> str:
        """Python that prints ``True`` if ``answer`` is right, else ``False``."""
        lines = [f"back = {answer}"]
        lines += [f"back = {_INVERSE[step.operation].format(x='back', n=step.number)}"
                  for step in reversed(self.steps)]
        return "\n".join([*lines, f"print(back == {self.start})"])


@dataclass(frozen=True)
class Language:
    """What problems are told with.

    people, things, holders: names and plural nouns. most: steps of a problem. largest: of numbers
    added and taken away; products and shares take smaller ones. openings, events, endings: what may
    come first, in between and last, by name; what is named twice is drawn twice as often.
    idle: share of problems with a sentence that changes nothing.
    """

    people: Words
    things: Words
    holders: Words
    most: int
    largest: int
    openings: Words
    events: Words
    endings: Words
    idle: float


_PEOPLE = ("Tom", "Ann", "Ben", "Eva", "Sam", "Mia", "Leo", "Zoe")
_THINGS = ("apples", "books", "cards", "eggs", "pens", "cakes", "stamps", "coins")
_HOLDERS = ("boxes", "bags", "rows", "packs")

LANGUAGES: dict[str, Language] = {
    "tiny": Language(_PEOPLE[:3], _THINGS[:3], _HOLDERS[:2], 1, 99, ("has",), ("more", "less"),
                     ("times",), 0.0),
    "small": Language(_PEOPLE, _THINGS, _HOLDERS, 3, 999,
                      ("has", "has", "holders", "holders", "rate", "price"),
                      ("more", "less", "sale"),
                      ("friends", "each", "red", "times", "above", "below"), 0.2),
}

_MORE = ("{a} gets {n} more.", "{a} finds {n} more.", "{b} gives {n} to {a}.")
_LESS = ("{a} gives {n} to {b}.", "{a} sells {n}.", "{a} loses {n}.")
_HOLD = ("{a} has {x} {h} of {n} {t}.", "{a} buys {x} {h} with {n} {t} in each.")
_RATE = ("{a} makes {x} {t} an hour for {n} hours.", "{a} picks {x} {t} a day for {n} days.")
_IDLE = ("{b} has {n} {o}.", "{a} has {n} {o}.")
_FEW = tuple(range(2, 10))
_PERCENT = (10, 20, 25, 40, 50, 60, 75)


class _Story:
    """A problem while it is being told; a sentence whose step is not exact is not taken."""

    def __init__(self, spoken: Language, chooser: random.Random) -> None:
        self.spoken, self.chooser = spoken, chooser
        a, b = chooser.sample(spoken.people, 2)
        t, o = chooser.sample(spoken.things, 2)
        self.names = {"a": a, "b": b, "t": t, "o": o, "h": chooser.choice(spoken.holders)}
        self.sentences: list[str] = []
        self.steps: list[Step] = []
        self.start = self.value = 0
        self.question = "How many {t} does {a} have now?"

    def tell(self) -> Problem | None:
        """The whole problem, or ``None`` if it did not come out."""
        length = self.chooser.randint(1, self.spoken.most)
        opening = self.chooser.choice(self.spoken.openings)
        if not (self.purchase(length > 1) if opening == "price" else self.things(opening, length)):
            return None
        if self.chooser.random() < self.spoken.idle:
            # Elsewhere "them" would be others.
            place = self.chooser.choice((0, len(self.sentences)))
            self.sentences.insert(place, self.filled(self.chooser.choice(_IDLE),
                                                     self.number(self.spoken.largest)))
        text = " ".join([*self.sentences, self.filled(self.question)])
        return Problem(text, self.start, tuple(self.steps))

    def purchase(self, change: bool) -> bool:
        """Something is bought; with ``change`` the money that comes back is asked for."""
        self.open("{a} buys {x} {t} at {n} dollars each.", self.number(60),
                  Step("multiply", self.number(30)))
        self.question = f"How many dollars does {{a}} {'get back' if change else 'pay'}?"
        return not change or self.add("{a} pays with {n} dollars.",
                                      Step("change", self.value + self.number(99)))

    def things(self, opening: str, length: int) -> bool:
        """Somebody has, makes or picks things, and then ``length`` steps in all."""
        if opening == "has":
            self.open("{a} has {x} {t}.", self.number(self.spoken.largest))
        else:
            told = self.chooser.choice(_HOLD if opening == "holders" else _RATE)
            self.open(told, self.number(60), Step("multiply", self.number(30)))
        while len(self.steps) < length - 1:
            if not self.event():
                return False
        return len(self.steps) == length or (
            self.event() if self.chooser.random() < 0.4 else self.ending())

    def number(self, most: int) -> int:
        """As often of one digit as of two or three, as far as they go."""
        return self.chooser.randint(2, max(2, min(self.chooser.choice((9, 99, 999)), most)))

    def exact(self, operation: Operation, numbers: Sequence[int]) -> Step:
        """A step with one of the numbers, one that comes out even if there is any."""
        steps = [Step(operation, number) for number in numbers]
        return self.chooser.choice([step for step in steps if step.apply(self.value)] or steps)

    def filled(self, template: str, number: int | None = None) -> str:
        return template.format(**self.names, n=number, x=self.start)

    def open(self, template: str, start: int, step: Step | None = None) -> None:
        self.start = self.value = start
        if step is None:
            self.sentences.append(self.filled(template))
        else:
            self.add(template, step)

    def add(self, template: str, step: Step) -> bool:
        value = step.apply(self.value)
        if value is None:
            return False
        self.value = value
        self.steps.append(step)
        self.sentences.append(self.filled(template, step.number))
        return True

    def event(self) -> bool:
        """Something after which more can happen."""
        kind = self.chooser.choice(self.spoken.events)
        if kind == "sale":
            return self.add("{a} sells {n} percent of them.",
                            self.exact("discount", _PERCENT))
        return self.amount(kind == "more", self.chooser.choice(_MORE if kind == "more" else _LESS))

    def amount(self, more: bool, told: str) -> bool:
        """A number added, or one that there is taken away."""
        largest = self.spoken.largest
        return self.add(told, Step("add", self.number(largest)) if more else
                        Step("subtract", self.number(min(largest, self.value - 1))))

    def ending(self) -> bool:
        """Something that changes what is asked."""
        kind = self.chooser.choice(self.spoken.endings)
        if kind in ("above", "below"):
            self.question = "How many {t} does {b} have?"
            return self.amount(kind == "above", "{b} has {n} more than {a}." if kind == "above" else
                               "{b} has {n} less than {a}.")
        if kind == "times":
            self.question = "How many {t} does {b} have?"
            return self.add("{b} has {n} times as many.", self.exact("multiply", _FEW))
        if kind == "red":
            self.question = "How many red {t} does {a} have?"
            return self.add("{n} percent of them are red.",
                            self.exact("percent", _PERCENT))
        if kind == "friends":
            self.question = "How many {t} does each get?"
            return self.add("{n} friends share them.", self.exact("divide", _FEW))
        self.question = "How many {t} are in each?"
        return self.add("{a} puts them in {n} {h}.", self.exact("divide", _FEW))


def problems(split: Split, count: int, seed: int, size: str = "small") -> list[Problem]:
    """``count`` problems, all different; the same for equal arguments.

    Raises :class:`ParameterError` for an unknown split or size and for ``count`` below 1.
    """
    if split not in SPLITS:
        raise ParameterError("split", split, f"must be one of {', '.join(SPLITS)}", "test")
    if count < 1:
        raise ParameterError("count", count, "must be at least 1", 1)
    found: dict[str, Problem] = {}
    for problem in _stories(_language(size), random.Random(f"{split} {seed}")):
        # Not `hash`, which differs between processes.
        held = zlib.crc32(problem.question.encode()) % _HELD_OUT == 0
        if held is (split == "test"):
            found.setdefault(problem.question, problem)
        if len(found) == count:
            break
    return list(found.values())


def _stories(spoken: Language, chooser: random.Random) -> Iterator[Problem]:
    while True:
        problem = _Story(spoken, chooser).tell()
        if problem is not None:
            yield problem


def _language(size: str) -> Language:
    if size not in LANGUAGES:
        rule = f"must be one of {', '.join(LANGUAGES)}"
        raise ParameterError("size", size, rule, closest(str(size), LANGUAGES) or "small")
    return LANGUAGES[size]
