"""Co-simulation: every GEMM of a real training step on the RTL, checked against the golden model.

The step is captured from PyTorch (:mod:`compiler.capture`), each GEMM is mapped with the fewest
predicted cycles, run on the Verilated RTL, and compared bit for bit. What the array does not get
is listed first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from benchmarks.progress import Reporter, Silent
from benchmarks.registry import get_workload
from benchmarks.results import CosimResult
from benchmarks.training import reproducible
from benchmarks.workload import Trained, Workload
from compiler.capture import Captured, Gemm, Unsupported, capture
from compiler.gemm import run_mapping
from compiler.mapping import GemmShape, Mapping, best_mapping
from rtl.architecture import Architecture
from rtl.pattern import NmPattern
from sim import golden
from sim.engine import RtlEngine

__all__ = [
    "BATCH",
    "Cosim",
    "GemmCheck",
    "build_engine",
    "cosim",
    "cosim_gemms",
    "cosim_trained",
    "train",
]

BATCH = 16
"""Examples in the training step that runs on the RTL."""


@dataclass(frozen=True)
class GemmCheck:
    """One GEMM that ran on the RTL; ``padded_channels`` as :class:`compiler.capture.Gemm`."""

    gemm: str
    mapping: Mapping
    padded_channels: int
    rtl_cycles: int
    model_cycles: int
    mismatches: int
    rtl_error: float
    torch_error: float

    @property
    def utilisation(self) -> float:
        """Executed MACs over R * C * RTL cycles."""
        return self.mapping.utilisation(self.rtl_cycles)

    @property
    def pattern(self) -> str:
        """The pattern, and the zero channels that fill each tap's last group if there are any."""
        padding = f", +{self.padded_channels} channels" if self.padded_channels else ""
        return f"{self.mapping.shape.pattern}{padding}"


@dataclass(frozen=True)
class Cosim:
    """A co-simulated training step: the sum, its GEMMs, and what the array did not get."""

    result: CosimResult
    checks: tuple[GemmCheck, ...]
    unsupported: tuple[Unsupported, ...]

    @property
    def utilisation(self) -> float:
        """Executed MACs over R * C * RTL cycles, over the whole step."""
        macs = sum(check.mapping.shape.macs for check in self.checks)
        pes = self.checks[0].mapping.architecture.pes
        return macs / (pes * self.result.rtl_cycles)

    def table(self) -> Table:
        """A line a GEMM and their sum."""
        table = Table(title=f"{self.result.workload}: one training step on the RTL")
        table.add_column("GEMM")
        for name in ("P x Q x K", "pattern", "dataflow", "RTL cycles", "model", "utilisation",
                     "elements", "mismatches", "RTL vs FP64", "PyTorch vs FP64"):
            table.add_column(name, justify="right")
        for check in self.checks:
            shape = check.mapping.shape
            table.add_row(
                check.gemm, f"{shape.p} x {shape.q} x {shape.k}", check.pattern,
                check.mapping.dataflow.upper(), f"{check.rtl_cycles:,}",
                f"{check.model_cycles:,}", f"{check.utilisation:.1%}", f"{shape.p * shape.q:,}",
                str(check.mismatches), f"{check.rtl_error:.1e}", f"{check.torch_error:.1e}",
            )
        total = self.result
        table.add_section()
        table.add_row(
            f"{total.gemms} GEMMs", "", "", "", f"{total.rtl_cycles:,}",
            f"{total.model_cycles:,}", f"{self.utilisation:.1%}", f"{total.elements:,}",
            str(total.mismatches), f"{total.max_rel_error_vs_fp64:.1e}",
            f"{total.torch_rel_error_vs_fp64:.1e}",
        )
        return table


def _check(gemm: Gemm, mapping: Mapping, engine: RtlEngine) -> GemmCheck:
    c, cycles, _ = run_mapping(mapping, gemm.a, gemm.b, engine)
    want = golden.gemm(gemm.a, gemm.b, gemm.pattern)
    yardstick = golden.Yardstick.of(gemm.a, gemm.b, gemm.pattern)
    return GemmCheck(
        gemm.name, mapping, gemm.padded_channels, cycles, mapping.cycles(),
        int(np.count_nonzero(c.view(np.uint32) != want.view(np.uint32))),
        yardstick.error(c), yardstick.error(gemm.torch_c),
    )


