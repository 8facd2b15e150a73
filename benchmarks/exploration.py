"""Design-space exploration of the paper's networks: which array, pattern and memory pays.

``python -m benchmarks.exploration`` prints the default sweep: the five networks at full size and
their default batch, BDWP, arrays of 8, 16 and 32 rows and columns, three patterns, three memories.
Cycles are the scheduler's; resources and energy are estimates.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.console import one_line_errors, stdout
from benchmarks.exploration_tables import tables, verdict
from benchmarks.progress import Reporter, Silent
from compiler.explore.fan_out import require_workers
from compiler.explore.grid import Grid
from compiler.explore.search import Exploration, Steps, explore
from rtl.pattern import NmPattern

__all__ = ["DEFAULT_GRID", "main", "run", "steps_of"]

DEFAULT_GRID = Grid(
    rows=(8, 16, 32), cols=(8, 16, 32),
    patterns=(NmPattern(2, 4), NmPattern(2, 8), NmPattern(2, 16)),
    bandwidths=(19.2, 38.4, 76.8),
)
"""Up to the paper's array, with the buffers, the clock and up to the memory of its card."""


def steps_of(
    names: Sequence[str], patterns: Sequence[NmPattern], size: str = "full",
    batch: int | None = None, method: str = "bdwp", reporter: Reporter | None = None,
) -> Steps:
    """The training step of each workload, with each pattern and dense.

    Parameters
    ----------
    names: workloads or factories, as for :func:`benchmarks.sources.source`; each once.
    size, batch: of workloads; by default at full size, with their own batch.
    method: what is pruned.

    A network is captured once, whatever the number of patterns.
    """
    # With PyTorch behind them: not at the top, which worker processes import too.
    from algorithms import plan_model
    from benchmarks.sources import source
    from compiler.frontend.backward import training_step
    from compiler.frontend.export import capture
    from compiler.schedule.pruning import prune

    names = list(dict.fromkeys(names))
    steps = {}
    with (reporter or Silent()).task("reading models", len(names)) as advance:
        for done, name in enumerate(names):
            advance(done, name)
            found = source(name, size, batch)
            dense = training_step(capture(found.model, *found.examples, name=found.name))
            steps[name] = {
                pattern: (prune(dense, plan_model(found.model, method, pattern,
                                                  dict.fromkeys(found.pruned, pattern))), dense)
                for pattern in patterns
            }
    return steps


def run(
    names: Sequence[str], grid: Grid = DEFAULT_GRID, *, size: str = "full",
    batch: int | None = None, workers: int | None = None, cluster: str | None = None,
    reporter: Reporter | None = None,
) -> Exploration:
    """Explore ``grid`` for some workloads; parameters as for the functions that it calls."""
    # Before models are read, which takes seconds.
    require_workers(workers, cluster)
    total = len(set(names)) * len(tuple(grid.require_legal().architectures()))
    reporter = reporter or Silent()
    steps = steps_of(names, grid.patterns, size, batch, reporter=reporter)
    with reporter.task("scheduling", total) as advance:
        return explore(steps, grid, workers=workers, cluster=cluster,
                       progress=lambda done, _: advance(done, f"{done} of {total}"))


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of the default sweep; status 1 if nothing fits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exploration", description=__doc__)
    parser.add_argument("--jobs", type=int, help="worker processes; by default one a core")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="svg, png or pdf to draw")
    options = parser.parse_args(arguments)
    from benchmarks.networks import NETWORKS

    exploration = run(NETWORKS, workers=options.jobs)
    console = stdout()
    for table in tables(exploration):
        console.print(table)
    console.print(verdict(exploration), soft_wrap=True)
    if options.plot and exploration.points:
        from benchmarks.pareto_plot import pareto_plot

        pareto_plot(exploration, options.plot)
    return 0 if exploration.front else 1


if __name__ == "__main__":
    sys.exit(main())
