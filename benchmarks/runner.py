"""The benchmark runner: train dense and BDWP, run a step of both on the RTL, judge the claim."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from rich.console import Group, RenderableType
from rich.table import Table

from benchmarks.cosim import RtlStep, build, cosim_trained, predicted_cycles, train
from benchmarks.progress import Reporter, Silent
from benchmarks.registry import get_workload
from benchmarks.results import BenchRow
from benchmarks.workload import Trained, Workload
from rtl.architecture import Architecture
from rtl.pattern import NmPattern

__all__ = ["BenchReport", "bench"]


class BenchReport:
    """Rows of a benchmark run, two a workload: dense and BDWP."""

    def __init__(self) -> None:
        self.rows: list[BenchRow] = []

    @property
    def mismatches(self) -> int:
        """Memory words, over all rows, in which RTL and golden model differ."""
        return sum(row.mismatches for row in self.rows)

    def tables(self) -> list[RenderableType]:
        """One table a workload, a line a figure, a column a method; below it the claim."""
        shown: list[RenderableType] = []
        for name in dict.fromkeys(row.workload for row in self.rows):
            rows = [row for row in self.rows if row.workload == name]
            verdicts = (_verdict(row) for row in rows if row.claim is not None)
            shown.append(Group(self._table(rows), *verdicts))
        return shown

    @staticmethod
    def _table(rows: list[BenchRow]) -> Table:
        first = rows[0]
        table = Table()
        seeds = ", ".join(map(str, first.seeds))
        table.add_column(f"{first.workload} {first.size}, {first.arch} array, seeds {seeds}")
        for row in rows:
            label = row.method if row.pattern == "dense" else f"{row.method} {row.pattern}"
            table.add_column(label, justify="right")

        def line(label: str, *cells: str) -> None:
            table.add_row(label, *cells)

        line(first.metric.name, *(_spread(row.metric_values) for row in rows))
        line("training MACs saved", *(f"{1 - row.train_mac_ratio:.1%}" for row in rows))
        line("GEMMs on the RTL", *(str(row.gemms) for row in rows))
        line("RTL cycles", *(f"{row.rtl_cycles:,}" for row in rows))
        line("cycle model", *(f"{row.model_cycles:,}" for row in rows))
        batch = get_workload(first.workload).step_batch
        line(f"speed-up over dense, batch {batch}, RTL", *(f"{row.speedup:.2f}x" for row in rows))
        line(f"speed-up over dense, batch {first.train_batch}, model",
             *(f"{row.train_batch_speedup:.2f}x" for row in rows))
        line("utilisation", *(f"{row.utilisation:.1%}" for row in rows))
        line("words compared", *(f"{row.elements:,}" for row in rows))
        line("mismatches", *(f"{row.mismatches:,}" for row in rows))
        for who, name in (("RTL", "max_rel_error_vs_fp64"), ("PyTorch", "torch_rel_error_vs_fp64")):
            line(f"error vs FP64: {who}", *(f"{getattr(row, name):.1e}" for row in rows))
        line("seconds", *(f"{row.seconds:.1f}" for row in rows))
        return table


def _spread(values: list[float]) -> str:
    mean = f"{fmean(values):.2f}"
    return f"{mean} ± {stdev(values):.2f}" if len(values) > 1 else mean


def _verdict(row: BenchRow) -> str:
    claim = row.claim
    if claim is None:
        return ""
    verdict = "holds" if claim.holds else "does not hold"
    return (f"Claim: {claim.text}. Baseline {claim.baseline:.2f}, ours {claim.ours:.2f}, "
            f"{row.train_batch_speedup:.2f}x: {verdict}.")


def bench(
    names: Sequence[str], *, arch: Architecture, pattern: NmPattern, quick: bool = False,
    size: str = "small", progress: Reporter | None = None,
) -> BenchReport:
    """Benchmark workloads: dense against BDWP with ``pattern``.

    Every seed, with ``quick`` only the first, trains both methods on the same data; the model of
    the first seed then takes one more training step on the RTL.

    Raises :class:`rtl.errors.ParameterError` for an unknown workload or size, or a pattern the
    array cannot run, before any work starts.
    """
    progress = progress or Silent()
    workloads = [get_workload(name) for name in names]
    for workload in workloads:
        workload.check_size(size, trained=True)
    pattern.require_hardware()
    for workload in workloads:
        build(workload, arch, progress)
    report = BenchReport()
    for workload in workloads:
        seeds = list(range(1 if quick else workload.seeds))
        runs, models = {}, {}
        for method in ("dense", "bdwp"):
            trained = train(workload, method, pattern, size, seeds, progress)
            step = cosim_trained(workload, trained[0], arch, size, 0, progress)
            cycles = predicted_cycles(workload, trained[0], arch, size, workload.train_batch)
            models[method] = trained
            runs[method] = _row(workload, trained, step, cycles, size, arch, seeds)
        dense, sparse = runs["dense"], runs["bdwp"]
        speedup = dense.train_batch_cycles / sparse.train_batch_cycles
        with progress.task(f"{workload.name}: judging the claim", None):
            claim = workload.claim(models["dense"], models["bdwp"], speedup, size)
        report.rows += [dense, sparse.model_copy(update={
            "speedup": dense.rtl_cycles / sparse.rtl_cycles,
            "train_batch_speedup": speedup, "claim": claim,
        })]
    return report


def _row(
    workload: Workload, trained: list[Trained], step: RtlStep, train_batch_cycles: int, size: str,
    arch: Architecture, seeds: list[int],
) -> BenchRow:
    values = [run.result.metric.value for run in trained]
    training = trained[0].result
    return BenchRow(
        **{
            **training.model_dump(),
            **step.result.model_dump(),
            "metric": training.metric.model_copy(update={"value": fmean(values)}),
            "seconds": step.result.seconds + sum(run.result.seconds for run in trained),
        },
        size=size, arch=arch.name, seeds=seeds, metric_values=values,
        utilisation=step.utilisation, speedup=1.0, train_batch=workload.train_batch,
        train_batch_cycles=train_batch_cycles, train_batch_speedup=1.0,
    )
