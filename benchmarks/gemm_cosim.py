"""GEMM by GEMM: a real training step on the RTL of the array, checked against the golden model.

Unlike the chip's programs (:mod:`benchmarks.chip_step`) this runs the GEMMs of every method, in
both dataflows: ``python -m benchmarks.gemm_cosim --method bdwp+wu``.

The step is captured from PyTorch (:mod:`compiler.array.capture`), each GEMM is mapped with the
fewest predicted cycles, run on the Verilated RTL, and compared bit for bit. What the array does not
get is listed first.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.console import RenderableType
from rich.table import Table

from algorithms import METHODS
from benchmarks.console import one_line_errors, stdout
from benchmarks.registry import get_workload
from benchmarks.results import CosimResult
from benchmarks.training import reproducible
from compiler.array.capture import Captured, Gemm, Unsupported, capture
from compiler.array.gemm import run_mapping
from compiler.array.mapping import GemmShape, Mapping, best_mapping
from rtl.architecture import PRESETS
from rtl.pattern import NmPattern
from sim import golden
from sim.engine import RtlEngine

__all__ = ["Cosim", "GemmCheck", "check_gemm", "cosim_gemms", "summary"]

Half = npt.NDArray[np.float16]
Single = npt.NDArray[np.float32]

_BATCH = 16


@dataclass(frozen=True)
class GemmCheck:
    """One GEMM that ran on the RTL; ``padded_channels`` as :class:`compiler.array.capture.Gemm`."""

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
    def elements(self) -> int:
        """Elements of C that were compared."""
        shape = self.mapping.shape
        return shape.batch * shape.p * shape.q

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

    def table(self) -> RenderableType:
        """A line a GEMM and their sum."""
        table = Table(title=f"{self.result.workload}: one training step on the RTL")
        table.add_column("GEMM")
        for name in ("P x Q x K", "pattern", "dataflow", "RTL cycles", "model", "utilisation",
                     "elements", "mismatches", "RTL vs FP64", "PyTorch vs FP64"):
            table.add_column(name, justify="right")
        for check in self.checks:
            shape = check.mapping.shape
            times = f"{shape.batch} x " if shape.batch > 1 else ""
            table.add_row(
                check.gemm, f"{times}{shape.p} x {shape.q} x {shape.k}", check.pattern,
                check.mapping.dataflow.upper(), f"{check.rtl_cycles:,}",
                f"{check.model_cycles:,}", f"{check.utilisation:.1%}", f"{check.elements:,}",
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


def check_gemm(
    name: str, mapping: Mapping, a: Half, b: Half, c: Single, torch_c: Single, cycles: int,
    padded_channels: int = 0,
) -> GemmCheck:
    """Hold what the RTL made of A (..., P, K) and B (..., K, Q) in ``cycles`` against the golden
    model, and both it and PyTorch's result against FP64."""
    mismatches, errors = 0, (0.0, 0.0)
    matrices = (one.reshape(-1, *one.shape[-2:]) for one in (a, b, c, torch_c))
    for left, right, got, other in zip(*matrices, strict=True):
        want = golden.gemm(left, right, mapping.shape.pattern)
        yardstick = golden.Yardstick.of(left, right, mapping.shape.pattern)
        mismatches += int(np.count_nonzero(got.view(np.uint32) != want.view(np.uint32)))
        errors = (max(errors[0], yardstick.error(got)), max(errors[1], yardstick.error(other)))
    return GemmCheck(name, mapping, padded_channels, cycles, mapping.cycles(), mismatches, *errors)


def _check(gemm: Gemm, mapping: Mapping, engine: RtlEngine) -> GemmCheck:
    c, cycles, _ = run_mapping(mapping, gemm.a, gemm.b, engine)
    return check_gemm(gemm.name, mapping, gemm.a, gemm.b, c, gemm.torch_c, cycles,
                      gemm.padded_channels)


def cosim_gemms(name: str, captured: Captured, engine: RtlEngine) -> Cosim:
    """Run captured GEMMs on the RTL, as many at a time as there are processors.

    Raises :class:`ValueError` if there is nothing to run: an empty check proves nothing.
    """
    if not captured.gemms:
        raise ValueError(f"{name}: the training step has no GEMM that the array can run")
    arch = engine.architecture
    start = time.perf_counter()
    plans = [
        (gemm, best_mapping(arch, GemmShape(gemm.a.shape[0], gemm.b.shape[1], gemm.a.shape[1],
                                            gemm.pattern)))
        for gemm in captured.gemms
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checks = list(pool.map(lambda plan: _check(plan[0], plan[1], engine), plans))
    return Cosim(summary(name, checks, time.perf_counter() - start), tuple(checks),
                 captured.unsupported)


def summary(
    name: str, checks: Sequence[GemmCheck], seconds: float, elements: int = 0, mismatches: int = 0,
) -> CosimResult:
    """The sum over all GEMMs; ``elements`` were compared beside theirs."""
    return CosimResult(
        workload=name,
        gemms=len(checks),
        elements=elements + sum(check.elements for check in checks),
        mismatches=mismatches + sum(check.mismatches for check in checks),
        max_rel_error_vs_fp64=max(check.rtl_error for check in checks),
        torch_rel_error_vs_fp64=max(check.torch_error for check in checks),
        rtl_cycles=sum(check.rtl_cycles for check in checks),
        model_cycles=sum(check.model_cycles for check in checks),
        seconds=seconds,
    )


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table for one method; status 1 if an element differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--method", default="sdgp", choices=sorted(METHODS), help="default: sdgp")
    parser.add_argument("--pattern", default="2:8", help="N:M; default: 2:8")
    parser.add_argument("--gradient", default="1:2",
                        help="N:M of dY in WU, for methods that sample it; default: 1:2")
    options = parser.parse_args(argv)
    workload, arch = get_workload("resnet9"), PRESETS["small"]
    pattern, gradient = (NmPattern.parse(text, name).require_hardware(name) for name, text in (
        ("--pattern", options.pattern), ("--gradient", options.gradient)))
    trained = workload.fit(options.method, pattern, epochs=1, seed=0, size="tiny",
                           gradient=gradient)
    batch = workload.batch("tiny", _BATCH, 0)
    with reproducible(0):
        captured = capture(
            trained.model,
            lambda: workload.training_step(trained.model, batch, trained.loss_scale),
        )
    step = cosim_gemms(workload.name, captured, RtlEngine(arch))
    stdout().print(*(f"not on the array: {item}" for item in step.unsupported), step.table())
    return int(step.result.mismatches != 0)


if __name__ == "__main__":
    sys.exit(main())
