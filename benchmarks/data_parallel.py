"""Does data-parallel training of a sparse model equal training in one process?

``python -m benchmarks.data_parallel --ranks 2`` starts its own processes; ``torchrun
--nproc-per-node 2 -m benchmarks.data_parallel`` runs in those of torchrun. A small network trains
on every rank, each on its share of every batch, and once more in one process on whole batches.

Masks are those that the passes read, of all layers, FF and BP, at every step, and must be equal to
the last element. Losses and weights may differ by the order of sums: everything is computed in
float64 (precision ``"native"``), where that order moves them by some 1e-15 and a mask flips only
for two magnitudes of a group closer than that; :data:`TOLERANCE` is far above it and far below what
any real difference, a stale mask or a decay counted twice, does to them. No layer couples examples
(group and layer norms). The status is 1 if anything differs, 2 for bad input.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, RootModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from algorithms import get_method, sparse_layers, sparsify
from algorithms.layers import NmLayer
from benchmarks.console import one_line_errors
from rtl.errors import ParameterError, closest

__all__ = ["STRATEGIES", "TOLERANCE", "Agreement", "Run", "compare", "main", "network"]

STRATEGIES = ("ddp", "fsdp")
"""DistributedDataParallel; or FSDP2, ``fully_shard`` of every block and of the whole."""

TOLERANCE = 1e-10
"""Largest relative difference of losses and of weights that counts as equal."""

SEED = 0


class Agreement(BaseModel):
    """How far data-parallel training and one process agree; the fields are the JSON keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field(description="Sparse-training method.")
    strategy: str = Field(description="ddp or fsdp.")
    ranks: int = Field(description="Data-parallel processes.")
    steps: int = Field(description="Optimiser steps.")
    mask_elements: int = Field(description="Elements of all masks of all steps, on one rank.")
    mask_moves: int = Field(description="Changes of those elements from one step to the next.")
    rank_mismatches: int = Field(description="Mask elements in which a rank differs from rank 0.")
    single_mismatches: int = Field(description="Mask elements in which rank 0 and one process "
                                               "differ.")
    loss_error: float = Field(description="Largest relative difference of a step's loss.")
    weight_error: float = Field(description="Largest difference of a final weight, relative to "
                                            "the largest weight of its tensor.")
    equal: bool = Field(description="No mismatch, and both errors within the tolerance.")


@dataclass(frozen=True)
class Run:
    """What one training run does; ``batch`` is that of all ranks together."""

    method: str
    strategy: str = "ddp"
    steps: int = 20
    batch: int = 16

    def check(self, ranks: int) -> None:
        """Raise :class:`ParameterError` for what cannot be compared."""
        method = get_method(self.method, "--methods")
        if method.update == "grad":
            rule = "draws another sample on each rank, which no single process repeats"
            raise ParameterError("--methods", self.method, rule, "bdwp")
        if self.strategy not in STRATEGIES:
            raise ParameterError("--strategy", self.strategy,
                                 f"must be one of {', '.join(STRATEGIES)}",
                                 closest(self.strategy, STRATEGIES) or STRATEGIES[0])
        if self.steps < 1:
            raise ParameterError("--steps", self.steps, "must be at least 1", 1)
        if ranks < 1:
            raise ParameterError("--ranks", ranks, "must be at least 1", 2)
        if self.batch < 1 or self.batch % ranks:
            rule = f"must be a multiple of the {ranks} ranks"
            raise ParameterError("--batch", self.batch, rule, max(1, self.batch // ranks) * ranks)


def network() -> nn.Sequential:
    """Four blocks and a classifier on 3x8x8 images, float64; the same in every process."""
    torch.manual_seed(SEED)
    blocks = (
        nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 24, 3, stride=2), nn.GroupNorm(4, 24), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(216, 32), nn.LayerNorm(32), nn.GELU()),
        nn.Sequential(nn.Linear(32, 40), nn.LayerNorm(40), nn.GELU()),
    )
    return nn.Sequential(*blocks, nn.Linear(40, 10)).double()


