"""The paper's networks at full size, compiled for the ``paper`` preset: 2:8 against dense.

``python -m benchmarks.networks`` prints the speed-ups of BDWP and of BDWP+WU, whose third GEMM is
sparse as well, at several batch sizes, and where the cycles of BDWP go. Everything is the
schedule's model, whose array cycles the RTL confirms (:mod:`benchmarks.sampled_layers`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean

from rich.table import Table

from benchmarks.console import stdout
from benchmarks.sources import source
from compiler.pipeline import Compiled
from compiler.schedule.attribution import Attribution, attribute
from compiler.schedule.scheduler import Schedule, schedule
from compiler.schedule.target import Target
from rtl.architecture import PRESETS

__all__ = ["BATCHES", "GRADIENTS", "NETWORKS", "SAMPLED", "Row", "compile_networks", "main"]

NETWORKS = ("resnet9", "vgg19", "vit", "resnet18", "resnet50")
"""The five networks whose mean is compared with the paper's."""

BATCHES = (None, 64, 32)
"""Batch sizes: the default of each network (512; ResNet-50: 256), and small ones."""

MEAN, LEAST, DENSE_UTILISATION = 1.92, 1.84, 0.97
"""What must be reached at the default batch: mean speed-up, least of a network, dense baseline."""

SAMPLED = "bdwp+wu"
"""The method with three sparse passes."""
GRADIENTS = ("1:2", "2:4")
"""Patterns of the sampled dY; the target is for the first."""
SAMPLED_MEAN = 2.6
"""Mean speed-up that :data:`SAMPLED` must reach at the default batch."""


@dataclass(frozen=True)
class Row:
    """One network at one batch size."""

    compiled: Compiled
    built: tuple[Schedule, Schedule] | None = None

    @property
    def speedup(self) -> float:
        """Dense cycles over sparse cycles."""
        return self.compiled.dense.cycles / self.compiled.sparse.cycles

    @property
    def mac_bound(self) -> float:
        """Dense MACs over executed MACs."""
        return self.compiled.dense.macs / self.compiled.sparse.macs

    @property
    def built_speedup(self) -> float:
        """The same with the ports of the chip as it is built."""
        if self.built is None:
            raise AssertionError("not scheduled for the chip as built")
        sparse, dense = self.built
        return dense.cycles / sparse.cycles


def compile_networks(
    batch: int | None = None, *, built: bool = False, method: str = "bdwp",
    gradient: str = GRADIENTS[0],
) -> list[Row]:
    """All five, for the ``paper`` preset; with ``built``, for the chip's own ports too."""
    rows = []
    for name in NETWORKS:
        compiled = source(name, "full", batch).compiled(method=method, gradient=gradient)
        pair = None
        if built:
            target = Target.of(PRESETS["paper"], "built")
            pair = (schedule(target, compiled.sparse.step), schedule(target, compiled.dense.step))
        rows.append(Row(compiled, pair))
    return rows


def speed_table(*batches: Sequence[Row]) -> Table:
    """Speed-up, utilisation and bounds, a section a batch size."""
    label = batches[0][0].compiled.result.label.replace("bdwp", "BDWP").replace("wu", "WU")
    table = Table(title=f"{label} against dense, 32 x 32 at 200 MHz, 76.8 GB/s, a whole step")
    table.add_column("network")
    for heading in ("batch", "dense cycles", "2:8 cycles", "speed-up", "MAC bound", "dense util.",
                    "2:8 util.", "GFLOPS", "compile, s", "ports as built"):
        table.add_column(heading, justify="right")
    for rows in batches:
        for row in rows:
            one = row.compiled
            table.add_row(
                one.name, str(one.batch), f"{one.dense.cycles:,}", f"{one.sparse.cycles:,}",
                f"{row.speedup:.3f}x", f"{row.mac_bound:.3f}x", f"{one.dense.utilisation:.1%}",
                f"{one.sparse.utilisation:.1%}", f"{one.result.totals.effective_gflops:,.0f}",
                f"{sum(one.seconds.values()):.1f}",
                f"{row.built_speedup:.2f}x" if row.built else "",
            )
        built = f"{fmean(row.built_speedup for row in rows):.2f}x" if rows[0].built else ""
        table.add_row("mean", "", "", "", f"{fmean(row.speedup for row in rows):.3f}x",
                      f"{fmean(row.mac_bound for row in rows):.3f}x", *("",) * 4, built)
        table.add_section()
    return table


