"""Layers of the full-size networks, a few tiles each, on the RTL of the 32 x 32 array.

``python -m benchmarks.sampled_layers`` compiles each network for BDWP, with ``--method bdwp+wu`` so
that WU is sparse too, takes GEMMs of every kind from its schedule, and runs their samples
(:mod:`compiler.schedule.sampling`) with operands of a real training step of the network in PyTorch.
Cycles must equal the model's, results the golden model's bits. The tilings are read back from the
network's ``program.bin``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.table import Table
from torch.overrides import TorchFunctionMode

from algorithms import METHODS, sparsify
from benchmarks.console import stdout
from benchmarks.networks import NETWORKS
from benchmarks.sources import source
from benchmarks.training import reproducible
from compiler.array.capture import capture
from compiler.array.gemm import run_mapping
from compiler.ir import Gemm
from compiler.pipeline import Compiled
from compiler.schedule.plan_words import GEMM, decode_plan, encode_plan, tiling_of
from compiler.schedule.sampling import sample_of
from compiler.schedule.tiling import Tiling
from models.catalogue import CATALOGUE
from rtl.architecture import PRESETS, Architecture
from rtl.pattern import NmPattern
from sim import golden
from sim.engine import RtlEngine

__all__ = ["SampleCheck", "chosen", "main", "run_samples"]

Half = npt.NDArray[np.float16]
_PER_NETWORK = 6


@dataclass(frozen=True)
class SampleCheck:
    """One sample that ran: sizes, cycles of RTL and model, elements that differ."""

    network: str
    gemm: str
    tiling: Tiling
    rtl_cycles: int
    model_cycles: int
    mismatches: int
    elements: int


def chosen(compiled: Compiled, count: int = _PER_NETWORK) -> list[tuple[Gemm, Tiling]]:
    """GEMMs of as many kinds as there are, the longest of each: stage, pattern, dataflow, shape.

    Tilings come from the words of the program.
    """
    words = [word for word in decode_plan(encode_plan(compiled.sparse, compiled.memory))
             if word.kind is GEMM]
    kinds: dict[tuple[object, ...], tuple[Gemm, Tiling]] = {}
    placed = sorted(zip(compiled.sparse.gemms, words, strict=True),
                    key=lambda pair: -pair[0].cycles)
    for one, word in placed:
        gemm = one.task
        if not isinstance(gemm, Gemm):
            raise AssertionError("not a GEMM")
        tiling = tiling_of(word, compiled.sparse.target)
        kind = (gemm.stage, tiling.problem.pattern, tiling.stationary, tiling.paired,
                gemm.weight is None, bool(gemm.part))
        kinds.setdefault(kind, (gemm, tiling))
    return list(kinds.values())[:count]


class _Attention(TorchFunctionMode):
    """Notes the operands of the first attention that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.query: torch.Tensor | None = None
        self.key = self.value = torch.empty(0)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """PyTorch calls this instead of each of its functions."""
        if func is F.scaled_dot_product_attention and self.query is None:
            self.query, self.key, self.value = (one.detach() for one in args[:3])
        return func(*args, **(kwargs or {}))


def operands(
    network: str, gemms: Sequence[Gemm], pattern: NmPattern, method: str = "bdwp"
) -> Iterator[tuple[Half, Half]]:
    """A (batch, P, K) and B (batch, K, Q) of each GEMM, from one step on two examples."""
    entry = CATALOGUE[network]
    with reproducible(0):
        model = entry.build("full", 0)
        sparsify(model, method, pattern)
        images = entry.example("full", 2)
        attention = _Attention()

        def step() -> None:
            with attention:
                scores = model(images)
            loss = F.cross_entropy(scores, torch.arange(len(images)))
            loss.backward()  # type: ignore[no-untyped-call]

        layers = {gemm.layer for gemm in gemms if gemm.weight is not None}
        captured = {(one.layer, one.stage): one for one in capture(model, step, layers).gemms}
    for gemm in gemms:
        if gemm.weight is not None:
            name = f"{gemm.layer}[{gemm.part}]" if gemm.part else gemm.layer
            found = captured[name, gemm.stage]
            yield found.a[None], found.b[None]
        else:
            yield _attention_operands(gemm, attention)


