"""Paths of code-based self-verification sampled from a small model, and votes over them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from benchmarks.math.mathcoder_training import solver
from benchmarks.math.shared_sandbox import SharedSandbox
from benchmarks.math.solutions import PROMPTS_OF, Form
from benchmarks.math.word_problems import Problem
from benchmarks.training import reproducible
from models.llm.llama import Llama
from models.math.grader import grade
from models.math.verification import SelfVerifier
from models.math.voting import PLAIN, Vote, Weights, precision_and_recall, vote

__all__ = ["WEIGHTS", "Informed", "information", "sample_votes", "shuffled", "won"]

WEIGHTS = Weights()
"""Those of :class:`models.math.voting.Weights`, chosen before anything was judged."""


class Informed(NamedTuple):
    """What verdicts are worth, True being the positive: shares in per cent, NaN of nothing.

    precision: of answers found true, those that are right. recall: of right answers, those found
    true. right: of all answers, those that are right: the precision of verdicts without
    information.
    """

    precision: float
    recall: float
    right: float


def sample_votes(
    model: Llama, asked: Sequence[Problem], form: Form, k: int, temperature: float, seed: int,
    size: str = "small",
) -> list[list[Vote]]:
    """``k`` paths for each problem, without repairs: the answer and the verdict of each."""
    questions = [problem.question for problem in asked for _ in range(k)]
    with SharedSandbox() as sandbox, reproducible(seed):
        verifier = SelfVerifier(solver(model, size, sandbox), PROMPTS_OF[form], repairs=0,
                                verdict_line=False)
        paths = verifier.solve(questions, temperature=temperature, seed=seed)
    votes = [path.vote for path in paths]
    return [votes[start:start + k] for start in range(0, len(votes), k)]


def won(votes: Sequence[Sequence[Vote]], asked: Sequence[Problem], weights: Weights = PLAIN
        ) -> list[bool]:
    """Of each problem, whether the vote gives the right answer."""
    winners = [vote(of_one, weights).winner for of_one in votes]
    return [winner is not None and grade(winner, problem.answer).equal
            for winner, problem in zip(winners, asked, strict=True)]


def shuffled(votes: Sequence[Sequence[Vote]], seed: int) -> list[list[Vote]]:
    """The votes with all verdicts dealt out by chance: as many of each, without information."""
    states = [each.state for of_one in votes for each in of_one]
    random.Random(f"verdicts {seed}").shuffle(states)
    dealt = iter(states)
    return [[each._replace(state=next(dealt)) for each in of_one] for of_one in votes]


def information(votes: Sequence[Sequence[Vote]], asked: Sequence[Problem]) -> Informed:
    """Precision and recall of the verdict True over all votes that have an answer."""
    judged = [(each.state == "True", grade(each.answer, problem.answer).equal)
              for of_one, problem in zip(votes, asked, strict=True)
              for each in of_one if each.answer is not None]
    precision, recall = (math.nan if share is None else share
                         for share in precision_and_recall(judged))
    return Informed(precision, recall,
                    100 * fmean(right for _, right in judged) if judged else math.nan)
