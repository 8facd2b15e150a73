"""Votes: the score of the paper, clusters of equal answers, ties, and what must not change."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from algorithms import ParameterError
from models.math.voting import PLAIN, STATES, State, Vote, Weights, vote

ANSWERS = ("1", "2", "3", "x+1")
VOTES = st.lists(st.builds(Vote, st.sampled_from((*ANSWERS, None)), st.sampled_from(STATES)),
                 max_size=9)
WEIGHT = st.sampled_from((0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5))
WEIGHTS = st.tuples(WEIGHT, WEIGHT, WEIGHT).filter(any).map(lambda each: Weights(*each))


def identical(one: str, other: str) -> bool:
    return one == other


def reference(votes: list[Vote], weights: Weights) -> str | None:
    """The winner by the formula, from every answer on its own."""
    exact = {"True": Fraction(str(weights.true)), "Uncertain": Fraction(str(weights.uncertain)),
             "False": Fraction(str(weights.false))}
    best, winner = None, None
    for answer in {each.answer for each in votes if each.answer is not None}:
        cast = [each.state for each in votes if each.answer == answer]
        order = (sum(exact[state] for state in cast), cast.count("True"),
                 -[each.answer for each in votes].index(answer))
        if best is None or order > best:
            best, winner = order, answer
    return winner


@given(VOTES, WEIGHTS)
def test_the_winner_is_the_formulas(votes: list[Vote], weights: Weights) -> None:
    assert vote(votes, weights, identical).winner == reference(votes, weights)


@given(VOTES, WEIGHTS)
def test_scores_and_clusters_account_for_every_answer(votes: list[Vote], weights: Weights) -> None:
    tally = vote(votes, weights, identical)
    members = sorted(itertools.chain.from_iterable(each.members for each in tally.clusters))
    assert members == [i for i, each in enumerate(votes) if each.answer is not None]
    for cluster in tally.clusters:
        cast = Counter(votes[i].state for i in cluster.members)
        assert {votes[i].answer for i in cluster.members} == {cluster.answer}
        assert cluster.verified == cast["True"]
        assert cluster.score == pytest.approx(
            weights.true * cast["True"] + weights.uncertain * cast["Uncertain"]
            + weights.false * cast["False"])
    scores = [each.score for each in tally.clusters]
    assert scores == sorted(scores, reverse=True)


@given(VOTES, st.sampled_from((0.1, 0.7, 1.0, 3.0)))
def test_equal_weights_are_the_plain_majority(votes: list[Vote], weight: float) -> None:
    winner = vote(votes, Weights(weight, weight, weight), identical).winner
    assert winner == vote(votes, PLAIN, identical).winner
    counts = Counter(each.answer for each in votes if each.answer is not None)
    if counts:
        assert winner is not None and counts[winner] == max(counts.values())


@given(VOTES, WEIGHTS, st.randoms(use_true_random=False))
def test_order_matters_to_ties_alone(votes: list[Vote], weights: Weights, random: object) -> None:
    tally = vote(votes, weights, identical)
    best = [each for each in tally.clusters
            if (each.score, each.verified) == (tally.clusters[0].score, tally.clusters[0].verified)]
    assume(len(best) == 1)
    shuffled = list(votes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = vote(shuffled, weights, identical)
    assert again.winner == tally.winner
    assert ({(each.answer, each.score) for each in again.clusters}
            == {(each.answer, each.score) for each in tally.clusters})


@given(VOTES, WEIGHTS)
def test_another_true_vote_for_the_winner_keeps_it(votes: list[Vote], weights: Weights) -> None:
    winner = vote(votes, weights, identical).winner
    assume(winner is not None)
    assert vote([*votes, Vote(winner, "True")], weights, identical).winner == winner


@given(VOTES, WEIGHTS)
def test_abstentions_change_nothing(votes: list[Vote], weights: Weights) -> None:
    cast = [each for each in votes if each.answer is not None]
    assert vote(votes, weights, identical).winner == vote(cast, weights, identical).winner


def test_verification_outweighs_numbers() -> None:
    votes = [Vote("7", "False"), Vote("7", "False"), Vote("7", "False"), Vote("9", "True")]
    assert vote(votes).winner == "7"
    tally = vote(votes, Weights())
    assert tally.winner == "9"
    assert [(each.answer, each.members) for each in tally.clusters] == [("9", (3,)),
                                                                        ("7", (0, 1, 2))]
    assert [each.score for each in tally.clusters] == pytest.approx([1.0, 0.6])


@pytest.mark.parametrize(("votes", "winner"), [
    # 0.2 * 5 and 0.5 * 2 are 1 exactly: one True beats them at the tie.
    ([*[Vote("5", "False")] * 5, Vote("4", "True")], "4"),
    ([*[Vote("5", "Uncertain")] * 2, Vote("4", "True")], "4"),
    # Without a True the first sampled wins.
    ([*[Vote("5", "Uncertain")] * 2, *[Vote("4", "False")] * 5], "5"),
    ([*[Vote("4", "False")] * 5, *[Vote("5", "Uncertain")] * 2], "4"),
    ([Vote(None, "True"), Vote("4", "False")], "4"),
    ([Vote(None, "True")], None),
    ([], None),
])
def test_ties_and_abstentions(votes: list[Vote], winner: str | None) -> None:
    assert vote(votes, Weights(), identical).winner == winner


def test_ties_of_decimal_weights_are_exact() -> None:
    assert 0.1 * 3 != 0.3
    weights = Weights(true=0.3, uncertain=0.1, false=0.0)
    tally = vote([*[Vote("5", "Uncertain")] * 3, Vote("4", "True")], weights, identical)
    assert tally.winner == "4"


def test_clusters_compare_with_their_first_member() -> None:
    """1 is near 2 and 2 near 3, but 1 not near 3."""
    def near(one: str, other: str) -> bool:
        return abs(int(one) - int(other)) <= 1
    members = [each.members for each in vote([Vote(a) for a in "123"], same=near).clusters]
    assert members == [(0, 1), (2,)]
    members = [each.members for each in vote([Vote(a) for a in "213"], same=near).clusters]
    assert members == [(0, 1, 2)]


def test_answers_are_compared_by_the_grader() -> None:
    votes = [Vote("0.5"), Vote("2"), Vote(r"\frac{1}{2}")]
    tally = vote(votes)
    assert tally.winner == "0.5"
    assert tally.clusters[0].members == (0, 2)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_bad_weights_are_named(state: State, value: float) -> None:
    name = state.lower()
    with pytest.raises(ParameterError, match=rf"weights\.{name}={value!r}: must be 0 or more"):
        Weights(**{name: value})


def test_weights_are_not_all_zero() -> None:
    with pytest.raises(ParameterError, match="must not all be 0"):
        Weights(0.0, 0.0, 0.0)
    assert vote([Vote("1", "False")], Weights(0.0, 0.0, 1.0), identical).winner == "1"
