"""MathCodeInstruct: solutions by code of known and of new problems (arXiv:2310.03731, 2.1).

1. D0: solutions of known problems, those whose answer is right.
2. Interpolation: a model is shown an easy and a hard problem and asked for one between them.
3. A judge, if wanted: a model says which of two problems is the harder one.
4. Self-distillation: the model of D0 solves each new problem several times; those on whose answer
   all samples agree are kept.

Every step takes any :class:`~models.math.generators.Generator` and counts what it drops, and why.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from algorithms import ParameterError
from models.math.generators import Generator
from models.math.grader import extract_answer, grade
from models.math.problems import Problem
from models.math.similarity import SeedIndex
from models.math.solution import SPECIAL_TOKEN, GroundTruth, Trace, final_text, render
from models.math.solver import STOP, MathCoder, problem_messages

__all__ = ["Candidate", "CodeSolution", "Dataset", "InterpolationOptions", "Provenance", "Stage",
           "Winner", "build_dataset", "interpolate", "judge", "judge_prompt", "keep_right",
           "problem_prompt", "self_distil"]

Winner = Literal["Problem 1", "Problem 2", "Tie"]
"""A judge's answer to which problem is more difficult."""

_LABEL = re.compile(r"\A\s*\**(?:new )?(?:problem|question)(?: \d+)?\**\s*:\**\s*",
                    re.IGNORECASE)
_VERDICT = re.compile(r"\b(problem\s*([12])|tie)\b", re.IGNORECASE)
_SOLUTION = re.compile(r"\n\s*\**(?:solution|answer)\**\s*:.*", re.IGNORECASE | re.DOTALL)


@dataclass
class Stage:
    """What one step took in and kept, and how many it dropped for each reason."""

    name: str
    entered: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def drop(self, reason: str) -> None:
        self.entered += 1
        self.dropped[reason] += 1

    def keep(self) -> None:
        self.entered += 1
        self.kept += 1


@dataclass(frozen=True)
class InterpolationOptions:
    """How new problems are asked for and filtered.

    temperature, max_new_tokens: of the model that writes problems. seed: chooses the examples, and
    is the generator's.
    shortest: fewest words of a problem. similarity: share of common word triples, over all of both,
    from which a problem counts as a copy of another.
    samples, solve_temperature: solutions whose answers must agree; the paper has 3.
    batch: prompts that the generator gets at once.
    """

    temperature: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0
    shortest: int = 5
    similarity: float = 0.7
    samples: int = 3
    solve_temperature: float = 0.7
    batch: int = 16

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "shortest", "samples", "batch"):
            if getattr(self, name) < 1:
                raise ParameterError(name, getattr(self, name), "must be 1 or more", 1)
        if not 0 < self.similarity <= 1:
            raise ParameterError("similarity", self.similarity, "must be above 0, at most 1", 1.0)


