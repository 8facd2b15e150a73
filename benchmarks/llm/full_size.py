"""The language workloads at the size of LLaMA-7B, compiled for the ``paper`` preset.

``python -m benchmarks.llm.full_size`` builds each model without weights and prints, stage by stage,
floating-point work, cycles and the speed-up of 2:8 against its bound. Generation has two stages in
place of those of a training step: prefill of the prompts, and one more token with the cache.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.table import Table

from benchmarks.console import stdout
from benchmarks.sources import LANGUAGE, source
from compiler.pipeline import Compiled
from compiler.report.result import LayerRow
from rtl.architecture import PRESETS

__all__ = ["WORKLOADS", "Stage", "compiled_workload", "main", "stages"]

WORKLOADS = {
    "llama-adapter": "LLaMA-Adapter V1, 4 x 512 tokens",
    "llama-adapter-v2": "LLaMA-Adapter V2 with images, 4 x 512 tokens",
    "mathcoder": "MathCoder, full fine-tuning, 4 x 512 tokens",
    "csv": "CSV, 8 paths of 512 tokens",
}
"""What is compiled, by name of the workload."""

_MEMORY = 128
"""GiB of device memory: FP32 weights, gradients and momentum of 7 B parameters do not fit 64."""


class Stage(NamedTuple):
    """A part of a workload: products, dense FLOP, MACs dense and of 2:8, cycles likewise."""

    name: str
    gemms: int
    flop: int
    macs: tuple[int, int]
    cycles: tuple[int, int]

    def row(self, workload: str = "") -> tuple[str, ...]:
        """Cells of the table."""
        return (workload, self.name, f"{self.gemms:,}", f"{self.flop / 1e12:.2f}",
                *(f"{cycles:,}" for cycles in self.cycles),
                f"{self.cycles[0] / self.cycles[1]:.3f}x", f"{self.macs[0] / self.macs[1]:.3f}x")


def compiled_workload(name: str) -> Compiled:
    """One of :data:`WORKLOADS`, scheduled dense and with BDWP 2:8."""
    arch = PRESETS["paper"].model_copy(update={"dram_gib": _MEMORY})
    return source(name, "full").compiled(arch=arch)


def stages(compiled: Compiled) -> Iterator[Stage]:
    """The stages in order and last the whole, updates of weights included."""
    rows = compiled.result.layers
    if compiled.step.training:
        parts = {name: [row for row in rows if row.stage == name] for name in ("FF", "BP", "WU")}
    else:  # a layer's second call is for the token
        parts = {"prefill": [row for row in rows if not row.name.endswith("#1")],
                 "token": [row for row in rows if row.name.endswith("#1")]}
    for name, chosen in parts.items():
        if chosen:
            yield _stage(name, chosen, (sum(row.dense_cycles for row in chosen),
                                        sum(row.cycles for row in chosen)))
    totals = compiled.result.totals
    yield _stage("all", rows, (totals.dense_cycles, totals.cycles))


def _stage(name: str, rows: Sequence[LayerRow], cycles: tuple[int, int]) -> Stage:
    dense = sum(row.dense_macs for row in rows)
    return Stage(name, sum(row.batch for row in rows), 2 * dense,
                 (dense, sum(row.macs for row in rows)), cycles)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, compile time and memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llm.full_size",
                                     description=__doc__)
    parser.add_argument("--workload", action="append", choices=LANGUAGE,
                        help="may be given several times; by default all")
    chosen = parser.parse_args(arguments).workload or list(WORKLOADS)
    table = Table(title=f"LLaMA-7B, BDWP 2:8 against dense, 32 x 32, {_MEMORY} GiB")
    for name in ("workload", "stage"):
        table.add_column(name)
    for name in ("GEMMs", "dense TFLOP", "dense cycles", "2:8 cycles", "speed-up", "MAC bound"):
        table.add_column(name, justify="right")
    start, sizes = time.perf_counter(), []
    for name in chosen:
        compiled = compiled_workload(name)
        sizes.append(f"{name} {compiled.memory.bytes / 2**30:.1f}")
        table.add_section()
        for number, stage in enumerate(stages(compiled)):
            table.add_row(*stage.row("" if number else WORKLOADS[name]))
    stdout().print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"device memory, GiB: {', '.join(sizes)}; compiled in "
          f"{time.perf_counter() - start:.0f} s, peak memory {peak:.2f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