def build_engine(arch: Architecture, progress: Reporter) -> RtlEngine:
    """The RTL of ``arch``; callers build it before they train, so that a missing tool shows first.

    Raises :class:`sim.toolchain.ToolError` when it cannot be built.
    """
    with progress.task(f"RTL of {arch.name}", None) as advance:
        return RtlEngine(arch, progress=lambda note: advance(0, note))


def cosim_gemms(
    name: str, captured: Captured, engine: RtlEngine, progress: Reporter | None = None
) -> Cosim:
    """Run captured GEMMs on the RTL, as many at a time as there are processors.

    Raises :class:`ValueError` if there is nothing to run: an empty check proves nothing.
    """
    progress = progress or Silent()
    if not captured.gemms:
        raise ValueError(f"{name}: the training step has no GEMM that the array can run")
    arch = engine.architecture
    start = time.perf_counter()
    plans = [
        (gemm, best_mapping(arch, GemmShape(gemm.a.shape[0], gemm.b.shape[1], gemm.a.shape[1],
                                            gemm.pattern)))
        for gemm in captured.gemms
    ]
    with (
        progress.task(f"{name} on the RTL", len(plans)) as advance,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        running = [pool.submit(_check, gemm, mapping, engine) for gemm, mapping in plans]
        checks = []
        for done, future in enumerate(running, 1):
            checks.append(future.result())
            advance(done, checks[-1].gemm)
    return Cosim(_summary(name, checks, time.perf_counter() - start), tuple(checks),
                 captured.unsupported)


def _summary(name: str, checks: list[GemmCheck], seconds: float) -> CosimResult:
    return CosimResult(
        workload=name,
        gemms=len(checks),
        elements=sum(check.mapping.shape.p * check.mapping.shape.q for check in checks),
        mismatches=sum(check.mismatches for check in checks),
        max_rel_error_vs_fp64=max(check.rtl_error for check in checks),
        torch_rel_error_vs_fp64=max(check.torch_error for check in checks),
        rtl_cycles=sum(check.rtl_cycles for check in checks),
        model_cycles=sum(check.model_cycles for check in checks),
        seconds=seconds,
    )


def train(
    workload: Workload, method: str, pattern: NmPattern, size: str, seeds: Sequence[int],
    progress: Reporter,
) -> list[Trained]:
    """Train once a seed, with the workload's own recipe."""
    trained = []
    with progress.task(f"{workload.name}: training {method}", None) as advance:
        for seed in seeds:

            def epoch(done: int, epochs: int, loss: float, seed: int = seed) -> None:
                advance(0, f"seed {seed}, epoch {done} of {epochs}, loss {loss:.3f}")

            trained.append(workload.fit(method, pattern, seed=seed, size=size, progress=epoch))
    return trained


def cosim_trained(
    workload: Workload, trained: Trained, engine: RtlEngine, size: str, seed: int = 0,
    progress: Reporter | None = None,
) -> Cosim:
    """One more training step of a trained model, on ``BATCH`` training examples, on the RTL."""
    batch = workload.batch(size, BATCH, seed)
    with reproducible(seed):
        captured = capture(
            trained.model,
            lambda: workload.training_step(trained.model, batch, trained.loss_scale),
        )
    return cosim_gemms(workload.name, captured, engine, progress)


def cosim(
    name: str, *, pattern: NmPattern, arch: Architecture, size: str = "tiny", seed: int = 0,
    progress: Reporter | None = None,
) -> Cosim:
    """Train a workload (BDWP, or dense for the dense pattern), then one step on the RTL.

    Raises :class:`rtl.errors.ParameterError` for an unknown workload or size or a pattern that
    the array cannot run, :class:`sim.toolchain.ToolError` when the RTL cannot be built.
    """
    progress = progress or Silent()
    workload = get_workload(name)
    pattern.require_hardware()
    method = "dense" if pattern.is_dense else "bdwp"
    workload.check_size(size, trained=True)
    engine = build_engine(arch, progress)
    trained = train(workload, method, pattern, size, [seed], progress)[0]
    return cosim_trained(workload, trained, engine, size, seed, progress)
