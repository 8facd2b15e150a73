"""The ablation that the CSV paper (arXiv:2308.07921) lacks, from stored transcripts in one run.

The paper compares verification-weighted voting over many samples with one sample without
verification. Here method and sampling are told apart: with and without verification, each as one
sample, plain majority and weighted majority of 1, 2, 4, ... samples; repairs (depth) against
samples (breadth); and how good the verifier is.

``python -m benchmarks.math.csv_table transcripts.jsonl``: a line for each sample, in the format of
:mod:`models.math.solution`, with ``ground_truth``; several samples of a problem. Samples whose
question has a verifying prompt of :mod:`models.math.prompts` count as CSV, all others as without.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from typing import NamedTuple

from rich.table import Table

from algorithms import ParameterError
from benchmarks.console import one_line_errors, stdout
from models.math.prompts import recognise
from models.math.solution import read_traces
from models.math.verification import Attempt, attempts
from models.math.voting import (
    PLAIN,
    STATES,
    State,
    Vote,
    Weights,
    precision_and_recall,
    same_answer,
    vote,
)

__all__ = ["Group", "Sample", "Score", "Verifier", "accuracy", "depth_table", "groups_of", "main",
           "read_samples", "sizes", "verifier", "verifier_table", "vote_table"]


class Sample(NamedTuple):
    """One transcript: what it asks, whether it was asked to verify, the right answer, attempts."""

    problem: str
    csv: bool
    truth: str
    attempts: tuple[Attempt, ...]

    def at(self, depth: int) -> Attempt:
        """The attempt after at most ``depth`` repairs."""
        return self.attempts[min(depth, len(self.attempts) - 1)]


class Group(NamedTuple):
    """Samples of one method by problem; ``equal`` says whether two answers are the same."""

    name: str
    problems: Mapping[str, Sequence[Sample]]
    equal: Callable[[str, str], bool]

    @property
    def samples(self) -> list[Sample]:
        """All of them."""
        return [sample for samples in self.problems.values() for sample in samples]

    @property
    def least(self) -> int:
        """Fewest samples of a problem: votes cannot be larger."""
        return min(map(len, self.problems.values()))

    def right(self, answer: str | None, sample: Sample) -> bool:
        """Whether an answer to the sample's problem is right; none is not."""
        return answer is not None and self.equal(answer, sample.truth)


class Score(NamedTuple):
    """Accuracy in percent: mean over subsamples, and their standard deviation; ``None`` if there is
    one subsample only."""

    mean: float
    spread: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.spread is None else f" ± {self.spread:.2f}")


class Verifier(NamedTuple):
    """Quality of verdicts, True as positive, in percent; ``None`` for 0 of 0."""

    precision: float | None
    recall: float | None
    accuracy: float


def read_samples(path: str | Path) -> list[Sample]:
    """Samples of a file; :class:`ParameterError` with file and line for one without a question or a
    right answer, and for a file without any."""
    samples = []
    for trace in read_traces(path):
        asked = next((message for message in trace.messages if message.role == "user"), None)
        if trace.ground_truth is None or asked is None:
            missing = "ground_truth" if trace.ground_truth is None else "message of the user"
            raise ParameterError(trace.origin, trace.id or "trace", f"has no {missing}")
        prompt, problem = recognise("".join(block.content for block in asked.content))
        samples.append(Sample(problem, prompt.verifies, trace.ground_truth.answer,
                              attempts(trace.messages)))
    if not samples:
        raise ParameterError("file", str(path), "holds no transcript")
    return samples


def groups_of(samples: Sequence[Sample]) -> list[Group]:
    """Samples without and with verification, as far as there are any. The grader compares each two
    answers once."""
    known: dict[tuple[str, str], bool] = {}

    def equal(one: str, other: str) -> bool:
        if (one, other) not in known:
            known[one, other] = same_answer(one, other)
        return known[one, other]

    groups = []
    for csv, name in ((False, "no CSV"), (True, "CSV")):
        problems: dict[str, list[Sample]] = {}
        for sample in samples:
            if sample.csv == csv:
                problems.setdefault(sample.problem, []).append(sample)
        if problems:
            groups.append(Group(name, problems, equal))
    return groups