def _attention_operands(gemm: Gemm, attention: _Attention) -> tuple[Half, Half]:
    """Operands of a product of activations of the right sizes, out of query, key and value."""
    if attention.query is None:
        raise AssertionError("no attention ran")
    query, key, value = (one.flatten(0, -3).half().numpy()
                         for one in (attention.query, attention.key, attention.value))
    weights = torch.softmax(torch.from_numpy(query.astype(np.float32)) @ torch.from_numpy(
        key.astype(np.float32)).mT / query.shape[-1] ** 0.5, -1).half().numpy()
    turned = query.swapaxes(1, 2)
    for a, b in ((query, key.swapaxes(1, 2)), (weights, value), (turned, weights)):
        if (a.shape[1], a.shape[2], b.shape[2]) == (gemm.p, gemm.k, gemm.q):
            return a, b
    raise AssertionError(f"{gemm.name}: no operands of {gemm.p} x {gemm.k} x {gemm.q}")


def run_samples(
    network: str, engine: RtlEngine, count: int = _PER_NETWORK, method: str = "bdwp"
) -> list[SampleCheck]:
    """The samples of one network on the RTL.

    Raises :class:`ValueError` if there is none: an empty check proves nothing.
    """
    pattern = NmPattern(2, 8)
    compiled = source(network).compiled(arch=engine.architecture, method=method, pattern=pattern)
    picked = chosen(compiled, count)
    if not picked:
        raise ValueError(f"{network} has no GEMM to sample")
    checks = []
    for (gemm, tiling), (a, b) in zip(
            picked, operands(network, [gemm for gemm, _ in picked], pattern, method),
            strict=True):
        if tiling.swapped:
            a, b = b.swapaxes(1, 2), a.swapaxes(1, 2)
        checks.append(_check(network, gemm, tiling, a, b, engine))
    return checks


def _check(
    network: str, gemm: Gemm, tiling: Tiling, a: Half, b: Half, engine: RtlEngine
) -> SampleCheck:
    sample = sample_of(tiling, NmPattern(2, 8).m)
    shape = sample.mapping.shape
    a, b = (_cut(one, sizes) for one, sizes in ((a, (shape.batch, shape.p, shape.k)),
                                                (b, (shape.batch, shape.k, shape.q))))
    if shape.batch == 1:
        a, b = a[0], b[0]
    c, cycles, _ = run_mapping(sample.mapping, a, b, engine)
    want = (golden.gemm(a, b, shape.pattern) if a.ndim == 2 else np.stack(
        [golden.gemm(one, other, shape.pattern) for one, other in zip(a, b, strict=True)]))
    return SampleCheck(
        network, gemm.name, sample.tiling, cycles, sample.model_cycles,
        int(np.count_nonzero(c.view(np.uint32) != want.view(np.uint32))), want.size,
    )


def _cut(matrix: Half, sizes: tuple[int, int, int]) -> Half:
    """The corner of a matrix; where the two examples have less than the batch, it repeats."""
    for axis, size in enumerate(sizes):
        matrix = np.take(matrix, range(size), axis, mode="wrap")
    return np.ascontiguousarray(matrix)


def table(checks: Sequence[SampleCheck], architecture: Architecture) -> Table:
    """A line a sample."""
    made = Table(title=f"Samples on the RTL, {architecture.rows} x {architecture.cols}")
    for name in ("network", "GEMM", "pattern", "mapping"):
        made.add_column(name)
    for name in ("P x Q x K", "RTL cycles", "model", "elements", "mismatches"):
        made.add_column(name, justify="right")
    for one in checks:
        problem = one.tiling.problem
        times = f"{problem.batch} x " if problem.batch > 1 else ""
        made.add_row(
            one.network, one.gemm, str(problem.pattern), one.tiling.describe(),
            f"{times}{problem.p} x {problem.q} x {problem.k}", f"{one.rtl_cycles:,}",
            f"{one.model_cycles:,}", f"{one.elements:,}", str(one.mismatches),
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; status 1 if a cycle or a bit differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampled_layers",
                                     description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--method", default="bdwp", choices=sorted(METHODS), help="default: bdwp")
    options = parser.parse_args(arguments)
    engine = RtlEngine(PRESETS["paper"])
    checks = [check for name in options.networks
              for check in run_samples(name, engine, method=options.method)]
    stdout().print(table(checks, engine.architecture))
    wrong = [one for one in checks if one.mismatches or one.rtl_cycles != one.model_cycles]
    print(f"{len(checks)} samples, {len(wrong)} differ in a cycle or a bit")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
