"""How wide the paths around a 32 x 32 array must be: the paper's networks over port widths.

``python -m benchmarks.ports`` prints the speed-up of 2:8 over dense, both on the same paths, the
least dense utilisation, and the speed-up over dense on the widest. The first row is the chip as
its RTL is built, the one marked the ``wide`` paths of :mod:`compiler.schedule.target`.
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
from compiler.schedule.scheduler import Schedule, schedule
from compiler.schedule.target import Target
from rtl.architecture import PRESETS

__all__ = ["WIDTHS", "main", "pair"]

WIDTHS = ((32, 32, 16), (64, 32, 16), (64, 64, 32), (128, 64, 32), (384, 384, 32))
"""Bytes loaded and stored a cycle, and vector lanes."""


def pair(compiled: Compiled, load: int, store: int, lanes: int) -> tuple[Schedule, Schedule]:
    """Dense and sparse schedule of a step with paths of these widths."""
    target = replace(Target.of(PRESETS["paper"]), load_bytes=load, store_bytes=store,
                     vector_lanes=lanes)
    return (schedule(target, compiled.dense.step), schedule(target, compiled.sparse.step))


def table(networks: Sequence[Compiled]) -> Table:
    """A row a width."""
    wide = Target.of(PRESETS["paper"])
    made = Table(title="Speed-up of 2:8 over dense, by the width of the paths, 32 x 32")
    for heading in ("load, B/cycle", "store, B/cycle", "vector lanes",
                    *(one.name for one in networks), "mean", "least dense util.",
                    "mean over best dense"):
        made.add_column(heading, justify="right")
    pairs = {widths: [pair(one, *widths) for one in networks] for widths in WIDTHS}
    best = [dense.cycles for dense, _ in pairs[WIDTHS[-1]]]
    for widths, found in pairs.items():
        ratios = [dense.cycles / sparse.cycles for dense, sparse in found]
        mark = " (wide)" if widths == (wide.load_bytes, wide.store_bytes,
                                       wide.vector_lanes) else ""
        made.add_row(
            f"{widths[0]}{mark}", *map(str, widths[1:]), *(f"{ratio:.2f}x" for ratio in ratios),
            f"{fmean(ratios):.3f}x", f"{min(dense.utilisation for dense, _ in found):.1%}",
            f"{fmean(b / s.cycles for b, (_, s) in zip(best, found, strict=True)):.3f}x",
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    argparse.ArgumentParser(prog="python -m benchmarks.ports",
                            description=__doc__).parse_args(arguments)
    stdout().print(table([source(name).compiled() for name in NETWORKS]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
