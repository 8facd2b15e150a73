"""A whole training step of a trained network on the RTL of the chip.

The step is compiled to one program (:mod:`compiler.chip.training_step`) and runs on two machines,
the golden interpreter and the Verilated chip with a model of its memory. Afterwards their memories
are compared word for word: activations, gradients, updated weights, optimiser state, packed weights
of the next step, and the program itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.console import Group
from rich.table import Table
from torch import Tensor

from benchmarks.progress import Reporter, Silent
from benchmarks.results import CosimResult
from benchmarks.training import reproducible
from benchmarks.workload import Trained, Workload
from compiler.array import lowering
from compiler.chip.host import from_device
from compiler.chip.machine import GoldenMachine, Machine, RtlMachine, differing_words
from compiler.chip.optimisers import Sgd
from compiler.chip.training_step import Layer, TrainingStep, compile_step
from rtl.architecture import Architecture
from sim.chip import Chip, MemoryModel
from sim.chip_cycles import predict
from sim.golden import Yardstick

__all__ = ["ChipStep", "build_chip", "chip_step", "cosim_step", "predicted_cycles"]

_RATE, _MOMENTUM, _DECAY = 0.01, 0.9, 5e-4
_PAGE = 4096


@dataclass(frozen=True)
class ChipStep:
    """A co-simulated training step: its sum, the program, and what the chip counted."""

    result: CosimResult
    step: TrainingStep
    model: MemoryModel
    counters: dict[str, int]
    loss: float

    @property
    def utilisation(self) -> float:
        """Executed MACs over R * C * RTL cycles, memory and update included."""
        return self.counters["macs"] / (self.step.architecture.pes * self.result.rtl_cycles)

    def table(self) -> Group:
        """What the chip did, and below it every stop for the host with its bytes."""
        result, counters = self.result, self.counters
        table = Table(title=f"{result.workload}: one training step on the RTL of the chip")
        table.add_column("figure")
        table.add_column("value", justify="right")

        def line(name: str, value: str) -> None:
            table.add_row(name, value)

        line("GEMMs", str(result.gemms))
        line("instructions", f"{counters['instructions']:,}")
        line("RTL cycles", f"{result.rtl_cycles:,}")
        line("cycle model", f"{result.model_cycles:,}")
        line("MACs executed", f"{counters['macs']:,}")
        line("MACs skipped by N:M", f"{counters['macs_skipped']:,}")
        line("utilisation", f"{self.utilisation:.1%}")
        for unit in ("load", "compute", "vector", "store"):
            busy, wait = (counters[f"{unit}_{what}"] for what in ("busy", "wait"))
            line(f"{unit.upper()} busy / waiting for others", f"{busy:,} / {wait:,}")
        bus = self.step.architecture.bus_bytes
        for way in ("read", "write"):
            line(f"bytes {'read' if way == 'read' else 'written'}",
                 f"{counters[f'{way}_beats'] * bus:,}")
        line("memory words compared", f"{result.elements:,}")
        line("mismatches", f"{result.mismatches:,}")
        line("weight gradients vs FP64: RTL", f"{result.max_rel_error_vs_fp64:.1e}")
        line("weight gradients vs FP64: PyTorch", f"{result.torch_rel_error_vs_fp64:.1e}")
        return Group(table, _host_table(self.step))


def _host_table(step: TrainingStep) -> Table | str:
    if not step.points:
        return "No host points: the step is one uninterrupted program."
    table = Table(title=f"{len(step.points)} host points")
    table.add_column("point")
    table.add_column("operators")
    table.add_column("bytes", justify="right")
    for point in step.points:
        table.add_row(point.name, point.operators, f"{point.bytes:,}")
    table.add_section()
    table.add_row("all", "", f"{sum(point.bytes for point in step.points):,}")
    return table


def build_chip(arch: Architecture, progress: Reporter) -> None:
    """Build the RTL of ``arch``; callers do it before they train, so that a missing tool shows.

    Raises :class:`sim.toolchain.ToolError` when it cannot be built.
    """
    with progress.task(f"RTL of {arch.name}", None) as advance:
        Chip(arch, _PAGE, progress=lambda note: advance(0, note)).close()


def cosim_step(
    name: str, step: TrainingStep, images: Tensor, targets: Tensor, model: MemoryModel,
    stop: Callable[[str], None] | None = None,
) -> ChipStep:
    """Run one step on both machines and compare."""
    start = time.perf_counter()
    golden = GoldenMachine(step)
    golden.step(images, targets)
    with RtlMachine(step, model) as rtl:
        loss = rtl.step(images, targets, stop)
        counters = rtl.chip.counters()
        mismatches, words = differing_words(golden, rtl)
        rtl_error, torch_error = (
            max(errors) for errors in zip(*(_errors(layer, step, rtl) for layer in step.layers),
                                          strict=True)
        )
    predicted = predict(step.program, step.architecture, model, step.bases)
    gemms = sum(section.name.split()[-1] in ("FF", "BP", "WU") for section in step.sections)
    result = CosimResult(
        workload=name, gemms=gemms, elements=words, mismatches=mismatches,
        max_rel_error_vs_fp64=rtl_error, torch_rel_error_vs_fp64=torch_error,
        rtl_cycles=counters["cycles"], model_cycles=predicted.cycles,
        seconds=time.perf_counter() - start,
    )
    return ChipStep(result, step, model, counters, loss)


def _errors(layer: Layer, step: TrainingStep, machine: Machine) -> tuple[float, float]:
    """Errors of the weight gradient in device memory and of PyTorch's for the same operands.

    Where dY was sampled, the same draw is in both.
    """
    node, image = layer.node, machine.image
    x = from_device(image, step.values[node.input], node.input)
    dy = (from_device(image, step.gradients[node.output], node.output) if layer.sample is None
          else layer.sample.load(image))
    if x.dim() == 2:
        x = x[:, :, None, None]
    if dy.dim() == 2:
        dy = dy[:, :, None, None]
    operands = lowering.weight_update(x, dy, node.conv)
    yardstick = Yardstick.of(operands.a.numpy(), operands.b.numpy())
    got = layer.weight.gradient.load(image)
    return (yardstick.error(np.asarray(got).reshape(yardstick.exact.shape)),
            yardstick.error(operands.torch_c.contiguous().numpy()))


def chip_step(
    workload: Workload, trained: Trained, arch: Architecture, size: str, seed: int = 0,
    progress: Reporter | None = None,
) -> ChipStep:
    """One more training step of a trained model, on ``step_batch`` examples, on the chip."""
    batch = workload.batch(size, workload.step_batch, seed)
    progress = progress or Silent()
    with reproducible(seed), progress.task(f"{workload.name} on the RTL", None) as advance:
        step = compile_step(
            trained.model, batch.inputs, arch, optimiser=Sgd(_RATE, _MOMENTUM, _DECAY),
            loss=workload.score_loss, loss_scale=trained.loss_scale, seed=seed,
        )
        return cosim_step(workload.name, step, batch.inputs, batch.targets,
                          MemoryModel.paper(arch), lambda name: advance(0, name))


def predicted_cycles(
    workload: Workload, trained: Trained, arch: Architecture, size: str, batch: int
) -> int:
    """Cycles of a training step of ``batch`` examples, by the cycle model."""
    model = MemoryModel.paper(arch)
    step = compile_step(
        trained.model, workload.batch(size, batch).inputs, arch, loss=workload.score_loss,
        optimiser=Sgd(_RATE, _MOMENTUM, _DECAY), loss_scale=trained.loss_scale,
    )
    return predict(step.program, arch, model, step.bases).cycles
