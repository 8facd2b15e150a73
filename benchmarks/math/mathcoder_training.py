"""MathCoder in small: a Llama trained from scratch on generated problems, judged by the real loop.

``tiny`` has problems of one step and trains in seconds; ``small`` has all of them and takes a
minute or two on one thread. Solutions are trained with the loss of MathCoder's fine-tuning, and
held-out problems are solved greedily by the inference loop with the sandbox.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from algorithms import ParameterError, closest, sparsify
from benchmarks.llm.tuning import TuningRecipe, minimise_steps, response_loss
from benchmarks.math.encoding import tokenizer
from benchmarks.math.shared_sandbox import SharedSandbox
from benchmarks.math.solutions import Form, misread, solved
from benchmarks.math.word_problems import Problem, problems
from benchmarks.training import reproducible
from benchmarks.workload import Progress
from models.llm.instructions import IGNORED, InstructionBatch
from models.llm.llama import Llama, llama
from models.math.generators import HfGenerator
from models.math.grader import extract_answer, grade
from models.math.labels import Labelled, collate, labelled
from models.math.solution import BlockType, final_text
from models.math.solver import MathCoder, Solution, SolverOptions
from rtl.pattern import NmPattern

__all__ = ["MODES", "TRAINING", "Mode", "Training", "accuracy", "batches", "fit", "hits", "model",
           "solver", "training_samples"]

Mode = Literal["code", "own", "text"]
"""How a model is judged: its code is executed; it writes the outputs of its code itself; or it has
no code to execute."""

MODES: tuple[Mode, ...] = get_args(Mode)

_SPREAD = 5.0
"""Weights start so many times as wide as transformers has them, at 0.1: in models this narrow,
attention that starts at 0.02 takes several times as long to find what to copy."""

_EXECUTIONS: tuple[BlockType, ...] = ("execution",)

_BUCKET = 32
"""Batches among whose sequences those of like length are put together."""

_TEST_BATCH = 100
_NEW_TOKENS = 90
"""Of one block: the longest take 80."""


@dataclass(frozen=True)
class Training:
    """recipe: of all arms alike. problems: so many to train on. refuted: share of wrong solutions
    among those that are checked, so that both verdicts are learnt."""

    recipe: TuningRecipe
    problems: int
    refuted: float = 0.3


TRAINING = {
    "tiny": Training(TuningRecipe(steps=500, batch=16, rate=5e-3), problems=1000),
    "small": Training(TuningRecipe(steps=700, batch=16, rate=4e-3), problems=8000),
}


def model(size: str, seed: int = 0) -> Llama:
    """A fresh model, whose weights depend on ``seed`` alone: :func:`models.llm.llama.llama`, with
    wider matrices at the start."""
    made = llama(size, seed)
    with torch.no_grad():
        for values in made.parameters():
            if values.ndim > 1:
                values.mul_(_SPREAD)
    return made


def training_samples(
    size: str, form: Form, seed: int, masked: Collection[BlockType] = _EXECUTIONS,
    count: int | None = None,
) -> list[Labelled]:
    """Solved problems of the training split as token ids and labels.

    Of forms that check, a share is solved wrongly, and found false; wrong solutions have no loss.
    ``count`` is the size's own unless given.
    """
    plan, words = _plan(size), tokenizer(size)
    chooser = random.Random(f"misread {seed}")
    code = words.convert_tokens_to_ids("<|code|>")
    samples = []
    for problem in problems("train", count or plan.problems, seed, size):
        wrong = form.endswith("-verified") and chooser.random() < plan.refuted
        given = misread(problem, chooser) if wrong else None
        sample = labelled(solved(problem, form, given), words, masked=masked)
        if wrong:
            check = len(sample.ids) - 1 - sample.ids[::-1].index(code)
            sample = sample._replace(
                labels=(*[IGNORED] * check, *sample.labels[check:]))
        samples.append(sample)
    return samples


def batches(samples: Sequence[Labelled], batch: int, seed: int) -> Iterator[InstructionBatch]:
    """Batches without end, in a new order each time around; sequences of like length together."""
    chooser = random.Random(f"batches {seed}")
    for _ in itertools.count():
        order = chooser.sample(samples, len(samples))
        groups = []
        for start in range(0, len(order), _BUCKET * batch):
            bucket = sorted(order[start:start + _BUCKET * batch], key=lambda each: len(each.ids))
            groups += [bucket[at:at + batch] for at in range(0, len(bucket), batch)]
        chooser.shuffle(groups)
        yield from map(collate, groups)


def fit(
    size: str = "small", seed: int = 0, form: Form = "code", *,
    masked: Collection[BlockType] = _EXECUTIONS, method: str = "dense",
    pattern: str | NmPattern = "2:8", gradient: str | NmPattern = "1:2",
    steps: int | None = None, progress: Progress | None = None,
) -> Llama:
    """A model trained from scratch on solutions of one form, in evaluation mode.

    Parameters
    ----------
    size: of :data:`TRAINING`. seed: of weights, problems and their order, whatever the form.
    masked: types of blocks without a loss.
    method, pattern, gradient: as for :func:`algorithms.sparsify`, in whose layers the model stays
        for any method but ``"dense"``; in native precision.
    steps: the size's own unless given.
    progress: called about ten times.

    Raises
    ------
    ParameterError: an unknown size, form, block type, method or pattern.
    """
    plan = _plan(size)
    recipe = replace(plan.recipe, steps=steps or plan.recipe.steps)
    used = min(plan.problems, recipe.steps * recipe.batch)
    samples = training_samples(size, form, seed, masked, used)
    made = model(size, seed)
    if method != "dense":
        sparsify(made, method, pattern, gradient=gradient, precision="native")
    with reproducible(seed):
        minimise_steps(made, (partial(_loss, made, batch) for batch in
                              batches(samples, recipe.batch, seed)), recipe, progress)
    return made.eval()


def solver(model: Llama, size: str, sandbox: SharedSandbox, mode: Mode = "code") -> MathCoder:
    """MathCoder's loop around a trained model."""
    generator = HfGenerator(model.base, tokenizer(size), batch_size=_TEST_BATCH)
    options = SolverOptions(executions=4, blocks=8, max_new_tokens=_NEW_TOKENS, batch=_TEST_BATCH,
                            execute=mode == "code", workers=1)
    return MathCoder(generator, sandbox.session, options)


