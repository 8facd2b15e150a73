"""Differences to dense with their standard errors, and the tables that show them.

Runs are paired with dense ones of the same seed. On a fixed test set the standard error has two
parts, that of the mean over seeds and that over test examples, the latter from the mean over seeds
of the difference in correctness, example by example::

    SE = sqrt(var_s(d_s) / seeds + var_i(d_i) / examples)

Where each seed has its own test fold, the spread over seeds holds both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from benchmarks.accuracy.catalogue import task_class
from benchmarks.accuracy.record import Outcome, Record, Spec
from benchmarks.accuracy.suites import Attempt, Suite

__all__ = ["CAPTION", "Gap", "compare", "gap_of", "suite_tables"]

CAPTION = ("Points of test accuracy against dense on the same seeds, ± standard error (seeds and "
           "test examples); in brackets, training MACs over dense. Many comparisons, none "
           "corrected for: two standard errors are a hint.")

_NOTHING = "-"


@dataclass(frozen=True)
class Gap:
    """What one attempt gave against its baseline, in points.

    accuracy: mean over ``seeds``, in per cent. difference: to the baseline.
    seed_error, test_error: parts of the standard error; the first is NaN for one seed.
    cost: MACs of the whole training over those of the baseline.
    """

    seeds: int
    accuracy: float
    difference: float
    seed_error: float
    test_error: float
    cost: float

    @property
    def error(self) -> float:
        """Standard error of the difference."""
        return math.hypot(self.seed_error, self.test_error)

    def __str__(self) -> str:
        error = _NOTHING if math.isnan(self.error) else f"{self.error:.2f}"
        return f"{self.difference:+.2f} ± {error} ({self.cost:.2f})"


def compare(
    ours: Mapping[int, Outcome], dense: Mapping[int, Outcome], fixed_test: bool
) -> Gap | None:
    """Compare the seeds that both have; ``None`` when there are none."""
    seeds = sorted(ours.keys() & dense.keys())
    if not seeds:
        return None
    # (seeds, examples) on a fixed test set; folds may differ in size.
    changes = [100.0 * (ours[seed].hits().astype(np.int8) - dense[seed].hits().astype(np.int8))
               for seed in seeds]
    by_seed = np.array([change.mean() for change in changes])
    seed_error, test_error = _standard_error(by_seed), 0.0
    if fixed_test:
        test_error = _standard_error(np.mean(changes, axis=0))
    spent = float(np.mean([ours[seed].cost for seed in seeds]))
    return Gap(
        seeds=len(seeds),
        accuracy=float(np.mean([ours[seed].accuracy for seed in seeds])),
        difference=float(by_seed.mean()),
        seed_error=seed_error,
        test_error=test_error,
        cost=spent * _examples(ours[seeds[0]].spec) / _examples(dense[seeds[0]].spec),
    )


def _standard_error(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """Of the mean of independent values; NaN for a single one."""
    if len(values) < 2:
        return math.nan
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _examples(spec: Spec) -> int:
    """Training examples of a run."""
    return spec.steps * spec.make_recipe().batch


def gap_of(attempt: Attempt, record: Record, seeds: Sequence[int] | None = None) -> Gap | None:
    """The gap of an attempt as far as the record goes."""
    fixed = task_class(attempt.spec.task).fixed_test
    return compare(record.find(attempt.spec, seeds), record.find(attempt.baseline, seeds), fixed)


def suite_tables(
    suite: Suite, attempts: Mapping[str, Sequence[Attempt]], record: Record,
    seeds: Sequence[int] | None = None,
) -> Iterator[Table]:
    """One table for each task that has been trained."""
    for task, listed in attempts.items():
        gaps = {attempt.spec.key: gap_of(attempt, record, seeds) for attempt in listed}
        if not any(gaps.values()):
            continue
        places = {(attempt.spec.width, attempt.spec.steps) for attempt in listed
                  if gaps[attempt.spec.key]}
        if suite.name in ("capacity", "length") and len(places) < 2:
            continue  # one point is no curve, and the methods' table has it
        title = f"{task_class(task).title}: {suite.title}"
        if suite.name in ("recipes", "saturated"):
            yield _list_table(title, listed, gaps, record)
        elif suite.name == "methods":
            yield _method_table(title, listed, gaps, record, seeds)
        else:
            yield _curve_table(title, suite.name, listed, gaps, record, seeds)


def _table(title: str) -> Table:
    """A table wide enough for its title."""
    return Table(title=title, min_width=len(title) + 2)


def _dense_words(baseline: Spec, record: Record, seeds: Sequence[int] | None) -> str:
    runs = list(record.find(baseline, seeds).values())
    if not runs:
        return _NOTHING
    found = np.array([run.accuracy for run in runs])
    spread = f" ± {found.std(ddof=1):.2f}" if len(found) > 1 else ""
    return f"{found.mean():.2f}{spread} %"


def _method_table(
    title: str, listed: Sequence[Attempt], gaps: Mapping[str, Gap | None], record: Record,
    seeds: Sequence[int] | None,
) -> Table:
    patterns = list(dict.fromkeys(attempt.spec.pattern for attempt in listed))
    dense = _dense_words(listed[0].baseline, record, seeds)
    table = _table(f"{title}; dense {dense} (deviation over seeds)")
    table.add_column("method")
    for pattern in patterns:
        table.add_column(pattern, justify="right")
    table.add_column("seeds", justify="right")
    for method in dict.fromkeys(attempt.spec.method for attempt in listed):
        row = {a.spec.pattern: gaps[a.spec.key] for a in listed if a.spec.method == method}
        table.add_row(method, *(str(row.get(pattern) or _NOTHING) for pattern in patterns),
                      _seeds(row.values()))
    return table


def _curve_table(
    title: str, suite: str, listed: Sequence[Attempt], gaps: Mapping[str, Gap | None],
    record: Record, seeds: Sequence[int] | None,
) -> Table:
    axis = "width" if suite == "capacity" else "steps"
    labels = list(dict.fromkeys(attempt.label for attempt in listed))
    table = _table(title)
    table.add_column(axis, justify="right")
    table.add_column("dense", justify="right")
    for label in labels:
        table.add_column(label, justify="right")
    table.add_column("seeds", justify="right")
    for place in dict.fromkeys(getattr(attempt.spec, axis) for attempt in listed):
        here = [attempt for attempt in listed if getattr(attempt.spec, axis) == place]
        row = {attempt.label: gaps[attempt.spec.key] for attempt in here}
        if not any(row.values()):
            continue
        table.add_row(str(place), _dense_words(here[0].baseline, record, seeds),
                      *(str(row.get(label) or _NOTHING) for label in labels),
                      _seeds(row.values()))
    return table


def _list_table(
    title: str, listed: Sequence[Attempt], gaps: Mapping[str, Gap | None], record: Record,
) -> Table:
    plain = next((gap for attempt in listed if (gap := gaps[attempt.spec.key])
                  and attempt.spec.method == "bdwp" and _is_plain(attempt.spec)), None)
    table = _table(f"{title}; share: gap over that of plain BDWP")
    for name in ("attempt", "difference", "cost", "share", "model", "seeds"):
        table.add_column(name, justify="left" if name == "attempt" else "right")
    for attempt in listed:
        gap = gaps[attempt.spec.key]
        if gap is None:
            continue
        share = f"{gap.difference / plain.difference:.2f}" if plain and plain.difference else "-"
        within = plain is not None and gap.cost <= plain.cost + 5e-4
        table.add_row(attempt.label, str(gap).partition(" (")[0],
                      f"{gap.cost:.3f}{'' if within else ' >'}", share,
                      _inference(attempt.spec), str(gap.seeds))
    return table


def _is_plain(spec: Spec) -> bool:
    return not (spec.options or spec.phases or spec.recipe)


def _inference(spec: Spec) -> str:
    """What the trained model multiplies with: a dense tail leaves a dense model."""
    pruned = spec.make_method().forward == "weight" and not spec.phases.get("tail")
    return spec.pattern if pruned else "dense"


def _seeds(gaps: Iterable[Gap | None]) -> str:
    counts = {gap.seeds for gap in gaps if gap}
    return "-".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else ""
