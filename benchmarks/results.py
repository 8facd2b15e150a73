"""What benchmarks report: one pydantic model a kind of result; its fields are the JSON keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.workload import Claim, TrainResult

__all__ = ["BenchRow", "CosimResult"]


class CosimResult(BaseModel):
    """One training step on the RTL; the keys are those of ``nmsat cosim --json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: str = Field(description="Name of the workload.")
    gemms: int = Field(description="GEMMs of the step.")
    elements: int = Field(
        description="32-bit words compared between RTL and golden model: of device memory, and "
        "on the array of products, results and gradients.")
    mismatches: int = Field(description="Words that differ.")
    max_rel_error_vs_fp64: float = Field(
        description="Largest error against FP64, relative to |A||B|: of a weight gradient, or on "
        "the array of any product.")
    torch_rel_error_vs_fp64: float = Field(
        description="Largest error of PyTorch's own kernels, measured the same way.")
    rtl_cycles: int = Field(
        description="Cycles of the whole step that the RTL counted, update included; on the chip "
        "memory too, on the array products have their operands in its buffers.")
    model_cycles: int = Field(description="Cycles that the cycle model predicts.")
    seconds: float = Field(description="Wall time of the co-simulation.")


class BenchRow(TrainResult, CosimResult):
    """Training and co-simulation of one method; ``metric.value`` is the mean over ``seeds``."""

    size: str = Field(description="Size of the workload.")
    arch: str = Field(description="Architecture of the RTL.")
    seeds: list[int] = Field(description="Seeds that were trained.")
    metric_values: list[float] = Field(description="The metric for each seed.")
    utilisation: float = Field(description="Executed MACs over R * C * rtl_cycles.")
    speedup: float = Field(description="RTL cycles of the dense baseline over this row's.")
    train_batch: int = Field(description="Examples of a step in the workload's own recipe.")
    train_batch_cycles: int = Field(description="Cycles of such a step, by the cycle model.")
    train_batch_speedup: float = Field(
        description="Dense baseline over this row for such steps, by the cycle model.")
    claim: Claim | None = Field(None, description="The workload's claim, on the row it is about.")
