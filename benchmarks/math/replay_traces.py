"""Runs the code of recorded solutions again: ``python -m benchmarks.math.replay_traces FILE``.

FILE is a JSONL file of traces, MathCoder's results for instance. Every cell runs in the sandbox, a
session a trace, and its output is compared with the recorded one. Prints how many agree, by which
rule, and the cells that do not. The status is 1 if any cell differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

from rich.markup import escape
from rich.table import Table

from algorithms import ParameterError
from benchmarks.console import one_line_errors, stdout
from models.math.replay import AGREEING, VERDICTS, TraceReplay, replay, verdict_counts
from models.math.sandbox import Limits, Sandbox, SandboxUnavailable
from models.math.sandbox.isolation import Isolation
from models.math.solution import Trace, read_traces

__all__ = ["main", "replay_all"]

_SHOWN = 20
_WIDTH = 300


def replay_all(
    traces: Iterable[Trace], jobs: int = 1, limits: Limits | None = None,
    isolation: Isolation = "auto",
) -> Iterator[TraceReplay]:
    """Replay traces in order, ``jobs`` at a time, each in a sandbox of its own."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(partial(_replayed, limits=limits, isolation=isolation), traces)


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; status 1 if a cell differs, 2 for bad input or without a sandbox."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.math.replay_traces",
                                     description=__doc__)
    parser.add_argument("file", help="JSONL file of traces")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N traces")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="traces at a time")
    parser.add_argument("--seconds", type=float, default=Limits().cell_seconds, metavar="S",
                        help="wall time of a cell (default: %(default)s)")
    parser.add_argument("--unsandboxed", action="store_true",
                        help="run the code without isolation: it can do all that you can")
    options = parser.parse_args(arguments)
    for name in ("limit", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ParameterError(f"--{name}", value, "must be 1 or more", 1)
    limits = Limits(cell_seconds=options.seconds)
    # A malformed line is told before the first cell runs.
    traces = list(islice(read_traces(options.file), options.limit))
    try:
        replays = list(replay_all(traces, options.jobs, limits,
                                  "none" if options.unsandboxed else "auto"))
    except SandboxUnavailable as failure:
        print(f"{failure} (or pass --unsandboxed)", file=sys.stderr)
        return 2
    cells = sum(len(each.cells) for each in replays)
    if not cells:
        raise ParameterError("file", options.file, "has no executed code to replay")
    _print(replays, cells)
    return 0 if all(each.agrees for each in replays) else 1


def _replayed(trace: Trace, limits: Limits | None, isolation: Isolation) -> TraceReplay:
    with Sandbox(limits, isolation) as sandbox:
        return replay(trace, sandbox)


def _print(replays: Sequence[TraceReplay], cells: int) -> None:
    console = stdout()
    counts = verdict_counts(replays)
    table = Table("verdict", "cells", "share", title=f"{len(replays)} traces, {cells} cells")
    for verdict in VERDICTS:
        if counts[verdict]:
            table.add_row(verdict, f"{counts[verdict]:,}", f"{counts[verdict] / cells:.2%}")
    agreeing = sum(counts[verdict] for verdict in AGREEING)
    table.add_section()
    table.add_row("agree", f"{agreeing:,}", f"{agreeing / cells:.2%}")
    console.print(table)
    differing = [(each.origin, number, cell) for each in replays
                 for number, cell in enumerate(each.cells, 1) if cell.verdict not in AGREEING]
    for origin, number, cell in differing[:_SHOWN]:
        console.print(f"[bold]{escape(origin)}[/], cell {number}: {cell.verdict} "
                      f"({cell.outcome.status}, {cell.outcome.seconds:.2f} s)", soft_wrap=True)
        console.print(f"  recorded {cell.recorded[:_WIDTH]!r}", markup=False, soft_wrap=True)
        console.print(f"  replayed {cell.outcome.output[-_WIDTH:]!r}", markup=False, soft_wrap=True)
    if len(differing) > _SHOWN:
        console.print(f"and {len(differing) - _SHOWN} more")


if __name__ == "__main__":
    sys.exit(main())