class Provenance(BaseModel):
    """Where a solution of the data set is from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["seed", "interpolated"] = Field(description="A known problem or a new one.")
    easy: str = Field("", description="Source and id of the easy example.")
    hard: str = Field("", description="Source and id of the hard example.")
    seed: int = Field(0, description="Seed of the generation.")
    judged: dict[str, Winner] = Field(
        default_factory=dict, description="What the judge said of the problem, Problem 2, against "
        "the easy and against the hard one, each Problem 1.")
    answers: tuple[str, ...] = Field((), description="Answers of all samples, which agree.")


class CodeSolution(Trace):
    """A trace of the data set; as JSON, a line that :func:`models.math.solution.read_traces` reads.
    """

    provenance: Provenance = Field(description="Where it is from.")


class Candidate(NamedTuple):
    """A new problem before it is solved."""

    question: str
    provenance: Provenance


class Dataset(NamedTuple):
    """The data set, to be written by :func:`models.jsonl.write_jsonl`, and how it came about.
    """

    solutions: list[CodeSolution]
    stages: list[Stage]


def build_dataset(
    traces: Iterable[Trace], easy: Sequence[Problem], hard: Sequence[Problem], count: int, *,
    writer: Generator, solver: MathCoder, judged_by: Generator | None = None,
    options: InterpolationOptions = InterpolationOptions(),
) -> Dataset:
    """All steps: D0 of ``traces``, then what ``count`` requests for new problems come to.

    Parameters
    ----------
    easy, hard: seed problems, the paper's are GSM8K's and MATH's training problems.
    writer: writes problems. solver: the model of D0 with its sandbox. judged_by: the judge, if any.
    """
    stages = [Stage("right answers"), Stage("interpolation")]
    known = keep_right(traces, stages[0])
    candidates = interpolate(writer, easy, hard, count, stages[1], options)
    if judged_by is not None:
        stages.append(Stage("difficulty"))
        candidates = judge(judged_by, candidates, easy, hard, stages[-1], options)
    stages.append(Stage("self-distillation"))
    return Dataset([*known, *self_distil(solver, candidates, stages[-1], options)], stages)


def keep_right(traces: Iterable[Trace], stage: Stage) -> list[CodeSolution]:
    """D0: the solutions whose answer equals their ground truth, each of them once."""
    kept: list[CodeSolution] = []
    seen: set[tuple[object, ...]] = set()
    for trace in traces:
        if trace.ground_truth is None:
            stage.drop("no ground truth")
            continue
        answer = extract_answer(final_text(trace) or "")
        if answer is None:
            stage.drop("no answer")
        elif not grade(answer, trace.ground_truth.answer).equal:
            stage.drop("wrong answer")
        elif trace.messages in seen:
            stage.drop("duplicate")
        else:
            stage.keep()
            seen.add(trace.messages)
            kept.append(CodeSolution(messages=trace.messages, id=trace.id, origin=trace.origin,
                                     ground_truth=trace.ground_truth,
                                     provenance=Provenance(kind="seed")))
    return kept


def problem_prompt(easy: Problem, hard: Problem) -> str:
    """The request for a problem harder than one and simpler than the other."""
    return _prompt(
        "Write one new mathematics problem. It must be harder than Example 1 and easier than "
        "Example 2, must not be a copy of either with other names or numbers, and must have "
        "exactly one answer that can be computed. Write the problem only, no solution.\n\n"
        f"Example 1 (easy):\n{easy.question}\n\nExample 2 (hard):\n{hard.question}\n\nNew problem:")


def interpolate(
    generator: Generator, easy: Sequence[Problem], hard: Sequence[Problem], count: int,
    stage: Stage, options: InterpolationOptions = InterpolationOptions(),
) -> list[Candidate]:
    """Ask ``count`` times for a new problem between a random easy and a random hard one.

    Dropped are texts too short for a problem, copies of any problem of either list and of problems
    made before. Raises :class:`ParameterError` if there are no examples.
    """
    for name, problems in (("easy", easy), ("hard", hard)):
        if not problems:
            raise ParameterError(name, 0, "must have at least one problem", 1)
    chooser = random.Random(options.seed)
    pairs = [(chooser.choice(easy), chooser.choice(hard)) for _ in range(count)]
    index = SeedIndex(options.similarity)
    for problem in (*easy, *hard):
        index.add(problem.question, "copy of a seed problem")
    found: list[Candidate] = []
    for start in range(0, count, options.batch):
        chosen = pairs[start:start + options.batch]
        texts = generator.generate(
            [problem_prompt(*pair) for pair in chosen], stop=STOP, seed=options.seed + start,
            max_new_tokens=options.max_new_tokens, temperature=options.temperature)
        for (one, other), text in zip(chosen, texts, strict=True):
            question = _question(text)
            reason = ("too short" if len(question.split()) < options.shortest
                      else index.find(question))
            if reason:
                stage.drop(reason)
                continue
            stage.keep()
            index.add(question, "duplicate")
            found.append(Candidate(question, Provenance(
                kind="interpolated", easy=f"{one.source}:{one.id}",
                hard=f"{other.source}:{other.id}", seed=options.seed + start)))
    return found


def judge_prompt(one: str, other: str) -> str:
    """The request to say which of two problems is more difficult."""
    return _prompt(
        "Which problem is more difficult? Answer with Problem 1, Problem 2 or Tie, and nothing "
        f"else.\n\nProblem 1:\n{one}\n\nProblem 2:\n{other}")


def judge(
    generator: Generator, candidates: Sequence[Candidate], easy: Sequence[Problem],
    hard: Sequence[Problem], stage: Stage, options: InterpolationOptions = InterpolationOptions(),
) -> list[Candidate]:
    """The candidates that a judge finds harder than their easy example, easier than the hard one.

    Each pair is put to the judge in both orders, since judges prefer a place; an answer that
    changes with the order is a tie. Ties and answers that say nothing drop the candidate.
    """
    known = {f"{problem.source}:{problem.id}": problem.question for problem in (*easy, *hard)}
    pairs = [(known[name], candidate.question) for candidate in candidates
             for name in (candidate.provenance.easy, candidate.provenance.hard)]
    prompts = [judge_prompt(*order) for pair in pairs for order in (pair, pair[::-1])]
    texts: list[str] = []
    for start in range(0, len(prompts), options.batch):
        texts += generator.generate(prompts[start:start + options.batch], stop=STOP,
                                    max_new_tokens=options.max_new_tokens, seed=options.seed)
    winners = [_winner(one, other) for one, other in zip(texts[::2], texts[1::2], strict=True)]
    kept: list[Candidate] = []
    for number, candidate in enumerate(candidates):
        against_easy, against_hard = winners[2 * number:2 * number + 2]
        if against_easy is None or against_hard is None:
            stage.drop("no verdict")
        elif against_easy != "Problem 2":
            stage.drop("not harder than the easy example")
        elif against_hard != "Problem 1":
            stage.drop("not easier than the hard example")
        else:
            stage.keep()
            judged = {"easy": against_easy, "hard": against_hard}
            kept.append(Candidate(candidate.question, candidate.provenance.model_copy(
                update={"judged": judged})))
    return kept


def self_distil(
    solver: MathCoder, candidates: Sequence[Candidate], stage: Stage,
    options: InterpolationOptions = InterpolationOptions(),
) -> list[CodeSolution]:
    """The first of ``samples`` solutions of each problem on whose answer all of them agree."""
    asked = [candidate.question for candidate in candidates for _ in range(options.samples)]
    solutions = solver.solve(asked, temperature=options.solve_temperature, seed=options.seed)
    kept: list[CodeSolution] = []
    for number, candidate in enumerate(candidates):
        own = solutions[number * options.samples:(number + 1) * options.samples]
        answers = [extract_answer(final_text(each.trace) or "") if each.end == "message" else None
                   for each in own]
        given = [answer for answer in answers if answer is not None]
        if len(given) < len(answers):
            stage.drop("no answer")
        elif not all(grade(one, other).equal for at, one in enumerate(given)
                     for other in given[at + 1:]):
            stage.drop("answers differ")
        else:
            stage.keep()
            kept.append(CodeSolution(
                messages=own[0].trace.messages, id=f"interpolated-{number}",
                ground_truth=GroundTruth(answer=given[0]),
                provenance=candidate.provenance.model_copy(update={"answers": tuple(given)})))
    return kept


def _prompt(text: str) -> str:
    return render(problem_messages(SPECIAL_TOKEN.sub("", text)), open_role="assistant")


def _plain(text: str) -> str:
    return SPECIAL_TOKEN.sub("\n", text).strip()


def _question(text: str) -> str:
    """The problem in what a model wrote: without a heading, and without a solution behind it."""
    return _SOLUTION.sub("", _LABEL.sub("", _plain(text))).strip()


def _winner(there: str, back: str) -> Winner | None:
    """The verdict on a pair that was put in both orders."""
    one, other = _verdict(there), _verdict(back)
    if one is None or other is None:
        return None
    swapped: dict[Winner, Winner] = {"Problem 1": "Problem 2", "Problem 2": "Problem 1",
                                     "Tie": "Tie"}
    return one if one == swapped[other] else "Tie"


def _verdict(text: str) -> Winner | None:
    found = _VERDICT.search(_plain(text))
    if found is None:
        return None
    number = found.group(2)
    if number is None:
        return "Tie"
    return "Problem 1" if number == "1" else "Problem 2"
