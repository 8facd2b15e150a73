"""How fast the RTL simulates: the native engine against cocotb, and the largest preset.

``python -m benchmarks.engine_speed`` compares cycles per second of the same design on this machine:
the native engine on a GEMM, all its files included, and a cocotb run whose Python drives the
operand pins every cycle. Then it builds the 32 x 32 array in an empty cache and runs a GEMM on it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.table import Table

from benchmarks.console import one_line_errors, stdout
from compiler.array.layout import assemble, build
from compiler.array.mapping import GemmShape, best_mapping
from rtl.architecture import PRESETS, Architecture
from rtl.pattern import DENSE
from sim import golden
from sim.engine import RtlEngine, cached_verilog
from sim.testbench import CocotbModel

__all__ = ["main"]

LEAST_RATIO = 20
LEAST_CYCLES_PER_SECOND = 4_000
MOST_BUILD_SECONDS = 180
ROUNDS = 5


def native_speed(arch: Architecture, size: tuple[int, int, int]) -> tuple[int, float]:
    """Simulated cycles and wall seconds of a checked dense GEMM (P, Q, K) on the native engine."""
    p, q, k = size
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float16) for shape in ((p, k), (k, q)))
    mapping = best_mapping(arch, GemmShape(p, q, k, DENSE))
    work, engine = build(mapping, a, b), RtlEngine(arch)
    start = time.perf_counter()
    run = engine.run(work)
    seconds = time.perf_counter() - start
    if assemble(mapping, run.words).tobytes() != golden.gemm(a, b).tobytes():
        raise AssertionError(f"the RTL of {arch.name} differs from the golden model")
    return run.simulated_cycles, seconds


def cocotb_speed(arch: Architecture) -> tuple[int, float]:
    """Simulated cycles and wall seconds of the cycle loop of the cocotb bench."""
    model = CocotbModel(cached_verilog(arch), "stce")
    with tempfile.TemporaryDirectory(prefix="nmsat-") as scratch:
        model.run("benchmarks.engine_speed_bench", Path(scratch))
        speed = json.loads((Path(scratch) / "speed.json").read_text())
    return int(speed["cycles"]), float(speed["seconds"])


@contextmanager
def _empty_cache() -> Iterator[None]:
    before = os.environ.get("NMSAT_CACHE")
    with tempfile.TemporaryDirectory(prefix="nmsat-") as folder:
        os.environ["NMSAT_CACHE"] = folder
        try:
            yield
        finally:
            os.environ.pop("NMSAT_CACHE")
            if before is not None:
                os.environ["NMSAT_CACHE"] = before


def _compare() -> bool:
    arch = PRESETS["tiny"]
    # In turns, and the best of each: what else the machine does only ever slows a run down.
    rounds = [(native_speed(arch, (64, 64, 4096)), cocotb_speed(arch)) for _ in range(ROUNDS)]
    rows = {
        name: min(measured, key=lambda run: run[1])
        for name, measured in zip(("native", "cocotb"), zip(*rounds, strict=True), strict=True)
    }
    speeds = {name: cycles / seconds for name, (cycles, seconds) in rows.items()}
    ratio: float = speeds["native"] / speeds["cocotb"]
    table = Table(title=f"STCE {arch.rows} x {arch.cols}")
    for name in ("engine", "cycles", "seconds", "cycles/s"):
        table.add_column(name, justify="right")
    for name, (cycles, seconds) in rows.items():
        table.add_row(name, f"{cycles:,}", f"{seconds:.2f}", f"{speeds[name]:,.0f}")
    table.add_row("ratio", "", "", f"{ratio:.1f}x (>= {LEAST_RATIO}x)")
    stdout().print(table)
    return ratio >= LEAST_RATIO


def _largest() -> bool:
    arch = PRESETS["paper"]
    with _empty_cache():
        start = time.perf_counter()
        cached_verilog(arch)
        written = time.perf_counter() - start
        RtlEngine(arch)
        built = time.perf_counter() - start
        cycles, seconds = native_speed(arch, (256, 256, 1024))
    speed = cycles / seconds
    table = Table(title=f"STCE {arch.rows} x {arch.cols}, empty cache")
    for name in ("what", "measured", "required"):
        table.add_column(name, justify="right")
    table.add_row("build", f"{built:.1f} s", f"< {MOST_BUILD_SECONDS} s")
    table.add_row("of it Verilog text", f"{written:.1f} s", "")
    table.add_row("cycles", f"{cycles:,}", "")
    table.add_row("cycles/s", f"{speed:,.0f}", f">= {LEAST_CYCLES_PER_SECOND:,}")
    stdout().print(table)
    return built < MOST_BUILD_SECONDS and speed >= LEAST_CYCLES_PER_SECOND


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; the status is 1 if a requirement is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=("compare", "largest"), help="one of the two tables")
    only = parser.parse_args(argv).only
    parts = {"compare": _compare, "largest": _largest}
    held = [run() for name, run in parts.items() if only in (None, name)]
    return int(not all(held))


if __name__ == "__main__":
    raise SystemExit(main())
