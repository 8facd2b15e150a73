"""MathCoder's inference loop (arXiv:2310.03731, section 2): write, run the code, go on from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field

from algorithms import ParameterError
from models.math.generation import Generator, PromptTooLongError
from models.math.sandbox import Outcome, Sandbox
from models.math.solution import (
    BLOCK_TOKEN,
    SPECIAL_TOKEN,
    Block,
    BlockType,
    Message,
    Trace,
    render,
)

__all__ = ["EMPTY_EXECUTION", "STOP", "CodeRunner", "End", "MathCoder", "Session", "Solution",
           "SolverOptions", "problem_messages"]

STOP = ("<|endofblock|>", "<|endofmessage|>")
"""Where a model's text is looked at; endpoints rely on this order."""

EMPTY_EXECUTION = "<empty_execution>"
"""What stands for the output of code that printed nothing."""

End = Literal["message", "executions", "blocks", "cut", "malformed", "context"]
"""Why a message ended: the model said so; a cap on executions or on blocks; its text ran out of
tokens or the model broke it off; it broke the format; or the context was full."""

_SEED_BITS = 32
_T = TypeVar("_T")


class CodeRunner(Protocol):
    """What runs code cells, keeping state from one to the next: a sandbox."""

    def run(self, code: str) -> Outcome: ...

    def close(self) -> None: ...


class Session:
    """The sandbox of one problem, made by ``factory`` when the first code comes."""

    def __init__(self, factory: Callable[[], CodeRunner]) -> None:
        self._factory = factory
        self._runner: CodeRunner | None = None

    def run(self, code: str) -> Outcome:
        """Run a cell after those before it."""
        if self._runner is None:
            self._runner = self._factory()
        return self._runner.run(code)

    def close(self) -> None:
        """End the sandbox, if there is one; the next cell starts a fresh one."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()


@dataclass(frozen=True)
class SolverOptions:
    """How far the loop goes.

    executions: most code blocks run in one message; one more ends it.
    blocks: most blocks in one message; 48 is 16 times text, code and output.
    max_new_tokens: of each text between stops.
    execute: without, code stays text and the model writes outputs itself, or none.
    batch: most problems at a time, each with a sandbox of its own.
    workers: most cells running at a time; the number of cores by default.

    Raises :class:`ParameterError` for a number below 1, or ``executions`` below 0.
    """

    executions: int = 16
    blocks: int = 48
    max_new_tokens: int = 512
    execute: bool = True
    batch: int = 64
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)

    def __post_init__(self) -> None:
        for name in ("executions", "blocks", "max_new_tokens", "batch", "workers"):
            least = int(name != "executions")
            if getattr(self, name) < least:
                raise ParameterError(name, getattr(self, name), f"must be {least} or more", least)


class Solution(BaseModel):
    """A solved problem, or a message that ended otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trace: Trace = Field(description="The conversation with every complete block.")
    end: End = Field(description="Why the last message ended.")
    fault: str = Field("", description="How the format was broken, if it was.")
    rest: str = Field("", description="Text of the model that is no complete block, as it came.")
    statuses: tuple[str, ...] = Field((), description="Statuses of the executions, in order.")

    @property
    def executions(self) -> int:
        """Code blocks that were run in the last message: CSV's code usage frequency."""
        return len(self.statuses)


def problem_messages(problem: str, system: str = "") -> tuple[Message, Message]:
    """A conversation that asks one problem, with the format's system message."""
    return (Message(role="system", content=(Block(type="text", content=system),)),
            Message(role="user", content=(Block(type="text", content=problem),)))


