"""A whole training step of a trained model with every matrix product on the RTL of the array.

For models that the chip's program generator does not take, such as transformers. PyTorch runs the
step and the host's share of it; each product of two matrices, of layers and inside attention, in
all three passes, runs on the Verilated array, and the step goes on with what came back
(:mod:`compiler.array.offload`). Each product is compared with the golden model. The same step then
runs with the golden model alone, and what it leaves behind, loss and all gradients, must have the
same bits. The weight update, with the selection for the next step, runs on the chip.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor, nn

from benchmarks.chip_step import build_chip
from benchmarks.gemm_cosim import Cosim, GemmCheck, check_gemm, summary
from benchmarks.progress import Reporter, Silent
from benchmarks.training import reproducible
from benchmarks.update_check import UpdateCheck, check_update
from benchmarks.workload import Trained, Workload
from compiler.array.capture import Unsupported
from compiler.array.gemm import run_mapping
from compiler.array.mapping import GemmShape, Mapping, best_mapping
from compiler.array.offload import Half, Offload, Product, Single
from compiler.chip.optimisers import AdamW
from compiler.chip.update_step import compile_update
from compiler.pipeline import compile_model
from rtl.architecture import Architecture
from rtl.errors import ParameterError
from rtl.pattern import NmPattern
from sim.engine import RtlEngine

__all__ = ["ArrayStep", "array_step", "build_array", "cosim_step", "predicted_cycles"]

_RATE = 1e-3
"""Learning rate of the update; any will do for the comparison."""


@dataclass(frozen=True)
class ArrayStep(Cosim):
    """A step that ran; ``left_behind`` counts the words of results and gradients that it left.

    ``update``: what became of the parameters that learn, if the chip updates such.
    """

    left_behind: int
    update: UpdateCheck | None = None

    @property
    def utilisation(self) -> float:
        """Executed MACs over R * C * RTL cycles, the update's included."""
        macs = sum(check.mapping.shape.macs for check in self.checks)
        return macs / (self.checks[0].mapping.architecture.pes * self.result.rtl_cycles)

    def table(self) -> Group:
        """A line a kind of product: alike in module, stage, sizes and pattern, whatever the layer.

        Errors are the largest against FP64, relative to |A||B|; ``busy`` is utilisation. Below it
        what the host computed instead of the array, if it was matrix work.
        """
        table = Table(title=f"{self.result.workload}: one step, every product on the RTL")
        for name in ("product", "stage"):
            table.add_column(name)
        for name in ("times", "P x Q x K", "pattern", "flow", "RTL cycles", "model", "busy",
                     "elements", "differ", "RTL error", "torch error"):
            table.add_column(name, justify="right")
        kinds: dict[tuple[str, ...], list[GemmCheck]] = {}
        for check in self.checks:
            kinds.setdefault(_kind(check), []).append(check)
        for (name, stage, *shape), checks in kinds.items():
            table.add_row(name, stage, str(len(checks)), *shape, *self._figures(checks))
        table.add_section()
        table.add_row("all", "", str(len(self.checks)), "", "", "", *self._figures(self.checks))
        result = self.result
        lines = [f"not on the array: {item}" for item in self.unsupported]
        lines += [str(self.update)] if self.update is not None else []
        last = (f"{self.left_behind:,} words of results and gradients compared too; "
                f"{result.mismatches:,} of {result.elements:,} words differ in all.")
        return Group(table, *lines, last)

    @staticmethod
    def _figures(checks: Sequence[GemmCheck]) -> tuple[str, ...]:
        cycles = sum(check.rtl_cycles for check in checks)
        macs = sum(check.mapping.shape.macs for check in checks)
        return (
            f"{cycles:,}", f"{sum(check.model_cycles for check in checks):,}",
            f"{macs / (checks[0].mapping.architecture.pes * cycles):.1%}",
            f"{sum(check.elements for check in checks):,}",
            f"{sum(check.mismatches for check in checks):,}",
            f"{max(check.rtl_error for check in checks):.1e}",
            f"{max(check.torch_error for check in checks):.1e}",
        )


def _kind(check: GemmCheck) -> tuple[str, ...]:
    """What a line of the table has in common; numbers of layers and of calls are left out."""
    shape = check.mapping.shape
    times = f"{shape.batch} x " if shape.batch > 1 else ""
    name, stage = check.gemm.split()
    name = re.sub(r"\[#\d+\]|^(\w+\.)*layers\.\d+\.|^base\.", "", name)
    return (name, stage, f"{times}{shape.p} x {shape.q} x {shape.k}",
            check.pattern, check.mapping.dataflow.upper())


