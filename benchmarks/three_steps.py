"""Three training steps in a row on the RTL of the chip, beside PyTorch's.

``python -m benchmarks.three_steps`` trains the network without normalisation (convolution, bias,
ReLU, residual, linear; squared error) on real digits, BDWP 2:8, one uninterrupted program a step.
Weights, momentum and packed weights stay in device memory from step to step.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import nn

from algorithms import sparsify
from benchmarks.console import one_line_errors, stdout
from benchmarks.resnet9_digits import digits_fold
from benchmarks.training import reproducible
from compiler.chip.machine import GoldenMachine, RtlMachine, differing_words
from compiler.chip.optimisers import Sgd
from compiler.chip.training_step import compile_step
from models.plain import PLAIN_SIZES, plain_net
from rtl.architecture import PRESETS
from sim.chip import MemoryModel

__all__ = ["measure"]

_BATCH, _STEPS, _SCALE = 16, 3, 256.0
_TOLERANCE = 1e-3
_OPTIMISER = Sgd(learning_rate=0.1, momentum=0.9, weight_decay=5e-4)


def measure(steps: int = _STEPS) -> tuple[Table, bool]:
    """A line a step, and whether all memory and losses agree."""
    digits = digits_fold(0)[0]
    images = digits.inputs[:_BATCH].half().float()
    targets = F.one_hot(digits.targets[:_BATCH], 10).float()
    models: list[nn.Module] = [plain_net(PLAIN_SIZES["tiny"], 0) for _ in range(2)]
    for model in models:
        sparsify(model, "bdwp", "2:8")
    arch = PRESETS["tiny"]
    step = compile_step(models[0], images, arch, optimiser=_OPTIMISER, loss_scale=_SCALE)
    table = Table(title=f"plain network, tiny, {arch.rows} x {arch.cols} chip, batch {_BATCH}: "
                        f"{len(step.program):,} instructions, {len(step.points)} host points")
    table.add_column("step", justify="right")
    for name in ("loss, RTL", "loss, PyTorch", "RTL cycles", "memory words", "mismatches"):
        table.add_column(name, justify="right")
    optimiser = _OPTIMISER.torch(models[1].parameters())
    golden, good = GoldenMachine(step), True
    with reproducible(0), RtlMachine(step, MemoryModel.paper(arch)) as rtl:
        for number in range(1, steps + 1):
            want = _torch_step(models[1], optimiser, images, targets)
            golden.step(images, targets)
            loss = rtl.step(images, targets)
            mismatches, words = differing_words(golden, rtl)
            good &= not mismatches and abs(loss - want) <= _TOLERANCE * want
            table.add_row(str(number), f"{loss:.6f}", f"{want:.6f}",
                          f"{rtl.chip.counters()['cycles']:,}", f"{words:,}", str(mismatches))
    return table, good


def _torch_step(
    model: nn.Module, optimiser: torch.optim.Optimizer, images: torch.Tensor, targets: torch.Tensor
) -> float:
    optimiser.zero_grad()
    loss = F.mse_loss(model(images), targets)
    (loss * _SCALE).backward()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= _SCALE
    optimiser.step()
    return loss.item()


@one_line_errors
def main() -> int:
    """Print the table; status 1 if memory or a loss differs."""
    table, good = measure()
    stdout().print(table)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
