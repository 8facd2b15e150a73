"""What a task of the study is: data, network and recipe, the same for every method.

A method is judged by the difference to dense training on the same seeds and the same test set, so a
task must not saturate, and its test set should be large and not depend on the seed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from benchmarks.workload import Batch

__all__ = ["Recipe", "Task", "epochs_of", "slices_of"]


@dataclass(frozen=True)
class Recipe:
    """How a task trains; every method gets the same one.

    steps, batch: optimiser steps, and examples of each.
    rate: peak learning rate. warmup: share of the steps over which it rises linearly; it then falls
        to 0, linearly or along a cosine.
    optimiser: SGD with Nesterov momentum 0.9, or AdamW.
    weight_decay: not applied to vectors (biases, normalisation) where ``decay_vectors`` is off.
    """

    steps: int
    batch: int
    rate: float
    warmup: float = 0.25
    fall: Literal["linear", "cosine"] = "linear"
    optimiser: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 5e-4
    decay_vectors: bool = True
    smoothing: float = 0.0

    def rate_at(self, step: int) -> float:
        """Learning rate of ``step``, counted from 0."""
        rise = self.warmup * self.steps
        if step < rise:
            return self.rate * (step + 1) / (rise + 1)
        left = (self.steps - step) / (self.steps - rise)
        return self.rate * (left if self.fall == "linear" else (1 - math.cos(math.pi * left)) / 2)

    def make_optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser; its learning rate is set anew before every step."""
        vectors = [p for p in model.parameters() if p.dim() < 2]
        matrices = [p for p in model.parameters() if p.dim() >= 2]
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": vectors, "weight_decay": self.weight_decay * self.decay_vectors},
        ]
        # Fused: these layers are so small that launching operators would cost more than they do.
        if self.optimiser == "sgd":
            return torch.optim.SGD(groups, self.rate, momentum=0.9, nesterov=True, fused=True)
        return torch.optim.AdamW(groups, self.rate, fused=True)


class Task(ABC):
    """One problem to train. Instances hold no data; what is expensive to make is cached."""

    name: ClassVar[str]
    """What the command line calls it."""
    title: ClassVar[str]
    """One line for reports."""
    recipe: ClassVar[Recipe]
    width: ClassVar[int]
    """The network's width where nobody says."""
    widths: ClassVar[tuple[int, ...]]
    """Widths of the capacity suite."""
    lengths: ClassVar[tuple[int, ...]]
    """Numbers of steps of the length suite."""
    fixed_test: ClassVar[bool] = True
    """Whether every seed is tested on the same examples, which pairs them one by one."""

    @abstractmethod
    def model(self, width: int, seed: int) -> nn.Module:
        """A fresh dense network whose initial weights depend on ``seed`` alone."""

    @abstractmethod
    def batches(self, seed: int, steps: int, batch: int) -> Iterator[Batch]:
        """``steps`` training batches of ``batch`` examples, drawn by ``seed`` alone."""

    @abstractmethod
    def test(self, seed: int) -> Batch:
        """The test set; the same at every seed where :attr:`fixed_test`."""


def slices_of(data: Batch, steps: int, batch: int) -> Iterator[Batch]:
    """Consecutive batches of data that is seen once and lies in random order already."""
    for start in range(0, steps * batch, batch):
        yield Batch(data.inputs[start:start + batch], data.targets[start:start + batch])


def epochs_of(data: Batch, seed: int, steps: int, batch: int) -> Iterator[Batch]:
    """Batches of a finite set, shuffled anew in each epoch; what does not fill a batch is left out.
    """
    generator = torch.Generator().manual_seed(seed)
    order: Tensor = torch.empty(0, dtype=torch.int64)
    batch = min(batch, len(data.targets))
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(data.targets), generator=generator)
        chosen, order = order[:batch], order[batch:]
        yield Batch(data.inputs[chosen], data.targets[chosen])
