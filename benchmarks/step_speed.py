"""What a sparse training step costs in PyTorch on a CPU, next to the dense one.

``python -m benchmarks.step_speed`` times whole steps (forward, backward, SGD with momentum) of
single layers and of the small ResNet-9, dense and BDWP 2:8 in turn, and prints the ratios. On a CPU
no product gets cheaper, so a ratio of 1 is the goal: what is above it are the masks, made once a
step. The limits are for precision ``native``, which computes what the dense layer does; ``fp16``
also rounds activations and gradients as the accelerator would, which the dense layer does not.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor, nn

from algorithms import get_method, sparsify
from benchmarks.console import one_line_errors, stdout
from benchmarks.registry import get_workload
from rtl.errors import ParameterError

__all__ = ["CASES", "Case", "Timing", "main", "measure"]

THREADS = 2
BATCH = 64


@dataclass(frozen=True)
class Case:
    """A model to time, on which input, and the largest ratio that the library promises."""

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    limit: float
    alone: bool = True
    """A single layer, as inside a network: with a BP, and sparse where it would stay dense."""


def _resnet9() -> nn.Module:
    return get_workload("resnet9").model("small", 0)


_ROUND = 10

CASES = (
    Case("conv 512 x 512, 3 x 3, on 4 x 4", lambda: nn.Conv2d(512, 512, 3, padding=1),
         lambda: torch.randn(BATCH, 512, 4, 4), 1.05),
    Case("linear 4096 x 4096", lambda: nn.Linear(4096, 4096), lambda: torch.randn(BATCH, 4096),
         1.25),
    Case("resnet9 small", _resnet9,
         lambda: get_workload("resnet9").batch("small", BATCH).inputs, 1.20, alone=False),
)


@dataclass(frozen=True)
class Timing:
    """Seconds of the steps of one case, dense and sparse, taken in turn."""

    dense: tuple[float, ...]
    sparse: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median of the ratios of neighbouring steps: what disturbs both cancels."""
        return statistics.median(s / d for s, d in zip(self.sparse, self.dense, strict=True))


def _step(model: nn.Module, inputs: Tensor, optimiser: torch.optim.Optimizer) -> float:
    start = time.perf_counter()
    optimiser.zero_grad()
    loss: Tensor = model(inputs).float().square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return time.perf_counter() - start


def measure(case: Case, precision: str, repeats: int, method: str = "bdwp") -> Timing:
    """Time ``repeats`` steps of both, with new models every tenth.

    Where in memory a model happens to lie changes its speed by several per cent.
    """
    torch.manual_seed(0)
    times: list[tuple[float, float]] = []
    for done in range(0, repeats, _ROUND):
        inputs = case.inputs().requires_grad_(case.alone)
        dense, sparse = case.model(), case.model()
        sparsify(sparse, method, "2:8", {"*": "2:8"} if case.alone else None, precision=precision)
        optimisers = [torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
                      for model in (dense, sparse)]
        both = [(_step(dense, inputs, optimisers[0]), _step(sparse, inputs, optimisers[1]))
                for _ in range(2 + min(_ROUND, repeats - done))]
        times += both[2:]  # two warm up
    return Timing(tuple(pair[0] for pair in times), tuple(pair[1] for pair in times))


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; status 1 if a ratio is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=100, help="steps of each; default: 100")
    parser.add_argument("--method", default="bdwp", help="default: bdwp")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        raise ParameterError("--repeats", options.repeats, "must be at least 1", 1)
    get_method(options.method, "--method")
    torch.set_num_threads(min(THREADS, os.cpu_count() or 1))
    table = Table(title=f"Step of {options.method} 2:8 over a dense step, batch {BATCH}, "
                        f"{torch.get_num_threads()} CPU threads")
    for column in ("model", "dense, ms", "native", "fp16", "limit"):
        table.add_column(column, justify="left" if column == "model" else "right")
    worst = 0.0
    for case in CASES:
        native, fp16 = (measure(case, precision, options.repeats, options.method)
                        for precision in ("native", "fp16"))
        worst = max(worst, native.ratio / case.limit)
        table.add_row(case.name, f"{min(native.dense) * 1e3:.1f}", f"{native.ratio:.3f}x",
                      f"{fp16.ratio:.3f}x", f"{case.limit:.2f}x")
    stdout().print(table)
    print("every native ratio within its limit" if worst <= 1
          else "a native ratio is above its limit")
    return int(worst > 1)


if __name__ == "__main__":
    sys.exit(main())