class _Checked:
    """Runs products on the RTL and checks each."""

    def __init__(self, engine: RtlEngine, note: Callable[[str], None]) -> None:
        self.checks: list[GemmCheck] = []
        self._engine, self._say = engine, note
        self._mapping: Mapping | None = None
        self._cycles = 0

    def run(self, a: Half, b: Half, pattern: NmPattern) -> Single:
        """The product, with the mapping of the fewest predicted cycles."""
        batch, p, k = a.shape
        shape = GemmShape(p, b.shape[2], k, pattern, batch)
        self._mapping = best_mapping(self._engine.architecture, shape)
        if batch == 1:
            a, b = a[0], b[0]
        c, self._cycles, _ = run_mapping(self._mapping, a, b, self._engine)
        return c.reshape(batch, p, -1)

    def note(self, product: Product) -> None:
        """Check the product that has just run."""
        assert self._mapping is not None
        name = f"{product.name} {product.stage}"
        self._say(name)
        self.checks.append(check_gemm(name, self._mapping, product.a, product.b, product.c,
                                      product.torch_c, self._cycles))


def build_array(arch: Architecture, progress: Reporter) -> None:
    """Build the RTL of array and chip; raises :class:`sim.toolchain.ToolError` when it cannot."""
    with progress.task(f"RTL of {arch.name}", None) as advance:
        RtlEngine(arch, progress=lambda note: advance(0, note))
    build_chip(arch, progress)


def cosim_step(
    name: str, model: nn.Module, step: Callable[[], Sequence[Tensor]], engine: RtlEngine,
    seed: int = 0, note: Callable[[str], None] = lambda _: None,
    loss_scale: float | None = None,
) -> ArrayStep:
    """Run ``step`` of ``model`` on the RTL and on the golden model and compare.

    Parameters
    ----------
    step: what runs, passes over ``model``; returns what it computed. What it returns and all
        gradients of the model are compared, as 32-bit words.
    seed: of torch's global generator before each of the two runs.
    note: called with the name of each product that has run.
    loss_scale: of the gradients, with which an update on the chip follows; without it none does.

    Raises :class:`ValueError` if there is no product: an empty check proves nothing.
    """
    start = time.perf_counter()
    checked = _Checked(engine, note)
    with reproducible(seed), Offload(model, checked.run, checked.note) as offload:
        got = _left_behind(model, step)
    if not checked.checks:
        raise ValueError(f"{name}: the step has no product that the array can run")
    with reproducible(seed), Offload(model):
        wanted = _left_behind(model, step)
    differing = sum(int(np.count_nonzero(one != other))
                    for one, other in zip(got, wanted, strict=True))
    words = sum(one.size for one in wanted)
    elsewhere = [Unsupported(where, "operator", 0, f"{calls} calls computed by the host")
                 for where, calls in sorted(offload.elsewhere.items())]
    update = None
    if loss_scale is not None:
        note("update")
        try:
            program = compile_update(model, engine.architecture, optimiser=AdamW(_RATE),
                                     loss_scale=loss_scale)
        except ParameterError as reason:  # a method that the chip does not train
            elsewhere.append(Unsupported("update", "optimiser", 0, str(reason)))
        else:
            update = check_update(program)
    result = summary(name, checked.checks, time.perf_counter() - start,
                     words + (update.words if update else 0),
                     differing + (update.mismatches if update else 0))
    if update is not None:
        result = result.model_copy(update={
            "rtl_cycles": result.rtl_cycles + update.rtl_cycles,
            "model_cycles": result.model_cycles + update.model_cycles})
    return ArrayStep(result, tuple(checked.checks), tuple(elsewhere), words, update)


def _left_behind(
    model: nn.Module, step: Callable[[], Sequence[Tensor]]
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint32]]]:
    """Bits of what the step returns and of all gradients."""
    model.zero_grad(set_to_none=True)
    returned = list(step())
    gradients = [values.grad for values in model.parameters() if values.grad is not None]
    return [values.detach().float().contiguous().numpy().view(np.uint32)
            for values in (*returned, *gradients)]


def array_step(
    workload: Workload, trained: Trained, arch: Architecture, size: str, seed: int = 0,
    progress: Reporter | None = None,
) -> ArrayStep:
    """One more training step of a trained model, on ``step_batch`` examples, on the array."""
    batch = workload.batch(size, workload.step_batch, seed)
    engine, model = RtlEngine(arch), trained.model
    learns = any(values.requires_grad for values in model.parameters())
    with (progress or Silent()).task(f"{workload.name} on the RTL", None) as advance:
        return cosim_step(workload.name, model,
                          lambda: workload.step(model, batch, trained.loss_scale), engine, seed,
                          lambda name: advance(0, name), trained.loss_scale if learns else None)


def predicted_cycles(
    workload: Workload, trained: Trained, arch: Architecture, size: str, batch: int
) -> int:
    """Cycles of a step of ``batch`` examples as the compiler schedules it."""
    result, examples = trained.result, workload.batch(size, batch).to("meta")
    sparse = result.pattern != "dense"
    options: dict[str, Any] = {} if result.gradient == "dense" else {"gradient": result.gradient}
    with torch.device("meta"):
        model = workload.model(size, 0)
    cycles = 0
    for module, inputs in workload.passes(model, examples):
        learns = any(values.requires_grad for values in module.parameters())
        cycles += compile_model(
            module, *inputs, arch=arch, method=result.method if sparse else "dense",
            pattern=result.pattern if sparse else "2:8", name=workload.name, training=learns,
            **options).result.totals.cycles
    return cycles