def attribution_table(*batches: Sequence[Row]) -> Table:
    """Where the cycles go, dense and 2:8, in per cent of the dense step."""
    table = Table(title="Where the cycles go, % of the dense step's")
    table.add_column("network")
    table.add_column("batch", justify="right")
    table.add_column("method")
    for name in (*(one.name for one in fields(Attribution)), "sum"):
        table.add_column(name, justify="right")
    for rows in batches:
        for row in rows:
            whole = row.compiled.dense.cycles
            for method, one in (("dense", row.compiled.dense), ("bdwp", row.compiled.sparse)):
                shares = attribute(one)
                table.add_row(
                    row.compiled.name, str(row.compiled.batch), method,
                    *(f"{100 * value / whole:.2f}" for value in vars(shares).values()),
                    f"{100 * shares.cycles / whole:.2f}",
                )
        table.add_section()
    return table


def verdict(rows: Sequence[Row]) -> tuple[bool, str]:
    """Whether the targets are met, in a sentence."""
    mean = fmean(row.speedup for row in rows)
    least = min(rows, key=lambda row: row.speedup)
    idle = min(rows, key=lambda row: row.compiled.dense.utilisation)
    holds = (mean >= MEAN and least.speedup >= LEAST
             and idle.compiled.dense.utilisation >= DENSE_UTILISATION)
    return holds, (
        f"Target: mean at least {MEAN}x, none below {LEAST}x, dense utilisation at least "
        f"{DENSE_UTILISATION:.0%}. Mean {mean:.3f}x, least {least.speedup:.3f}x "
        f"({least.compiled.name}), least dense utilisation "
        f"{idle.compiled.dense.utilisation:.1%} ({idle.compiled.name}): "
        f"{'holds' if holds else 'does not hold'}."
    )


def sampled_verdict(rows: Sequence[Row], others: Sequence[Row]) -> tuple[bool, str]:
    """Whether BDWP+WU meets its target, in a sentence; ``others`` have the other gradients."""
    mean, bound = (fmean(values) for values in zip(
        *((row.speedup, row.mac_bound) for row in rows), strict=True))
    holds = mean >= SAMPLED_MEAN
    other = fmean(row.speedup for row in others)
    first, second = (each[0].compiled.gradient for each in (rows, others))
    return holds, (
        f"Target: BDWP+WU with {first} gradients, mean at least {SAMPLED_MEAN}x. Mean {mean:.3f}x "
        f"of at most {bound:.3f}x by MACs: {'holds' if holds else 'does not hold'}. With {second} "
        f"gradients: {other:.3f}x."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; status 1 if the targets are missed."""
    argparse.ArgumentParser(prog="python -m benchmarks.networks",
                            description=__doc__).parse_args(arguments)
    console = stdout()
    by_batch = [compile_networks(batch, built=True) for batch in BATCHES]
    console.print(speed_table(*by_batch), attribution_table(*by_batch))
    holds, text = verdict(by_batch[0])
    console.print(text, soft_wrap=True)
    sampled = [compile_networks(batch, built=True, method=SAMPLED) for batch in BATCHES]
    console.print(speed_table(*sampled))
    others = compile_networks(method=SAMPLED, gradient=GRADIENTS[1])
    sampled_holds, text = sampled_verdict(sampled[0], others)
    console.print(text, soft_wrap=True)
    return 0 if holds and sampled_holds else 1


if __name__ == "__main__":
    sys.exit(main())
