"""Utilisation of the array on the RTL: one GEMM, dense and N:M, both dataflows.

``python -m benchmarks.utilisation [--arch small] [--size 512]`` runs each case on the Verilated
RTL, compares every element with the golden model and every cycle count with the cycle model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from benchmarks.console import one_line_errors, stdout
from compiler.array.gemm import run_gemm
from compiler.array.mapping import Dataflow
from rtl.architecture import Architecture
from rtl.errors import ParameterError
from rtl.pattern import NmPattern
from sim import golden

__all__ = ["main"]

PATTERNS = ("dense", "2:4", "1:4", "2:8", "1:8", "2:16")
DATAFLOWS: tuple[Dataflow, ...] = ("ws", "os")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; the status is 1 if any bit or any cycle is not as predicted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", default="small", help="preset or TOML file")
    parser.add_argument("--size", type=int, default=512, help="P, Q and K")
    parser.add_argument("--patterns", nargs="+", default=PATTERNS, help="dense or N:M")
    arguments = parser.parse_args(argv)
    arch, size = Architecture.load(arguments.arch), arguments.size
    if size < 1:
        raise ParameterError("--size", size, "must be at least 1", 1)

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size)).astype(np.float16) for _ in range(2))
    table = Table(title=f"{size}^3 on the RTL of {arch.name} ({arch.rows} x {arch.cols})")
    for name in ("pattern", "dataflow", "RTL cycles", "model", "ideal", "utilisation",
                 "mismatches", "seconds"):
        table.add_column(name, justify="right")
    wrong = 0
    for text in arguments.patterns:
        pattern = NmPattern.parse(text, "--patterns")
        want = golden.gemm(a, b, pattern).view(np.uint32)
        for dataflow in DATAFLOWS:
            start = time.perf_counter()
            c, result = run_gemm(a, b, pattern, arch=arch, dataflow=dataflow, engine="rtl")
            seconds = time.perf_counter() - start
            mismatches = int(np.count_nonzero(c.view(np.uint32) != want))
            wrong += mismatches + (result.cycles != result.model_cycles)
            table.add_row(
                text, dataflow.upper(), f"{result.cycles:,}", f"{result.model_cycles:,}",
                f"{result.ideal_cycles:,}", f"{result.utilisation:.3%}", str(mismatches),
                f"{seconds:.1f}",
            )
    stdout().print(table)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