def hits(
    model: Llama, asked: Sequence[Problem], mode: Mode = "code", size: str = "small"
) -> list[bool]:
    """Of each problem, whether the model solves it, by the grader."""
    if mode not in MODES:
        raise ParameterError("mode", mode, f"must be one of {', '.join(MODES)}",
                             closest(str(mode), MODES) or "code")
    with SharedSandbox() as sandbox, reproducible(0):
        found = solver(model, size, sandbox, mode).solve([each.question for each in asked])
    return [_right(solution, problem) for solution, problem in zip(found, asked, strict=True)]


def accuracy(
    model: Llama, asked: Sequence[Problem], mode: Mode = "code", size: str = "small"
) -> float:
    """Per cent of the problems that the model solves, see :func:`hits`."""
    found = hits(model, asked, mode, size)
    return 100 * sum(found) / len(found)


def _right(solution: Solution, problem: Problem) -> bool:
    """Only a message that the model ended itself has an answer."""
    answer = extract_answer(final_text(solution.trace) or "")
    return (solution.end == "message" and answer is not None
            and grade(answer, problem.answer).equal)


def _plan(size: str) -> Training:
    if size not in TRAINING:
        raise ParameterError("size", size, f"must be one of {', '.join(TRAINING)}",
                             closest(str(size), TRAINING) or "small")
    return TRAINING[size]


def _loss(model: Llama, batch: InstructionBatch) -> Tensor:
    return response_loss(model(batch.ids), batch.labels)
