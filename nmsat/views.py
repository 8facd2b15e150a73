"""Results as tables and text."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter
from rich.table import Table

from benchmarks.results import BenchRow
from benchmarks.workload import TrainResult
from compiler.array.gemm import GemmResult
from rtl.pattern import NmPattern

__all__ = ["gemm_table", "rows_json", "train_table"]


def _figures(title: str, *lines: tuple[str, str]) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for line in lines:
        table.add_row(*line)
    return table


def gemm_table(result: GemmResult) -> Table:
    """One GEMM."""
    shape, pattern = result.shape, NmPattern.parse(result.pattern)
    padded = pattern.groups(shape.K) * pattern.m
    return _figures(
        f"{shape.P} x {shape.K} @ {shape.K} x {shape.Q}, {result.pattern}, on {result.arch}",
        ("engine", result.engine),
        ("dataflow", result.dataflow),
        ("cycles", f"{result.cycles:,}"),
        ("cycles, model", f"{result.model_cycles:,}"),
        ("cycles, ideal", f"{result.ideal_cycles:,}"),
        ("utilisation", f"{result.utilisation:.1%}"),
        *((("K, padded with zeros to", f"{padded:,}"),) if padded != shape.K else ()),
        ("MACs", f"{result.macs:,} of {result.dense_macs:,}"),
        ("Inf or NaN in C", "yes" if result.nonfinite else "no"),
    )


def train_table(result: TrainResult) -> Table:
    """One training run."""
    return _figures(
        f"{result.workload}, {result.method}, {result.pattern}",
        (result.metric.name, f"{result.metric.value:.2f}"),
        ("training MACs, of dense", f"{result.train_mac_ratio:.1%}"),
        ("epochs", str(result.epochs)),
        ("seed", str(result.seed)),
        ("seconds", f"{result.seconds:.1f}"),
    )


def rows_json(rows: Sequence[BenchRow]) -> str:
    """Benchmark rows as a JSON list."""
    return TypeAdapter(list[BenchRow]).dump_json(list(rows), indent=2).decode()
