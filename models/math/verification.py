"""Code-based self-verification (arXiv:2308.07921): solve, verify, and solve again where it fails.

One path goes C -> V by the prompt. Verdict True or Uncertain ends it; False is answered in the same
conversation by asking again, C_new -> V, up to a number of repairs. Models may as well verify and
repair within one message: both count as attempts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from algorithms import ParameterError
from models.math.extraction import extract_answer, stated_answer
from models.math.prompts import REPAIR, Prompt, get_prompt
from models.math.solution import Block, Message, Trace
from models.math.solver import (
    EMPTY_EXECUTION,
    End,
    MathCoder,
    Session,
    Solution,
    problem_messages,
)
from models.math.verdicts import (
    Stage,
    Verdict,
    final_verdict,
    stages,
    verdicts,
    without_verdicts,
)
from models.math.voting import Vote

__all__ = ["Attempt", "SelfVerifier", "VerifiedPath", "attempts"]

_NO_RESULT = re.compile(rf"\A\s*{re.escape(EMPTY_EXECUTION)}\s*\Z"
                        r"|^Traceback \(most recent call last\)", re.MULTILINE)
"""Outputs of code that printed nothing or failed."""


class Attempt(NamedTuple):
    """An answer, the verdict on it, and what it took up to there: executions, and blocks that the
    model wrote."""

    answer: str | None
    verdict: Verdict
    executions: int
    written: int

    @property
    def vote(self) -> Vote:
        """What it is to :func:`models.math.voting.vote`."""
        return Vote(self.answer, self.verdict.state)


class VerifiedPath(BaseModel):
    """One path of code-based self-verification."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trace: Trace = Field(description="The whole conversation.")
    attempts: tuple[Attempt, ...] = Field(description="Answers in turn; the last one is final.")
    end: End = Field(description="Why the last message ended.")
    repairs: int = Field(description="Times that the model was asked again.")
    statuses: tuple[str, ...] = Field(description="Statuses of all executions, in order.")

    @property
    def vote(self) -> Vote:
        """The final answer and its state."""
        return self.attempts[-1].vote


def attempts(messages: Sequence[Message]) -> tuple[Attempt, ...]:
    """The attempts of a path, one or more: each ends with the block of a verdict False, except the
    last, which ends with the path.

    An answer is looked for in the last block of its attempt, an output included, then in all its
    texts, both without their verdicts. While it verifies, an output is no answer, and a last text
    has to state one. An attempt without an answer keeps the one before it. A path that goes on
    after False without another verdict stays False.
    """
    blocks = [(number, index, block) for number, message in enumerate(messages)
              if message.role == "assistant" for index, block in enumerate(message.content)]
    staged = [stage for of_message in stages(messages) for stage in of_message]
    failed = {(event.message, event.block): event.verdict for event in verdicts(messages)
              if event.verdict.state == "False"}
    found: list[Attempt] = []
    answer: str | None = None
    executions = written = begun = 0
    for position, (number, index, block) in enumerate(blocks, 1):
        executions += block.type == "execution"
        written += block.type != "execution"
        verdict = failed.get((number, index))
        if verdict is not None and position < len(blocks):
            answer = _answer(blocks[begun:position], staged[position - 1]) or answer
            found.append(Attempt(answer, verdict, executions, written))
            begun = position
    if begun < len(blocks):
        answer = _answer(blocks[begun:], staged[-1]) or answer
    return (*found, Attempt(answer, final_verdict(messages), executions, written))


def _answer(blocks: Sequence[tuple[int, int, Block]], stage: Stage) -> str | None:
    """The answer of an attempt whose last block has ``stage``."""
    texts = [without_verdicts(block.content) for _, _, block in blocks if block.type == "text"]
    last = blocks[-1][-1]
    found = None
    if last.type == "text":
        found = (stated_answer if stage == "verify" else extract_answer)(texts[-1])
    elif last.type == "execution" and stage != "verify" and not _NO_RESULT.search(last.content):
        found = extract_answer(last.content)
    return found or extract_answer("\n".join(texts))


class SelfVerifier:
    """Solves problems by code-based self-verification.

    Parameters
    ----------
    solver: the model and its sandboxes. Code state outlives a repair.
    prompt: a name in :data:`models.math.prompts.PROMPTS`, or a prompt of one's own.
    repairs: most times that the model is asked again after a verdict False, 0 or more.
    verdict_line: whether a prompt that verifies asks for a verdict line as well. A model that was
        not trained to follow such requests does better without.

    Raises
    ------
    ParameterError: an unknown prompt, or ``repairs`` below 0.
    """

    def __init__(self, solver: MathCoder, prompt: str | Prompt = "csv", *, repairs: int = 3,
                 verdict_line: bool = True) -> None:
        if repairs < 0:
            raise ParameterError("repairs", repairs, "must be 0 or more", 0)
        self.solver, self.repairs, self.verdict_line = solver, repairs, verdict_line
        self.prompt = get_prompt(prompt) if isinstance(prompt, str) else prompt

    def solve(
        self,
        problems: Sequence[str],
        *,
        system: str = "",
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[VerifiedPath]:
        """One path for each problem, in order; a problem given several times is sampled that often.

        All sandboxes are closed, whatever happens.
        """
        line = self.verdict_line and self.prompt.verifies
        asked = [problem_messages(self.prompt.question(problem, line), system)
                 for problem in problems]
        paths: list[VerifiedPath] = []
        for chosen, own_seed in self.solver.batches(asked, seed):
            with self.solver.sessions(len(chosen)) as sessions:
                running = [_Path(messages, session)
                           for messages, session in zip(chosen, sessions, strict=True)]
                self._advance(running, temperature, own_seed)
                for _ in range(self.repairs):
                    failed = [path for path in running if path.failed()]
                    for path in failed:
                        path.ask_again()
                    self._advance(failed, temperature, own_seed)
                paths += [path.result() for path in running]
        return paths

    def _advance(self, paths: Sequence[_Path], temperature: float, seed: int) -> None:
        """One more message of each path; those that need no repair close their session."""
        solutions = self.solver.converse(
            [path.messages for path in paths], [path.session for path in paths],
            temperature=temperature, seed=seed)
        for path, solution in zip(paths, solutions, strict=True):
            path.take(solution)


class _Path:
    """A path under way: its conversation, which ends with the user until :meth:`take`."""

    def __init__(self, messages: Sequence[Message], session: Session) -> None:
        self.messages, self.session = tuple(messages), session
        self.statuses: list[str] = []
        self.end: End | None = None
        self.repairs = 0

    def take(self, solution: Solution) -> None:
        self.messages, self.end = solution.trace.messages, solution.end
        self.statuses += solution.statuses
        if not self.failed():
            self.session.close()

    def failed(self) -> bool:
        """Whether the answer was found false and can be asked for again."""
        # A model that wrote nothing more has nothing to find wrong.
        return (self.end != "context" and self.messages[-1].role == "assistant"
                and final_verdict(self.messages).state == "False")

    def ask_again(self) -> None:
        self.repairs += 1
        again = Message(role="user", content=(Block(type="text", content=REPAIR),))
        self.messages = (*self.messages, again)

    def result(self) -> VerifiedPath:
        assert self.end is not None
        return VerifiedPath(trace=Trace(messages=self.messages), attempts=attempts(self.messages),
                            end=self.end, repairs=self.repairs, statuses=tuple(self.statuses))

