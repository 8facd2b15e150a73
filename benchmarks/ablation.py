"""What each of the dataflow's ideas is worth: the schedule without it, on the paper's networks.

``python -m benchmarks.ablation`` prints, for each network at full size, the speed-up over the best
dense schedule with everything, and with one idea taken away from the sparse schedule.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from rich.table import Table

from benchmarks.console import stdout
from benchmarks.networks import NETWORKS
from benchmarks.sources import source
from compiler.pipeline import Compiled
from compiler.schedule.scheduler import Options, schedule

__all__ = ["VARIANTS", "ablated_cycles", "main"]

VARIANTS: dict[str, Options | None] = {
    "everything": Options(),
    "no interleaving": None,
    "no pre-generation": Options(pruning="inline"),
    "WS only": Options(dataflow="ws"),
    "OS only": Options(dataflow="os"),
    "no overlap of neighbours": Options(overlap=False),
    "updates at the end": Options(updates="end"),
}
"""Schedules with one idea taken away. Without interleaving (None), each addition of a chain waits
for the one before: a formula, since the RTL always interleaves."""


def ablated_cycles(compiled: Compiled, variant: str, *, sparse: bool = True) -> int:
    """Cycles of the step without one idea."""
    options, target = VARIANTS[variant], compiled.sparse.target
    if options is None:
        options, target = Options(), replace(target, interleave=False)
    step = compiled.sparse.step if sparse else compiled.dense.step
    return schedule(target, step, options).cycles


def table(batch: int | None) -> Table:
    """Speed-ups over the best dense schedule, one row a variant."""
    compiled = [source(name, "full", batch).compiled() for name in NETWORKS]
    title = "default batch" if batch is None else f"batch {batch}"
    made = Table(title=f"2:8 without ..., speed-up over the best dense schedule, {title}")
    made.add_column("variant")
    for name in (*NETWORKS, "mean", "of everything"):
        made.add_column(name, justify="right")
    whole = 0.0
    for variant in VARIANTS:
        ratios = [one.dense.cycles / ablated_cycles(one, variant) for one in compiled]
        mean = fmean(ratios)
        whole = whole or mean
        made.add_row(variant, *(f"{ratio:.3f}x" for ratio in ratios), f"{mean:.3f}x",
                     f"{mean / whole:.1%}")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    argparse.ArgumentParser(prog="python -m benchmarks.ablation",
                            description=__doc__).parse_args(arguments)
    console = stdout()
    for batch in (None, 32):
        console.print(table(batch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
