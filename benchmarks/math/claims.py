"""The measured claims of MathCoder and of code-based self-verification, in small.

``python -m benchmarks.math.claims`` trains what the record lacks and prints what it shows;
``--summary`` prints the record alone. Runs are paired by seed: equal problems, order, number of
steps and test problems. A difference decides where it is larger than two standard errors.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table

from algorithms import ParameterError, closest
from benchmarks.console import one_line_errors, stdout
from benchmarks.math.arms import LONGER, PATHS, TEMPERATURE, Record, Run, run_arm
from benchmarks.math.shared_sandbox import require_sandbox

__all__ = ["CLAIMS", "Claim", "Difference", "Side", "difference", "main", "tables"]

RECORD = Path(__file__).with_name("record.jsonl")

Rule = Literal["gains", "harmless", "reported"]
"""Holds if the difference is above two errors; if it is not below minus two; or is only told."""


@dataclass(frozen=True)
class Side:
    """One of two that are compared: an arm and what of it was measured."""

    arm: str
    measure: str


@dataclass(frozen=True)
class Claim:
    """``ours`` against ``baseline``; name is what ``--claim`` takes, several may share it."""

    name: str
    text: str
    ours: Side
    baseline: Side
    rule: Rule

    def verdict(self, found: Difference) -> str:
        """Whether it holds."""
        error = 2 * found.error
        if math.isnan(error):
            return "one seed decides nothing"
        if self.rule == "gains":
            return "holds" if found.mean > error else "does not hold"
        if self.rule == "harmless":
            return "holds" if found.mean >= -error else "does not hold"
        return ("no difference beyond two errors" if abs(found.mean) <= error
                else "gains" if found.mean > 0 else "loses")


@dataclass(frozen=True)
class Difference:
    """Points of ours above the baseline, over ``seeds`` seeds.

    ours, baseline: mean and deviation over seeds, per cent. mean: of the differences.
    by_seed: its standard error from their spread over seeds, NaN for one seed. by_problem: from
    the pairs of all problems.
    """

    seeds: int
    ours: tuple[float, float]
    baseline: tuple[float, float]
    mean: float
    by_seed: float
    by_problem: float

    @property
    def error(self) -> float:
        """The larger: few seeds can agree by luck, and problems of one seed share a model."""
        if math.isnan(self.by_seed):
            return self.by_seed
        return max(self.by_seed, self.by_problem)


_CODE, _TEXT = Side("code", "code"), Side("text", "text")

CLAIMS: tuple[Claim, ...] = (
    Claim("execution", "code that is executed beats words", _CODE, _TEXT, "gains"),
    Claim("masking", "no loss on executions, against a loss on them", _CODE,
          Side("unmasked", "code"), "reported"),
    Claim("masking", "executing code, against predicting its output", Side("unmasked", "code"),
          Side("unmasked", "own"), "gains"),
    *(claim for arm, solved in (("csv-code", "by code"), ("csv-words", "in words")) for claim in (
        Claim("voting", f"solved {solved}: weighted by verdicts, against plain majority",
              Side(arm, "weighted"), Side(arm, "plain"), "gains"),
        Claim("voting", f"solved {solved}: verdicts dealt by chance, against plain majority",
              Side(arm, "dealt"), Side(arm, "plain"), "harmless"),
        Claim("voting", f"solved {solved}: plain majority of {PATHS}, against one path",
              Side(arm, "plain"), Side(arm, "one path"), "reported"))),
    Claim("sparse", "BDWP 2:8, against dense", Side("bdwp", "code"), _CODE, "reported"),
    Claim("sparse", f"BDWP 2:8, against dense, {LONGER} steps", Side("bdwp-longer", "code"),
          Side("code-longer", "code"), "reported"),
)


def difference(ours: Sequence[Sequence[int]], baseline: Sequence[Sequence[int]]) -> Difference:
    """The difference of hits, (seeds, problems) both, the same problems for a seed."""
    changes = [[100 * (a - b) for a, b in zip(one, other, strict=True)]
               for one, other in zip(ours, baseline, strict=True)]
    by_seed = [statistics.fmean(change) for change in changes]
    pairs = [value for change in changes for value in change]
    return Difference(
        seeds=len(by_seed), ours=_spread(ours), baseline=_spread(baseline),
        mean=statistics.fmean(by_seed), by_seed=_error(by_seed), by_problem=_error(pairs))


def tables(record: Record, seeds: Sequence[int] | None = None, claim: str | None = None
           ) -> list[Table]:
    """What the record shows of the claims, and of the worth of verdicts."""
    shown = Table(title="Held-out problems solved, % ± deviation over seeds")
    for name in ("claim", "ours", "baseline", "points ± error", "by seed", "by problem", "seeds",
                 "verdict"):
        shown.add_column(name, justify="left" if name in ("claim", "verdict") else "right")
    arms = []
    for each in _chosen(claim):
        ours, baseline = record.of(each.ours.arm, seeds), record.of(each.baseline.arm, seeds)
        both = sorted(ours.keys() & baseline.keys())
        if not both:
            continue
        arms += [each.ours.arm, each.baseline.arm]
        found = difference([ours[seed].hits(each.ours.measure) for seed in both],
                           [baseline[seed].hits(each.baseline.measure) for seed in both])
        shown.add_row(each.text, _words(found.ours), _words(found.baseline),
                      f"{found.mean:+.1f} ± {found.error:.1f}", f"{found.by_seed:.1f}",
                      f"{found.by_problem:.1f}", str(found.seeds), each.verdict(found))
    runs = {arm: list(record.of(arm, seeds).values()) for arm in dict.fromkeys(arms)}
    made = [shown, _trained(runs)]
    if any(run.figures for of_arm in runs.values() for run in of_arm):
        made.append(_verdicts(runs))
    return made


def _trained(runs: dict[str, list[Run]]) -> Table:
    shown = Table(title="Training, mean over seeds")
    for name in ("arm", "steps", "tokens a sequence", "of them learnt", "seconds", "seeds"):
        shown.add_column(name, justify="left" if name == "arm" else "right")
    for arm, found in runs.items():
        columns = zip(*((run.steps, run.tokens, run.learnt, run.seconds) for run in found),
                      strict=True)
        shown.add_row(arm, *(f"{statistics.fmean(column):.0f}" for column in columns),
                      str(len(found)))
    return shown


def _verdicts(runs: dict[str, list[Run]]) -> Table:
    shown = Table(title=f"Verdicts True over paths at temperature {TEMPERATURE:g}, %")
    for name in ("arm", "paths right", "precision", "recall", "dealt: precision", "recall"):
        shown.add_column(name, justify="left" if name == "arm" else "right")
    for arm, found in runs.items():
        if all(run.figures for run in found):
            shown.add_row(arm, *(
                _words(_mean_and_deviation([run.figures.get(name, math.nan) for run in found]))
                for name in ("right", "precision", "recall", "dealt precision", "dealt recall")))
    return shown


def _chosen(claim: str | None) -> list[Claim]:
    names = list(dict.fromkeys(each.name for each in CLAIMS))
    if claim is not None and claim not in names:
        raise ParameterError("--claim", claim, f"must be one of {', '.join(names)}",
                             closest(claim, names) or names[0])
    return [each for each in CLAIMS if claim in (None, each.name)]


def _spread(hits: Sequence[Sequence[int]]) -> tuple[float, float]:
    return _mean_and_deviation([100 * statistics.fmean(each) for each in hits])


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean; NaN for one value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _words(spread: tuple[float, float]) -> str:
    return f"{spread[0]:.1f} ± {spread[1]:.1f}"


def _arms(claim: str | None) -> list[str]:
    """Arms that a claim, or any, compares."""
    return list(dict.fromkeys(
        side.arm for each in _chosen(claim) for side in (each.ours, each.baseline)))


def _train(record: Record, seeds: Sequence[int], claim: str | None, jobs: int) -> None:
    left = [(arm, seed) for seed in seeds for arm in _arms(claim) if seed not in record.of(arm)]
    if left:
        require_sandbox()
    # Not forked: the parent may have PyTorch with its threads.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run_arm, arm, seed) for arm, seed in left]
        for number, future in enumerate(as_completed(futures), 1):
            run = future.result()
            record.add(run)
            print(f"{number}/{len(left)}: {run.arm}, seed {run.seed}, {run.seconds:.0f} s",
                  file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.math.claims",
                                     description="Claims of MathCoder and of self-verification.")
    names = ", ".join(dict.fromkeys(each.name for each in CLAIMS))
    parser.add_argument("--claim", help=f"one of {names}; all if nothing is said")
    parser.add_argument("--seeds", type=int,
                        help="seeds 0 to SEEDS-1; 3, or all with --summary")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--record", type=Path, default=RECORD, help="JSON lines, one a run")
    parser.add_argument("--summary", action="store_true", help="print the record, train nothing")
    return parser


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, print; 2 for bad input."""
    options = _parser().parse_args(argv)
    for name in ("seeds", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ParameterError(f"--{name}", value, "must be at least 1", 1)
    _chosen(options.claim)
    record = Record(options.record)
    seeds = None if options.seeds is None else range(options.seeds)
    if not options.summary:
        seeds = range(3) if seeds is None else seeds
        _train(record, seeds, options.claim, options.jobs)
    if not any(record.of(arm, seeds) for arm in _arms(options.claim)):
        raise ParameterError("--record", str(options.record),
                             "has no runs under these settings; run without --summary")
    for table in tables(record, seeds, options.claim):
        stdout().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