def sizes(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``, and ``most`` itself."""
    return sorted({1 << power for power in range(most.bit_length())} | {most})


def accuracy(group: Group, count: int, weights: Weights | None, seeds: Sequence[int],
             depth: int | None = None) -> Score:
    """Accuracy of votes among ``count`` samples of each problem, after at most ``depth`` repairs.

    Without ``weights`` it is the plain majority, which sees no verdict, not even to break ties:
    with them a baseline would owe part of its accuracy to the verifier.
    A seed draws one subsample of each problem, without replacement and in the order of the file;
    all weights and depths see the same ones.
    """
    last = max(len(sample.attempts) for sample in group.samples)
    results = []
    for seed in seeds:
        right = 0
        for problem, samples in group.problems.items():
            drawn = sorted(Random(f"{seed} {problem}").sample(range(len(samples)), count))
            votes = [samples[i].at(last if depth is None else depth).vote for i in drawn]
            if weights is None:
                votes = [Vote(each.answer) for each in votes]
            right += group.right(vote(votes, weights or PLAIN, group.equal).winner, samples[0])
        results.append(100 * right / len(group.problems))
    whole = all(len(samples) == count for samples in group.problems.values())
    return Score(fmean(results), stdev(results) if len(results) > 1 and not whole else None)


def verifier(group: Group) -> Verifier:
    """Quality of the verdicts on final answers."""
    final = [(sample.attempts[-1].verdict.state == "True",
              group.right(sample.attempts[-1].answer, sample)) for sample in group.samples]
    return Verifier(*precision_and_recall(final), 100 * fmean(says == is_ for says, is_ in final))


def vote_table(groups: Sequence[Group], weights: Weights, seeds: Sequence[int]) -> Table:
    """Accuracy by method and number of samples."""
    columns = sizes(max(group.least for group in groups))
    table = Table(title="accuracy, %, of votes among k samples")
    _columns(table, "", *(f"k = {count}" for count in columns))
    for group in groups:
        single = 100 * fmean(group.right(sample.attempts[-1].answer, sample)
                             for sample in group.samples)
        table.add_row(f"{group.name}: single sample", f"{single:.2f}")
        for name, chosen in (("plain majority", None), (_named(weights), weights)):
            table.add_row(f"{group.name}: {name}", *(
                str(accuracy(group, count, chosen, seeds)) if count <= group.least else "-"
                for count in columns))
        table.add_section()
    return table


def depth_table(group: Group, weights: Weights, seeds: Sequence[int]) -> Table:
    """Accuracy of the weighted vote by repairs and number of samples, and what a sample costs."""
    columns = sizes(group.least)
    table = Table(title=f"{group.name}: depth against breadth, accuracy of the weighted vote, %")
    _columns(table, "repairs", *(f"k = {count}" for count in columns), "blocks written",
             "executions")
    for depth in range(max(len(sample.attempts) for sample in group.samples)):
        reached = [sample.at(depth) for sample in group.samples]
        table.add_row(f"<= {depth}", *(str(accuracy(group, count, weights, seeds, depth))
                                       for count in columns),
                      f"{fmean(each.written for each in reached):.2f}",
                      f"{fmean(each.executions for each in reached):.2f}")
    return table


def verifier_table(groups: Sequence[Group]) -> Table:
    """Quality of verdicts beside the accuracy of what they judge."""
    table = Table(title="verdicts on final answers, %, True as positive")
    _columns(table, "", "samples", "problems", "answers right", *STATES, "precision", "recall",
             "accuracy")
    for group in groups:
        states: list[State] = [sample.attempts[-1].verdict.state for sample in group.samples]
        right = fmean(group.right(sample.attempts[-1].answer, sample) for sample in group.samples)
        quality = ["-" if value is None else f"{value:.2f}" for value in verifier(group)]
        table.add_row(group.name, f"{len(states)}", f"{len(group.problems)}", f"{100 * right:.2f}",
                      *(f"{100 * states.count(state) / len(states):.2f}" for state in STATES),
                      *quality)
    return table


def _columns(table: Table, first: str, *others: str) -> None:
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")


def _named(weights: Weights) -> str:
    return f"weighted {weights.true:g}/{weights.uncertain:g}/{weights.false:g}"


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.math.csv_table",
                                     description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("transcripts", help="JSONL file of transcripts with ground truth")
    parser.add_argument("--weights", nargs=3, type=float, metavar=("T", "U", "F"),
                        default=(1.0, 0.5, 0.2), help="of True, Uncertain and False votes")
    parser.add_argument("--seeds", type=int, default=5, help="subsamples drawn for each figure")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        raise ParameterError("--seeds", options.seeds, "must be 1 or more", 1)
    weights, seeds = Weights(*options.weights), range(options.seeds)
    groups = groups_of(read_samples(options.transcripts))
    console = stdout()
    console.print(vote_table(groups, weights, seeds))
    for group in groups:
        if any(len(sample.attempts) > 1 for sample in group.samples):
            console.print(depth_table(group, weights, seeds))
    console.print(verifier_table(groups))
    if len(groups) == 2 and groups[0].problems.keys() != groups[1].problems.keys():
        console.print("The problems with and without CSV are not the same.", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
