"""Solutions of word problems in MathCoder's format: by code, in words, and checked by code."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, get_args

from algorithms import ParameterError, closest
from benchmarks.math.word_problems import Problem, Step
from models.math.prompts import Prompt
from models.math.solution import Block, Message
from models.math.solver import problem_messages

__all__ = ["CODE_CHECK", "FORMS", "PROMPTS_OF", "WORDS_CHECK", "Form", "misread", "solved"]

Form = Literal["text", "code", "text-verified", "code-verified"]
"""How a problem is solved: in words or by code; and with a check by code after it."""

FORMS: tuple[Form, ...] = get_args(Form)

WORDS_CHECK = Prompt("words-check", "Solve the problem in words, then check the answer by code.",
                     verifies=True)
CODE_CHECK = Prompt("code-check", "Solve the problem by code, then check the answer by code.",
                    verifies=True)

_PLAIN = Prompt("plain", "")
PROMPTS_OF: dict[Form, Prompt] = {"text": _PLAIN, "code": _PLAIN, "text-verified": WORDS_CHECK,
                                  "code-verified": CODE_CHECK}
"""How a problem is asked for each form; the first two are trained apart."""


def solved(problem: Problem, form: Form, given: Problem | None = None) -> tuple[Message, ...]:
    """The whole conversation in which ``problem`` is solved.

    With ``given``, the same problem misread, a solution that checks is wrong: it solves ``given``
    and the check of ``problem`` finds it false.
    """
    if form not in FORMS:
        raise ParameterError("form", form, f"must be one of {', '.join(FORMS)}",
                             closest(str(form), FORMS) or "code")
    asked = problem_messages(PROMPTS_OF[form].question(problem.question))
    worked = given or problem
    answer = f"The answer is \\boxed{{{worked.answer}}}."
    verified = form.endswith("-verified")
    if verified:
        answer += " Let us check it."
    if form.startswith("text"):
        blocks = [_text(f"{worked.plan} {worked.calculations} {answer}")]
    else:
        blocks = [_text(worked.plan), *_run(worked.code, worked.answer), _text(answer)]
    if verified:
        right = str(worked.answer == problem.answer)
        blocks += [*_run(problem.check(worked.answer), right), _text(f"Verification: {right}")]
    return (*asked, Message(role="assistant", content=tuple(blocks)))


def misread(problem: Problem, chooser: random.Random) -> Problem:
    """The problem with a number or a step taken for another, so that the answer changes."""
    while True:
        place = chooser.randrange(len(problem.steps) + 1)
        start, steps = problem.start, list(problem.steps)
        if place == len(steps):
            start = _slip(start, chooser)
        elif chooser.random() < 0.5:
            steps[place] = steps[place]._replace(number=_slip(steps[place].number, chooser))
        else:
            other = chooser.choice(("add", "subtract", "multiply", "divide"))
            steps[place] = Step(other, steps[place].number)  # type: ignore[arg-type]
        wrong = Problem(problem.question, start, tuple(steps))
        if _comes_out(start, steps) and wrong.answer != problem.answer:
            return wrong


def _slip(number: int, chooser: random.Random) -> int:
    """The number with one digit wrong; it stays above 0."""
    digits = list(str(number))
    place = chooser.randrange(len(digits))
    digits[place] = chooser.choice("123456789")
    return int("".join(digits))


def _comes_out(value: int | None, steps: Sequence[Step]) -> bool:
    for step in steps:
        value = None if value is None else step.apply(value)
    return value is not None


def _text(content: str) -> Block:
    return Block(type="text", content=content)


def _run(code: str, output: str) -> tuple[Block, Block]:
    return Block(type="code", content=code), Block(type="execution", content=output)
