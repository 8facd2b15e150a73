"""What N:M training costs and saves on a GPU.

``python -m benchmarks.gpu_speed`` times, on the first CUDA device, the operands of FF and BP made
by :mod:`algorithms.gpu.select` (apart, both at once, and packed) against ``topk`` along the same
axes; then training steps of linear layers with them against dense ones. It writes the medians as
JSON and prints them as tables. Products are sparse on the device only for 2:4, in bfloat16.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from algorithms import apply_mask, nm_mask, sparsify
from algorithms.gpu import select, semi_structured
from algorithms.gpu.semi_structured import Product
from benchmarks.console import one_line_errors, stdout
from rtl.pattern import NmPattern
from sim.toolchain import ToolError

__all__ = ["main", "measure"]

PATTERNS = (NmPattern(2, 4), NmPattern(2, 8), NmPattern(2, 16))
WEIGHTS = ((4096, 4096), (11008, 4096), (512, 512, 3, 3))
LAYERS = ((4096, 4096), (4096, 11008))
"""C_in and C_out of the linear layers."""
ROWS = (512, 8192)
"""Rows (batch times tokens) of a step."""
WARM_UP, ROUNDS = 5, 30


def _milliseconds(run: Callable[[], object]) -> float:
    """Median time of the device for one call."""
    for _ in range(WARM_UP):
        run()
    times = []
    for _ in range(ROUNDS):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)))
    return median(times)


def _by_topk(weight: Tensor, pattern: NmPattern) -> tuple[Tensor, Tensor]:
    """Operands of FF and BP in stock PyTorch; its ``topk`` keeps any of equal magnitudes."""
    operand = weight.half()
    both = []
    for dim in (1, 0):
        magnitude = torch.unflatten(operand.abs(), dim, (-1, pattern.m))
        kept = magnitude.topk(pattern.n, dim=dim + 1, sorted=False).indices
        mask = torch.zeros_like(magnitude, dtype=torch.bool).scatter_(dim + 1, kept, True)
        both.append(torch.where(mask.flatten(dim, dim + 1), operand.float(), 0.0))
    return both[0], both[1]


def _operands(shape: tuple[int, ...], pattern: NmPattern) -> dict[str, Any]:
    """Times of both operands of one float32 weight, once they are known to be right."""
    weight = torch.randn(shape, device="cuda")
    half, full = torch.float16, torch.float32
    rounded = weight.half().float()
    made = select.prune_both(weight, pattern, 1, half, full)
    for operand, dim in zip(made, (1, 0), strict=True):
        if not torch.equal(operand, apply_mask(rounded, nm_mask(weight, pattern, dim))):
            raise AssertionError(f"the kernel is wrong for {shape}, {pattern}")

    def apart() -> list[Tensor]:
        return [select.prune(weight, pattern, view, half, full)
                for view in select.both_views(shape, 1)]

    times = {
        "both_ms": _milliseconds(lambda: select.prune_both(weight, pattern, 1, half, full)),
        "apart_ms": _milliseconds(apart),
        "packed_ms": _milliseconds(lambda: select.pack_both(weight, pattern, 1, half)),
        "copy_ms": _milliseconds(lambda: (weight.clone(), weight.clone())),
        "topk_ms": _milliseconds(lambda: _by_topk(weight, pattern)),
    }
    return {"weight": list(shape), "pattern": str(pattern), **times,
            "topk_over_both": times["topk_ms"] / times["both_ms"]}


def _step(layer: nn.Linear, rows: int) -> Callable[[], None]:
    """One training step, with an update, so that the operands are made anew."""
    x = torch.randn(rows, layer.in_features, device="cuda", dtype=torch.bfloat16,
                    requires_grad=True)
    dy = torch.randn(rows, layer.out_features, device="cuda", dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-6)

    def run() -> None:
        optimizer.zero_grad()
        x.grad = None
        layer(x).backward(dy)
        optimizer.step()

    return run


def _steps(size: tuple[int, int], rows: int, pattern: NmPattern) -> dict[str, Any]:
    """Times of steps of one linear layer in bfloat16: dense in plain torch, and BDWP."""
    dense = nn.Linear(*size, device="cuda", dtype=torch.bfloat16)
    sparse = nn.Linear(*size, device="cuda", dtype=torch.bfloat16)
    sparsify(sparse, "bdwp", pattern, rules={nn.Linear: pattern}, precision="native")
    inputs, outputs = size
    backend = semi_structured._backend(dense.weight.device)
    product = Product(pattern, torch.bfloat16, outputs, inputs, rows)
    times = {"dense_ms": _milliseconds(_step(dense, rows)),
             "bdwp_ms": _milliseconds(_step(sparse, rows))}
    return {"layer": list(size), "rows": rows, "pattern": str(pattern),
            "products": semi_structured.route(product, backend) or "dense", **times,
            "bdwp_over_dense": times["bdwp_ms"] / times["dense_ms"]}


def measure() -> dict[str, Any]:
    """All times, in milliseconds; ``operands`` and ``steps`` are rows of the tables."""
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "operands": [_operands(shape, pattern) for shape in WEIGHTS for pattern in PATTERNS],
        "steps": [_steps(size, rows, pattern)
                  for size in LAYERS for rows in ROWS for pattern in PATTERNS[:2]],
    }


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else
                        "x".join(map(str, cell)) if isinstance(cell, list) else str(cell)
                        for cell in row.values()))
    stdout().print(table)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the JSON and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_speed", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("gpu_speed.json"),
                        help="where to write the times (default: %(default)s)")
    path: Path = parser.parse_args(argv).json
    if not torch.cuda.is_available():
        raise ToolError("benchmarks.gpu_speed measures on a CUDA device, and torch finds none")
    if not select.available(torch.empty(0, device="cuda")):
        raise ToolError("benchmarks.gpu_speed measures Triton kernels: pip install triton")
    times = measure()
    path.write_text(json.dumps(times, indent=1) + "\n")
    _print(f"Operands of FF and BP, {times['device']}", times["operands"])
    _print("Training steps of a linear layer, bfloat16", times["steps"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
