"""One GEMM from operands to a checked result: map, run on an engine, report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from compiler.array.layout import assemble, build
from compiler.array.mapping import Dataflow, GemmShape, Mapping, best_mapping
from rtl.architecture import Architecture
from rtl.errors import ParameterError, closest
from rtl.pattern import NmPattern
from sim import golden
from sim.engine import RtlEngine

__all__ = ["Engine", "GemmResult", "run_gemm", "run_mapping"]

Engine = Literal["golden", "rtl"]


class Shape(BaseModel):
    """Sizes of ``C (P, Q) = A (P, K) @ B (K, Q)``."""

    model_config = ConfigDict(frozen=True)

    P: int = Field(description="Rows of A and C.")
    K: int = Field(description="Columns of A, rows of B.")
    Q: int = Field(description="Columns of B and C.")


class GemmResult(BaseModel):
    """What ``nmsat gemm --json`` writes."""

    model_config = ConfigDict(frozen=True)

    engine: str = Field(description="golden or rtl.")
    arch: str = Field(description="Name of the architecture.")
    pattern: str = Field(description="Pattern of B along K: dense or N:M.")
    dataflow: str = Field(description="ws or os, as run.")
    shape: Shape = Field(description="Sizes of the GEMM.")
    cycles: int = Field(description="Compute cycles: counted by the RTL, or the model's (golden).")
    model_cycles: int = Field(description="Compute cycles that the cycle model predicts.")
    ideal_cycles: int = Field(description="Executed MACs / (R * C), rounded up.")
    utilisation: float = Field(description="Executed MACs over R * C * cycles.")
    macs: int = Field(description="Executed multiply-accumulates.")
    dense_macs: int = Field(description="Multiply-accumulates without pruning.")
    nonfinite: bool = Field(description="Some element of C is Inf or NaN.")


def run_mapping(
    mapping: Mapping, a: npt.NDArray[np.float16], b: npt.NDArray[np.float16], engine: RtlEngine,
    *, stall_seed: int = 0, progress: Callable[[int, int], None] | None = None,
) -> tuple[npt.NDArray[np.float32], int, bool]:
    """Run a mapping on the RTL: C float32 (P, Q), busy cycles, and the sticky non-finite flag.

    Operands and C of a batch have one axis more, the first. ``progress`` is called with tiles done
    and tiles in all.
    """
    work = build(mapping, a, b)
    total = work.tiles
    run = engine.run(
        work, stall_seed=stall_seed,
        progress=None if progress is None else lambda done: progress(done, total),
    )
    c = assemble(mapping, run.words).reshape(*a.shape[:-1], mapping.shape.q)
    return c, run.cycles, bool(run.nonfinite.any())


def run_gemm(
    a: npt.NDArray[np.float16], b: npt.NDArray[np.float16], pattern: NmPattern,
    *, arch: Architecture, dataflow: Dataflow | Literal["auto"] = "auto",
    engine: Engine = "golden", trace: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    building: Callable[[str], None] | None = None,
) -> tuple[npt.NDArray[np.float32], GemmResult]:
    """``C = A @ B`` with B pruned to ``pattern`` along K first.

    Parameters
    ----------
    a, b: float16 (P, K) and (K, Q).
    engine: ``golden``, the bit-exact model, or ``rtl``, the Verilated hardware.
    trace: with ``rtl``, a file for an FST waveform.
    progress: called with tiles done and tiles in all.
    building: told when the model of the RTL has to be built first.

    Raises :class:`ParameterError` for operands or options outside these rules, and
    :class:`sim.toolchain.ToolError` when the RTL cannot be built or run.
    """
    for name, operand in (("A", a), ("B", b)):
        if operand.dtype != np.float16:
            raise ParameterError(f"{name}.dtype", str(operand.dtype), "must be float16", "float16")
        if operand.ndim != 2:
            raise ParameterError(f"{name}.shape", operand.shape, "must have two dimensions")
    if a.shape[1] != b.shape[0]:
        raise ParameterError("B.shape", b.shape, f"must have K={a.shape[1]} rows, as A has columns",
                             (a.shape[1], b.shape[1]))
    if engine not in ("golden", "rtl"):
        raise ParameterError("--engine", engine, "must be golden or rtl",
                             closest(engine, ("golden", "rtl")) or "golden")
    if trace is not None and engine != "rtl":
        raise ParameterError("--trace", str(trace), "needs --engine rtl")
    shape = GemmShape(a.shape[0], b.shape[1], a.shape[1], pattern)
    mapping = best_mapping(arch, shape, dataflow)
    model_cycles = cycles = mapping.cycles()
    if engine == "rtl":
        c, cycles, nonfinite = run_mapping(
            mapping, a, b, RtlEngine(arch, trace=trace, progress=building), progress=progress
        )
    else:
        c = golden.gemm(a, b, pattern)
        nonfinite = not bool(np.isfinite(c).all())
    return c, GemmResult(
        engine=engine, arch=arch.name, pattern=str(pattern), dataflow=mapping.dataflow,
        shape=Shape(P=shape.p, K=shape.k, Q=shape.q), cycles=cycles, model_cycles=model_cycles,
        ideal_cycles=shape.ideal_cycles(arch), utilisation=mapping.utilisation(cycles),
        macs=shape.macs, dense_macs=shape.dense_macs, nonfinite=nonfinite,
    )
