"""Verification-guided weighted majority voting (arXiv:2308.07921, section 3.3), and the plain one.

Score(a) = sum over v in {True, Uncertain, False} of w_v * #{i : a_i = a, v_i = v}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from typing import Literal, NamedTuple

from algorithms import ParameterError
from models.math.grader import grade

__all__ = ["PLAIN", "STATES", "Cluster", "Same", "State", "Tally", "Vote", "Weights",
           "precision_and_recall", "same_answer", "vote"]

State = Literal["True", "False", "Uncertain"]
"""What a path says of its own answer."""

STATES: tuple[State, ...] = ("True", "Uncertain", "False")

Same = Callable[[str, str], bool]
"""Whether two answers are the same."""


class Vote(NamedTuple):
    """One sampled path: its answer, ``None`` for no answer, and the state of its verification."""

    answer: str | None
    state: State = "Uncertain"


@dataclass(frozen=True)
class Weights:
    """What a vote of each state counts, 0 or more.

    The paper asks for true > uncertain >= false and does not print its values; the defaults are
    ours. Other orders are worth measuring too and raise nothing. Raises :class:`ParameterError`
    for a weight that is negative or not finite, or if all are 0.
    """

    true: float = 1.0
    uncertain: float = 0.5
    false: float = 0.2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (isfinite(value) and value >= 0):
                raise ParameterError(f"weights.{name}", value, "must be 0 or more and finite", 0.0)
        if not any(vars(self).values()):
            raise ParameterError("weights", tuple(vars(self).values()), "must not all be 0",
                                 (1.0, 0.5, 0.2))

    def of(self, state: State) -> Fraction:
        """The weight of a state, as the decimal number that it was written as."""
        value = {"True": self.true, "Uncertain": self.uncertain, "False": self.false}[state]
        return Fraction(repr(float(value)))


PLAIN = Weights(1.0, 1.0, 1.0)
"""Plain majority voting: every answer counts alike."""


class Cluster(NamedTuple):
    """Votes for one answer.

    answer: that of the first vote. members: indices of the votes, rising. score: sum of their
    weights. verified: how many are True.
    """

    answer: str
    members: tuple[int, ...]
    score: float
    verified: int


class Tally(NamedTuple):
    """Result of a vote: the winning answer, ``None`` if nobody answered; clusters, best first."""

    winner: str | None
    clusters: tuple[Cluster, ...]


def precision_and_recall(judged: Sequence[tuple[bool, bool]]) -> tuple[float | None, float | None]:
    """Of answers, each with whether it was found true and whether it is right: the share in percent
    of those found true that are right, and of the right ones that were found true; ``None`` for a
    share of nothing."""
    both = sum(true and right for true, right in judged)
    return (_percent(both, sum(true for true, _ in judged)),
            _percent(both, sum(right for _, right in judged)))


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def same_answer(one: str, other: str) -> bool:
    """Equality by the grader."""
    return one == other or grade(one, other).equal


def vote(votes: Sequence[Vote], weights: Weights = PLAIN, same: Same = same_answer) -> Tally:
    """The answer with the highest score.

    Answers are compared with the first member of each cluster in the order of the votes and join
    the first that they equal: equality by the grader need not be transitive, and so the clusters
    are still defined. Of equal scores, which are compared exactly, the one with more True votes
    wins, then the one sampled first. Votes without an answer do not count.
    """
    groups: list[tuple[str, list[int]]] = []
    for index, (answer, _) in enumerate(votes):
        if answer is None:
            continue
        members = next((members for first, members in groups if same(first, answer)), None)
        if members is None:
            groups.append((answer, [index]))
        else:
            members.append(index)
    clusters = []
    for answer, members in groups:
        states = [votes[i].state for i in members]
        score = sum((weights.of(state) * states.count(state) for state in STATES), Fraction())
        clusters.append((score, Cluster(answer, tuple(members), float(score),
                                        states.count("True"))))
    clusters.sort(key=lambda each: (-each[0], -each[1].verified, each[1].members[0]))
    ranked = tuple(cluster for _, cluster in clusters)
    return Tally(ranked[0].answer if ranked else None, ranked)
