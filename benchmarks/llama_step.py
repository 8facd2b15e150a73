"""A LLaMA-7B training step with an adapter on its frozen base, compiled for the ``paper`` preset.

``python -m benchmarks.llama_step`` builds the model without weights and prints, stage by stage,
multiply-accumulates, cycles and the speed-up of 2:8 against its bound.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence

from rich.table import Table

from benchmarks.console import stdout
from benchmarks.sources import source
from compiler.pipeline import Compiled
from compiler.report.result import CompileResult

__all__ = ["SEQUENCES", "main", "stage_table"]

SEQUENCES = 4
"""Sequences of 512 tokens a step."""


def stage_table(result: CompileResult) -> Table:
    """One line a stage, and the step."""
    table = Table(title="LLaMA-7B and adapter, frozen base, 4 x 512 tokens, 2:8 on 32 x 32")
    table.add_column("stage")
    for name in ("GEMMs", "dense TFLOP", "dense cycles", "2:8 cycles", "speed-up", "MAC bound"):
        table.add_column(name, justify="right")
    stages = [stage for stage in ("FF", "BP", "WU")
              if any(row.stage == stage for row in result.layers)]
    for stage in (*stages, "step"):
        rows = [row for row in result.layers if stage in (row.stage, "step")]
        dense = sum(row.dense_macs for row in rows)
        cycles = [sum(row.dense_cycles for row in rows), sum(row.cycles for row in rows)]
        if stage == "step":  # with the updates
            table.add_section()
            cycles = [result.totals.dense_cycles, result.totals.cycles]
        table.add_row(
            stage, f"{sum(row.batch for row in rows):,}", f"{2 * dense / 1e12:.2f}",
            f"{cycles[0]:,}", f"{cycles[1]:,}", f"{cycles[0] / cycles[1]:.3f}x",
            f"{dense / sum(row.macs for row in rows):.3f}x",
        )
    return table


def compiled_step() -> tuple[Compiled, float]:
    """The compiled step and the seconds that it took, without building the model."""
    made = source("llama-adapter", "full", SEQUENCES)
    start = time.perf_counter()
    compiled = made.compiled()
    return compiled, time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, compile time and memory."""
    argparse.ArgumentParser(prog="python -m benchmarks.llama_step",
                            description=__doc__).parse_args(arguments)
    compiled, seconds = compiled_step()
    stdout().print(stage_table(compiled.result))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"compiled in {seconds:.1f} s, peak memory {peak:.2f} GiB; "
          f"device memory of the step {compiled.memory.bytes / 2**30:.1f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
