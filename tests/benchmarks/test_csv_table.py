"""The ablation of verification and voting on transcripts whose every figure can be worked out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import pytest

from benchmarks.math.csv_table import (
    Group,
    accuracy,
    groups_of,
    main,
    read_samples,
    sizes,
    verifier,
)
from models.math.prompts import PROMPTS, REPAIR
from models.math.voting import PLAIN, State, Vote, Weights, vote

Answer = tuple[str, State | None]
"""An answer and its verdict line; without one the sample was not asked to verify."""


def line(problem: str, truth: str, *answers: Answer) -> dict[str, Any]:
    """A transcript whose answers after the first came after repairs."""
    csv = answers[0][1] is not None
    question = PROMPTS["csv" if csv else "basic"].question(problem, csv)
    messages: list[dict[str, Any]] = []
    for asked, (answer, state) in zip((question, *[REPAIR] * len(answers)), answers, strict=False):
        said = f"\\boxed{{{answer}}}" + (f"\nVerification: {state}" if state else "")
        blocks = [{"type": "code", "content": answer}, {"type": "execution", "content": answer},
                  {"type": "text", "content": said}]
        messages += [{"role": "user", "content": [{"type": "text", "content": asked}]},
                     {"role": "assistant", "content": blocks}]
    return {"messages": messages, "ground_truth": {"answer": truth, "solution": ""}}


def stored(tmp_path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path = tmp_path / "transcripts.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


LINES = [
    # Two wrong answers that were found out against one right answer that was verified.
    line("p", "7", ("7", "True")), line("p", "7", ("9", "False"), ("9", "False")),
    line("p", "7", ("9", "False")), line("p", "7", ("8", "Uncertain")),
    # Right after a repair, equal by the grader alone.
    line("q", "0.5", ("3", "False"), (r"\frac{1}{2}", "True")), line("q", "0.5", ("0.5", "True")),
    line("q", "0.5", ("4", "True")), line("q", "0.5", ("4", "Uncertain")),
    line("p", "7", ("9", None)), line("p", "7", ("7", None)),
    line("q", "0.5", ("0.5", None)), line("q", "0.5", ("4", None)),
]


def grouped(tmp_path: Path, lines: Sequence[dict[str, Any]] = LINES) -> list[Group]:
    return groups_of(read_samples(stored(tmp_path, lines)))


def test_samples_are_read_and_grouped(tmp_path: Path) -> None:
    without, with_csv = grouped(tmp_path)
    assert (without.name, with_csv.name) == ("no CSV", "CSV")
    assert [list(group.problems) for group in (without, with_csv)] == [["p", "q"]] * 2
    assert (without.least, with_csv.least) == (2, 4)
    assert [(sample.at(0).vote, sample.at(9).vote) for sample in with_csv.problems["q"][:2]] == [
        (("3", "False"), (r"\frac{1}{2}", "True")), (("0.5", "True"), ("0.5", "True"))]
    assert [sample.at(1).vote.state for sample in with_csv.problems["p"]] == [
        "True", "False", "False", "Uncertain"]
    assert {sample.attempts[0].vote.state for sample in without.samples} == {"Uncertain"}


def test_votes_among_all_samples(tmp_path: Path) -> None:
    without, with_csv = grouped(tmp_path)
    # Plain: 9 has two votes of four and is wrong; 0.5 and 4 tie, and 0.5 was sampled first.
    assert accuracy(with_csv, 4, None, range(3)) == (50.0, None)
    # Weighted: 7 has 1, 9 has 0.4; 0.5 has 2, 4 has 1.5.
    assert accuracy(with_csv, 4, Weights(), range(3)) == (100.0, None)
    # Without the repair 0.5 has 1, 4 has 1.5.
    assert accuracy(with_csv, 4, Weights(), range(3), depth=0) == (50.0, None)
    # Ties go to the first sampled: 9 for p, 0.5 for q.
    assert accuracy(without, 2, None, range(3)) == (50.0, None)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("weights", [PLAIN, Weights()])
def test_subsamples_have_the_expected_accuracy(tmp_path: Path, count: int,
                                               weights: Weights) -> None:
    """The mean over many seeds nears the mean over all subsets: 400 seeds, 4 standard errors."""
    _, group = grouped(tmp_path)
    exact = 100 * fmean(
        group.right(vote([sample.attempts[-1].vote for sample in drawn], weights,
                         group.equal).winner, drawn[0])
        for samples in group.problems.values()
        for drawn in itertools.combinations(samples, count))
    score = accuracy(group, count, weights, range(400))
    assert score.spread is not None
    assert abs(score.mean - exact) <= 4 * score.spread / 20
    assert score == accuracy(group, count, weights, range(400))


def test_all_weights_see_the_same_subsamples(tmp_path: Path) -> None:
    _, group = grouped(tmp_path)
    scaled = Weights(2.0, 1.0, 0.4)
    for count in (1, 2, 3):
        assert accuracy(group, count, scaled, range(9)) == accuracy(group, count, Weights(),
                                                                    range(9))


def test_the_plain_majority_sees_no_verdict(tmp_path: Path) -> None:
    """A tie that True votes would win, and the first sampled loses."""
    group, = grouped(tmp_path, [line("p", "7", ("9", "False")), line("p", "7", ("7", "True"))])
    assert accuracy(group, 2, None, [0]).mean == 0
    assert accuracy(group, 2, PLAIN, [0]).mean == 100


def test_quality_of_the_verifier(tmp_path: Path) -> None:
    without, with_csv = grouped(tmp_path)
    # True: 7, 1/2, 0.5 right and 4 wrong. All three right answers were called True.
    assert verifier(with_csv) == (75.0, 100.0, 87.5)
    assert verifier(without) == (None, 0.0, 50.0)


@pytest.mark.parametrize(("most", "expected"), [
    (1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (10, [1, 2, 4, 8, 10])])
def test_sizes(most: int, expected: list[int]) -> None:
    assert sizes(most) == expected


def simulated(informative: bool, problems: int = 60, count: int = 9) -> list[dict[str, Any]]:
    """Samples of a model that is right 4 times in 10 and else often makes the same mistake; seed 1.

    Its verifier says True of 8 in 10 right answers, and of 2 in 10 wrong ones if it is informative,
    of as many wrong as right ones if it is not.
    """
    random = Random(1)
    lines = []
    for problem in range(problems):
        for _ in range(count):
            right = random.random() < 0.4
            answer = "1" if right else random.choice(["2", "2", "2", "3"])
            said = random.random() < (0.8 if right or not informative else 0.2)
            lines.append(line(f"problem {problem}", "1", (answer, "True" if said else "False")))
    return lines


@pytest.mark.parametrize("informative", [True, False])
def test_voting_by_a_verifier_is_as_good_as_the_verifier(tmp_path: Path,
                                                         informative: bool) -> None:
    group, = grouped(tmp_path, simulated(informative))
    weighted, plain = (accuracy(group, 9, weights, [0]).mean for weights in (Weights(), None))
    if informative:
        assert weighted >= plain + 15, (weighted, plain, "seed 1")
    else:
        assert abs(weighted - plain) <= 12, (weighted, plain, "seed 1")


def test_the_command_prints_every_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(stored(tmp_path, LINES))]) == 0
    printed = capsys.readouterr().out
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in (
        row.strip("│").split("│") for row in printed.splitlines() if row.startswith("│"))}
    assert rows["no CSV: single sample"][0] == "50.00"
    assert rows["CSV: single sample"][0] == "37.50"
    assert rows["no CSV: plain majority"][1:] == ["50.00", "-"]
    assert rows["CSV: plain majority"][2] == "50.00"
    assert rows["CSV: weighted 1/0.5/0.2"][2] == "100.00"
    assert rows["<= 0"][2:] == ["50.00", "2.00", "1.00"]
    assert rows["<= 1"][2:] == ["100.00", "2.50", "1.25"]
    assert rows["CSV"] == ["8", "2", "37.50", "50.00", "25.00", "25.00", "75.00", "100.00", "87.50"]
    assert rows["no CSV"][-3:] == ["-", "0.00", "50.00"]
    assert "±" in rows["CSV: plain majority"][0]
    assert "not the same" not in printed
    assert main([str(stored(tmp_path, LINES))]) == 0
    assert capsys.readouterr().out == printed


def test_different_problems_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(stored(tmp_path, LINES[:9])), "--weights", "1", "1", "0", "--seeds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "problems with and without CSV are not the same" in printed
    assert "weighted 1/1/0" in printed and "±" not in printed


@pytest.mark.parametrize(("lines", "options", "message"), [
    ([], [], "holds no transcript"),
    ([LINES[0], {"messages": LINES[0]["messages"]}], [],
     "transcripts.jsonl:2='trace': has no ground_truth"),
    ([{**LINES[0], "id": "x", "messages": LINES[0]["messages"][1:]}], [],
     "transcripts.jsonl:1='x': has no message of the user"),
    (LINES, ["--seeds", "0"], "--seeds=0: must be 1 or more"),
    (LINES, ["--weights", "1", "0.5", "-1"], "weights.false=-1.0: must be 0 or more"),
])
def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                             lines: list[dict[str, Any]], options: list[str],
                             message: str) -> None:
    assert main([str(stored(tmp_path, lines)), *options]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_votes_are_of_the_final_attempt(tmp_path: Path) -> None:
    _, group = grouped(tmp_path)
    assert group.problems["q"][0].attempts[-1].vote == Vote(r"\frac{1}{2}", "True")