class MathCoder:
    """Solves problems with a generator that writes the solution format.

    The model's text is never edited: it is stored, and goes back into the prompt, as it came.
    Outputs of code are ours; special tokens in them are broken up by a space, so that no output can
    end a block.

    Parameters
    ----------
    generator: the model.
    sandbox: makes the sandbox of one problem. :class:`SandboxUnavailable` comes from the first
        code that is to run.
    options: how far the loop goes.
    """

    def __init__(
        self,
        generator: Generator,
        sandbox: Callable[[], CodeRunner] = Sandbox,
        options: SolverOptions = SolverOptions(),
    ) -> None:
        self.generator, self.sandbox, self.options = generator, sandbox, options

    def solve(
        self,
        problems: Sequence[str],
        *,
        system: str = "",
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Solution]:
        """Solve problems, ``batch`` at a time; a problem given several times is sampled that often.

        Returns one solution for each, in order. All sandboxes are closed, whatever happens.
        """
        asked = [problem_messages(problem, system) for problem in problems]
        solutions: list[Solution] = []
        for chosen, own_seed in self.batches(asked, seed):
            with self.sessions(len(chosen)) as sessions:
                solutions += self.converse(chosen, sessions, temperature=temperature,
                                           seed=own_seed, close=True)
        return solutions

    def batches(self, asked: Sequence[_T], seed: int) -> Iterator[tuple[Sequence[_T], int]]:
        """Parts of at most ``batch``, each with its seed; users' seeds are below 2**32."""
        for number, start in enumerate(range(0, len(asked), self.options.batch)):
            yield asked[start:start + self.options.batch], seed + (number << _SEED_BITS)

    @contextmanager
    def sessions(self, count: int) -> Iterator[list[Session]]:
        """Sessions that are all closed at the end."""
        with ExitStack() as stack:
            yield [stack.enter_context(closing(Session(self.sandbox))) for _ in range(count)]

    def converse(
        self,
        conversations: Sequence[Sequence[Message]],
        sessions: Sequence[Session],
        *,
        temperature: float = 0.0,
        seed: int = 0,
        close: bool = False,
    ) -> list[Solution]:
        """The assistant's next message in each conversation, all of them together.

        With ``close`` a session is closed as soon as its message has ended.
        """
        turns = [_Turn(tuple(messages), self.options) for messages in conversations]
        with ThreadPoolExecutor(self.options.workers) as pool:
            while running := [turn for turn in turns if turn.end is None]:
                self._write(running, temperature, seed)
                jobs = [(turn, pool.submit(session.run, turn.code))
                        for turn, session in zip(turns, sessions, strict=True)
                        if turn.code is not None]
                for turn, job in jobs:
                    turn.executed(job.result())
                if close:
                    for turn, session in zip(turns, sessions, strict=True):
                        if turn.end is not None:
                            session.close()
        return [turn.solution() for turn in turns]

    def _write(self, turns: list[_Turn], temperature: float, seed: int) -> None:
        """The next text of each turn; those that no longer fit the context end."""
        while turns:
            try:
                texts = self.generator.generate(
                    [turn.prompt for turn in turns], stop=STOP, temperature=temperature, seed=seed,
                    max_new_tokens=self.options.max_new_tokens)
            except PromptTooLongError as error:
                for index in error.indices:
                    turns[index].end = "context"
                turns = [turn for turn in turns if turn.end is None]
            else:
                for turn, text in zip(turns, texts, strict=True):
                    turn.write(text)
                return


class _Turn:
    """The assistant's message while it is being written.

    prompt: the exact text so far. code: what is to be run now. end: set once the message is over.
    """

    def __init__(self, history: tuple[Message, ...], options: SolverOptions) -> None:
        self.history, self.options = history, options
        self.prompt = render(history, open_role="assistant")
        self.blocks: list[Block] = []
        self.statuses: list[str] = []
        self.code: str | None = None
        self.end: End | None = None
        self.fault = self.rest = ""

    def write(self, text: str) -> None:
        """Take the model's next text in, block by block."""
        self.prompt += text
        if not text:
            self.end = "cut"
        start = 0
        while self.end is None and start < len(text):
            start = self._read(text, start)

    def _read(self, text: str, start: int) -> int:
        """Read one block or the end of the message; returns where it ends."""
        if self.code is not None:
            return self._broken(text, start, "goes on after code without its output")
        if text.startswith(STOP[1], start):
            self.end = "message"
            return len(text)
        token = BLOCK_TOKEN.match(text, start)
        if token is None:
            return self._broken(text, start, "a block begins without its token")
        mark = SPECIAL_TOKEN.search(text, token.end())
        if mark is None:
            self.end, self.rest = "cut", text[start:]
            return len(text)
        if mark.group() not in STOP:
            return self._broken(text, start, f"{mark.group()} inside a block")
        kind = cast(BlockType, token.group(1))
        if kind == "execution" and self.options.execute:
            return self._broken(text, start, "the model wrote an output itself")
        self._append(kind, text[token.end():mark.start()])
        if mark.group() == STOP[1]:
            self.end = "message"
        elif kind == "code" and self.options.execute and self.end is None:
            if len(self.statuses) < self.options.executions:
                self.code = self.blocks[-1].content
            else:
                self.end = "executions"
        return mark.end()

    def executed(self, outcome: Outcome) -> None:
        """Append the output of the code."""
        self.code = None
        self.statuses.append(outcome.status)
        output = SPECIAL_TOKEN.sub(lambda token: token.group().replace("<|", "< |"), outcome.output)
        self._append("execution", output or EMPTY_EXECUTION)
        self.prompt += f"<|execution|>{self.blocks[-1].content}{STOP[0]}"

    def solution(self) -> Solution:
        """The result of a message that is over."""
        assert self.end is not None
        answer = (Message(role="assistant", content=tuple(self.blocks)),) if self.blocks else ()
        return Solution(trace=Trace(messages=(*self.history, *answer)), end=self.end,
                        fault=self.fault, rest=self.rest, statuses=tuple(self.statuses))

    def _append(self, kind: BlockType, content: str) -> None:
        self.blocks.append(Block(type=kind, content=content))
        if len(self.blocks) >= self.options.blocks:
            self.end = "blocks"

    def _broken(self, text: str, start: int, fault: str) -> int:
        self.end, self.fault, self.rest, self.code = "malformed", fault, text[start:], None
        return len(text)