def _spread(model: nn.Sequential, strategy: str) -> nn.Module:
    """``model`` on all ranks."""
    if strategy == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in list(model)[:-1]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class _Training:
    """One model in training, and the masks that each of its forward passes read."""

    def __init__(self, run: Run, strategy: str | None, ranks: int = 1, rank: int = 0) -> None:
        model = network()
        handle = sparsify(model, run.method, precision="native")
        self.masks: list[Tensor] = []
        for _, layer in sparse_layers(model):
            layer.register_forward_hook(self._note)
        self.model = model if strategy is None else _spread(model, strategy)
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        handle.attach(self.optimiser)
        self._share, self._ranks = slice(rank, None, ranks), ranks

    def _note(self, layer: nn.Module, *_: object) -> None:
        assert isinstance(layer, NmLayer)
        self.masks += [layer.forward_mask().flatten(), layer.backward_mask().flatten()]

    def step(self, images: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        """Loss over the whole batch, and all masks of the pass, FF and BP of each layer."""
        self.masks.clear()
        self.optimiser.zero_grad()
        loss = F.cross_entropy(self.model(images[self._share]), labels[self._share])
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        mean = loss.detach()
        if self._ranks > 1:
            dist.all_reduce(mean)
        return mean.item() / self._ranks, torch.cat(self.masks)

    def weights(self) -> list[Tensor]:
        """All parameters, whole."""
        return [_whole(parameter.detach()) for parameter in self.model.parameters()]


def compare(run: Run) -> Agreement:
    """Train on all ranks of the default process group, and on each alone; the same on every rank.

    Raises :class:`ParameterError` for bad input.
    """
    ranks, rank = dist.get_world_size(), dist.get_rank()
    run.check(ranks)
    shared, single = _Training(run, run.strategy, ranks, rank), _Training(run, None)
    draw = torch.Generator().manual_seed(SEED + 1)
    elements = moves = across = against = 0
    before: Tensor | None = None
    loss_error = 0.0
    for _ in range(run.steps):
        images = torch.randn(run.batch, 3, 8, 8, generator=draw, dtype=torch.float64)
        labels = torch.randint(10, (run.batch,), generator=draw)
        loss, masks = shared.step(images, labels)
        expected, expected_masks = single.step(images, labels)
        first = masks.byte()
        dist.broadcast(first, 0)
        differing = (first.bool() != masks).sum()
        dist.all_reduce(differing)
        elements, across = elements + masks.numel(), across + int(differing)
        moves += 0 if before is None else int((before != masks).sum())
        before = masks
        against += int((masks != expected_masks).sum())
        loss_error = max(loss_error, abs(loss - expected) / abs(expected))
    pairs = zip(shared.weights(), single.weights(), strict=True)
    weight_error = max(float((ours - theirs).abs().max() / theirs.abs().max())
                       for ours, theirs in pairs)
    equal = not (across or against) and max(loss_error, weight_error) <= TOLERANCE
    return Agreement(method=run.method, strategy=run.strategy, ranks=ranks, steps=run.steps,
                     mask_elements=elements, mask_moves=moves, rank_mismatches=across,
                     single_mismatches=against, loss_error=loss_error, weight_error=weight_error,
                     equal=equal)


def _work(runs: Sequence[Run]) -> list[Agreement]:
    """What each process does; its place comes from the environment that torchrun sets."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        return [compare(run) for run in runs]
    finally:
        dist.destroy_process_group()


def _launch(runs: Sequence[Run], ranks: int) -> list[Agreement]:
    """:func:`_work` in processes of its own, started as torchrun does; what rank 0 found."""
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=ranks, max_restarts=0,
                          rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="compare")
    found: dict[int, list[Agreement]] = elastic_launch(config, _work)(runs)
    return found[0]


def _table(rows: Sequence[Agreement]) -> str:
    lines = [f"{'method':<10}{'steps':>6}{'mask elements':>15}{'moves':>8}{'rank/rank':>11}"
             f"{'rank/single':>13}{'loss error':>12}{'weight error':>14}"]
    lines += [f"{row.method:<10}{row.steps:>6}{row.mask_elements:>15,}{row.mask_moves:>8,}"
              f"{row.rank_mismatches:>11}{row.single_mismatches:>13}"
              f"{row.loss_error:>12.1e}{row.weight_error:>14.1e}"
              f"  {'equal' if row.equal else 'DIFFERENT'}" for row in rows]
    return "\n".join(lines)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, print what was found; 1 if anything differs, 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, default=2, help="processes; torchrun sets its own")
    parser.add_argument("--strategy", default="ddp", help=" or ".join(STRATEGIES))
    parser.add_argument("--methods", nargs="+", default=["bdwp", "srste"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16, help="examples of all ranks together")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(argv)
    launched = dist.is_torchelastic_launched()
    ranks = int(os.environ["WORLD_SIZE"]) if launched else options.ranks
    runs = [Run(method, options.strategy, options.steps, options.batch)
            for method in options.methods]
    for run in runs:
        run.check(ranks)
    rows = _work(runs) if launched else _launch(runs, ranks)
    if not launched or os.environ["RANK"] == "0":
        if options.json:
            print(RootModel[list[Agreement]](rows).model_dump_json(indent=2))
        else:
            print(f"{options.strategy} on {ranks} ranks against one process, float64, "
                  f"differing mask elements, errors allowed up to {TOLERANCE:.0e}")
            print(_table(rows))
    return int(not all(row.equal for row in rows))


if __name__ == "__main__":
    sys.exit(main())
