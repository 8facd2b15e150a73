"""The accuracy study: ``python -m benchmarks.accuracy``.

``--suite NAME`` trains what the record lacks and prints the tables; interrupted, it goes on where
it was. ``--summary`` prints them from the record alone, ``--claims`` what they show, ``--plots``
draws them. ``--task`` with ``--data`` runs a suite on CIFAR-10 or CIFAR-100.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.accuracy.catalogue import TASKS, task_class
from benchmarks.accuracy.claims import CHOOSING, chosen, verdicts
from benchmarks.accuracy.plots import save_plots
from benchmarks.accuracy.record import Record
from benchmarks.accuracy.study import run_study
from benchmarks.accuracy.suites import SUITES, Suite, get_suite
from benchmarks.accuracy.summary import CAPTION, suite_tables
from benchmarks.console import one_line_errors, stdout
from benchmarks.progress import Advance, Reporter, Silent
from rtl.errors import ParameterError

RECORD = Path(__file__).with_name("record.jsonl")
DOCS = Path(__file__).parents[2] / "docs"


class _Bar:
    """One bar on standard error."""

    @contextmanager
    def task(self, label: str, total: int | None) -> Iterator[Advance]:
        """A bar that vanishes when the context ends."""
        with Progress(console=Console(stderr=True), transient=True) as bars:
            shown = bars.add_task(label, total=total)

            def advance(done: int, note: str = "") -> None:
                bars.update(shown, completed=done, description=f"{label} {note}")

            yield advance


def _reporter() -> Reporter:
    return _Bar() if sys.stderr.isatty() else Silent()


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description="Accuracy of sparse-training methods against dense.")
    parser.add_argument("--suite", help=f"{', '.join(SUITES)}; methods if nothing is said")
    parser.add_argument("--task", type=_words, help=f"comma-separated: {', '.join(TASKS)}")
    parser.add_argument("--methods", type=_words, help="comma-separated, instead of the suite's")
    parser.add_argument("--patterns", type=_words, help="comma-separated, instead of the suite's")
    parser.add_argument("--seeds", type=int, help="seeds 0 to SEEDS-1; 5, or all with --summary")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--record", type=Path, default=RECORD, help="JSON lines, one a run")
    parser.add_argument("--data", type=Path, help="folder or .tar.gz of CIFAR, python version")
    parser.add_argument("--device", default="cpu", help="torch device to train on")
    parser.add_argument("--summary", action="store_true", help="print the record, train nothing")
    parser.add_argument("--claims", action="store_true", help="print what the record shows, only")
    parser.add_argument("--confirm", action="store_true",
                        help="train the best attempts, only, on seeds that did not choose them")
    parser.add_argument("--plots", type=Path, nargs="?", const=DOCS, metavar="FOLDER",
                        help="also draw the record into FOLDER, docs if nothing is said")
    return parser


def _device(name: str) -> str:
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError):
        raise ParameterError("--device", name, "must be a device torch has here", "cpu") from None
    return name


def _suites(options: argparse.Namespace) -> list[Suite]:
    if options.suite is not None:
        return [get_suite(options.suite)]
    return list(SUITES.values()) if options.summary else [SUITES["methods"]]


def _confirm(record: Record, options: argparse.Namespace) -> None:
    """Train what the claims are about, and the baselines, on further seeds."""
    attempts = chosen(record)
    if not attempts:
        raise ParameterError("--confirm", str(options.record), "has no attempts to choose from; "
                             "train --suite recipes first")
    seeds = range(CHOOSING.stop, CHOOSING.stop + (options.seeds or 5))
    run_study([spec for attempt in attempts for spec in (attempt.baseline, attempt.spec)], seeds,
              record, jobs=options.jobs, data=options.data, device=_device(options.device),
              reporter=_reporter())


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, print; 2 for bad input."""
    options = _parser().parse_args(argv)
    if options.seeds is not None and options.seeds < 1:
        raise ParameterError("--seeds", options.seeds, "must be at least 1", 1)
    for task in options.task or ():
        task_class(task)
    if options.plots is not None and not options.plots.is_dir():
        raise ParameterError("--plots", str(options.plots), "must be a folder that exists")
    record = Record(options.record)
    if (options.summary or options.claims) and not len(record):
        raise ParameterError("--record", str(options.record), "has no runs to print")
    if options.confirm:
        _confirm(record, options)
    if options.claims or options.confirm:
        for sentence in verdicts(record):
            stdout().print(sentence, soft_wrap=True)
        return 0
    trained = list(dict.fromkeys(spec.task for spec in record.specs()))
    seeds = None if options.seeds is None else range(options.seeds)
    for suite in _suites(options):
        tasks = options.task or (
            [task for task in suite.tasks if task in trained] if options.summary else None)
        if tasks == []:
            continue
        methods = options.methods if suite.methods or options.suite else None
        attempts = suite.attempts(tasks, methods, options.patterns)
        if not options.summary:
            seeds = range(5) if seeds is None else seeds
            listed = [attempt for of_task in attempts.values() for attempt in of_task]
            specs = [spec for attempt in listed for spec in (attempt.baseline, attempt.spec)]
            run_study(specs, seeds, record, jobs=options.jobs, data=options.data,
                      device=_device(options.device), reporter=_reporter())
        for table in suite_tables(suite, attempts, record, seeds):
            stdout().print(table)
    stdout().print(CAPTION)
    if options.plots is not None:
        for path in save_plots(record, options.plots):
            stdout().print(f"drawn: {path}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
