"""Co-simulation: train a workload, then run one more of its training steps on the RTL.

Networks that the chip's program generator takes run as one program on the chip
(:mod:`benchmarks.chip_step`), all others product by product on the array
(:mod:`benchmarks.array_step`); the workload says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import RenderableType

from algorithms import get_method
from algorithms.rules import as_pattern
from benchmarks import array_step, chip_step
from benchmarks.progress import Reporter, Silent
from benchmarks.registry import get_workload
from benchmarks.results import CosimResult
from benchmarks.workload import Trained, Workload
from compiler.chip.training_step import require_method
from rtl.architecture import Architecture
from rtl.pattern import NmPattern

__all__ = ["RtlStep", "build", "cosim", "cosim_trained", "predicted_cycles", "train"]


class RtlStep(Protocol):
    """A step that ran on the RTL, whichever part of it."""

    @property
    def result(self) -> CosimResult:
        """The sum over the step."""

    @property
    def utilisation(self) -> float:
        """Executed MACs over R * C * RTL cycles."""

    def table(self) -> RenderableType:
        """What ran, for a terminal."""


def build(workload: Workload, arch: Architecture, progress: Reporter) -> None:
    """Build the RTL that a step needs; callers do it before they train, so that a missing tool
    shows, of training too.

    Raises :class:`sim.toolchain.ToolError` when it cannot be built or a tool is missing.
    """
    workload.check_tools()
    if workload.engine == "chip":
        chip_step.build_chip(arch, progress)
    else:
        array_step.build_array(arch, progress)


def train(
    workload: Workload, method: str, pattern: NmPattern, size: str, seeds: Sequence[int],
    progress: Reporter, gradient: str | NmPattern = "1:2",
) -> list[Trained]:
    """Train once a seed, with the workload's own recipe."""
    trained = []
    with progress.task(f"{workload.name}: training {method}", None) as advance:
        for seed in seeds:

            def epoch(done: int, epochs: int, loss: float, seed: int = seed) -> None:
                advance(0, f"seed {seed}, epoch {done} of {epochs}, loss {loss:.3f}")

            trained.append(workload.fit(method, pattern, seed=seed, size=size, progress=epoch,
                                        gradient=gradient))
    return trained


def cosim_trained(
    workload: Workload, trained: Trained, arch: Architecture, size: str, seed: int = 0,
    progress: Reporter | None = None,
) -> RtlStep:
    """One more training step of a trained model, on ``step_batch`` training examples."""
    run = chip_step.chip_step if workload.engine == "chip" else array_step.array_step
    return run(workload, trained, arch, size, seed, progress)


def predicted_cycles(
    workload: Workload, trained: Trained, arch: Architecture, size: str, batch: int
) -> int:
    """Cycles of a training step of ``batch`` examples, memory and updates included, by the model
    of the chip's programs or, for workloads of the array, of the compiler's schedule."""
    predict = (chip_step.predicted_cycles if workload.engine == "chip"
               else array_step.predicted_cycles)
    return predict(workload, trained, arch, size, batch)


def cosim(
    name: str, *, pattern: NmPattern, arch: Architecture, size: str = "tiny", seed: int = 0,
    progress: Reporter | None = None, method: str | None = None,
    gradient: str | NmPattern = "1:2",
) -> RtlStep:
    """Train a workload, then one step on the RTL.

    ``method`` is BDWP by default, or dense for the dense pattern; ``gradient`` the pattern of dY in
    WU, for methods that sample it.

    Raises :class:`rtl.errors.ParameterError` for an unknown workload, size or method, a method that
    the chip does not train (the array trains all) or a pattern that the array cannot run,
    :class:`sim.toolchain.ToolError` when the RTL cannot be built.
    """
    progress = progress or Silent()
    workload = get_workload(name)
    pattern.require_hardware()
    sampled = as_pattern(gradient, "gradient").require_hardware("gradient")
    chosen = method or ("dense" if pattern.is_dense else "bdwp")
    get_method(chosen)
    if workload.engine == "chip":
        require_method(chosen)
    workload.check_size(size, trained=True)
    build(workload, arch, progress)
    trained = train(workload, chosen, pattern, size, [seed], progress, sampled)[0]
    return cosim_trained(workload, trained, arch, size, seed, progress)
