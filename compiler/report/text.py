"""A compiled step as tables for the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from compiler.report.result import CompileResult
from compiler.report.summaries import CAUSES, host_groups

__all__ = ["as_text", "dense_lines", "host_table", "layer_table", "totals_table"]


def as_text(*tables: RenderableType) -> str:
    """Tables as plain text."""
    page = Console(file=io.StringIO(), width=120)
    with page.capture() as captured:
        page.print(*tables, sep="\n")
    return captured.get().rstrip("\n")


def layer_table(result: CompileResult, limit: int | None = None) -> Table:
    """The GEMMs in order of execution; with ``limit``, the ones with the most cycles."""
    rows = list(result.layers)
    title = f"{result.workload}, {result.label}, on {result.arch}"
    table = Table(title=Text(title))
    if limit is not None and limit < len(rows):
        rows = sorted(rows, key=lambda row: -row.cycles)[:limit]
        share = sum(row.cycles for row in rows) / sum(row.cycles for row in result.layers)
        table.caption = (f"the {limit} GEMMs with the most cycles of {len(result.layers)}: "
                         f"{share:.1%} of all")
    for name in ("layer", "stage"):
        table.add_column(name, overflow="fold")
    for name in ("P", "Q", "K", "batch"):
        table.add_column(name, justify="right")
    for name in ("mode", "dataflow"):
        table.add_column(name)
    for name in ("cycles", "speed-up", "utilisation", "DRAM MB"):
        table.add_column(name, justify="right")
    table.add_column("bound")
    table.add_column("gap", justify="right")
    for row in rows:
        # As text: brackets in a module's name are no markup.
        table.add_row(
            Text(row.name), row.stage, f"{row.P:,}", f"{row.Q:,}", f"{row.K:,}", f"{row.batch:,}",
            row.mode, row.dataflow, f"{row.cycles:,}", f"{row.dense_cycles / row.cycles:.2f}x",
            f"{row.utilisation:.1%}", f"{row.dram_bytes / 1e6:,.2f}", row.bound, f"{row.gap:.1%}",
        )
    return table


def totals_table(result: CompileResult) -> Table:
    """The whole step, dense beside sparse."""
    totals = result.totals
    table = Table(title=Text(f"{result.workload} on {result.arch}, {result.paths} paths"))
    table.add_column()
    table.add_column("dense", justify="right")
    table.add_column(result.label, justify="right")
    for line in _figures(result):
        table.add_row(*line)
    table.add_section()
    for key, (name, _) in CAUSES.items():
        dense, sparse = totals.dense_attribution[key], totals.attribution[key]
        if dense or sparse:
            table.add_row(name, f"{dense / max(1, totals.dense_cycles):.1%}",
                          f"{sparse / max(1, totals.cycles):.1%}")
    if result.host:
        table.caption = (f"without the time of {len(result.host)} operators of the host, which "
                         f"move {totals.host_bytes / 1e9:,.2f} GB")
    return table


def _figures(result: CompileResult) -> Iterator[tuple[str, str, str]]:
    """Lines of the totals: name, dense, sparse."""
    totals = result.totals
    dense_seconds = totals.seconds * totals.dense_cycles / totals.cycles
    flop = 2 * totals.dense_macs / 1e9
    yield "cycles", f"{totals.dense_cycles:,}", f"{totals.cycles:,}"
    yield "speed-up", "1.00x", f"{totals.speedup:.2f}x"
    yield "MACs, of dense", "100.0%", f"{totals.mac_ratio:.1%}"
    yield "utilisation", f"{totals.dense_utilisation:.1%}", f"{totals.utilisation:.1%}"
    yield ("effective GFLOP/s", f"{flop / dense_seconds:,.1f}",
           f"{totals.effective_gflops:,.1f}")
    yield "time, ms", f"{dense_seconds * 1e3:,.2f}", f"{totals.seconds * 1e3:,.2f}"
    yield "DRAM traffic, GB", "-", f"{totals.dram_bytes / 1e9:,.3f}"
    yield "device memory, GiB", "-", f"{sum(result.memory.values()) / 2**30:,.3f}"


def dense_lines(result: CompileResult) -> str:
    """Which layers stay dense, a line a reason; empty for a method that prunes nothing."""
    if result.method == "dense":
        return ""
    names: dict[str, list[str]] = {}
    for row in result.dense:
        names.setdefault(row.reason, []).append(row.name)
    return "\n".join(
        f"dense, {reason}: {', '.join(some[:4])}" + (f" and {len(some) - 4} more" * (len(some) > 4))
        for reason, some in names.items()
    )


def host_table(result: CompileResult) -> Table:
    """Operators of the host, those with the most bytes first."""
    table = Table(title=Text(f"{result.workload}: operators of the host"))
    table.add_column("operator", overflow="fold")
    table.add_column("pass")
    table.add_column("calls", justify="right")
    table.add_column("MB", justify="right")
    table.add_column("cost")
    for group in host_groups(result.host):
        table.add_row(Text(group.operator), "backward" if group.backward else "forward",
                      f"{group.calls:,}", f"{group.bytes / 1e6:,.2f}",
                      "not known" if group.fallback else "known")
    return table
