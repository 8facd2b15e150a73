"""The training loop that workloads share: SGD with FP16 operands and dynamic loss scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from algorithms import decay_pruned, sparse_layers
from benchmarks.workload import Batch, Progress
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

__all__ = ["Recipe", "check_run", "minimise", "reported_patterns", "reproducible"]


@dataclass(frozen=True)
class Recipe:
    """How a workload trains; every method gets the same one.

    warmup: share of the steps over which the rate rises linearly; it then falls linearly to 0.
    loss_scale: where dynamic scaling starts; a step that overflows FP16 is skipped and halves it.
    """

    epochs: int
    batch: int
    rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.25
    loss_scale: float = 1024.0

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate of ``step``, counted from 0, of ``steps``."""
        done = (step + 1) / steps
        return self.rate * min(done / self.warmup, (1 - step / steps) / (1 - self.warmup))


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Torch on one thread, its global generator seeded; afterwards both are as they were.

    The order of sums inside torch's kernels follows the number of threads, so with as many as the
    machine has cores a seed would train another network on every machine. The layers here are too
    small to gain much from a second thread, and two processes whose threads share cores slow each
    other down many times over, waiting in turns.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def check_run(epochs: int | None, seed: int) -> None:
    """Raise :class:`ParameterError` for ``epochs`` below 1 or ``seed`` below 0."""
    if epochs is not None and epochs < 1:
        raise ParameterError("epochs", epochs, "must be at least 1", 1)
    if seed < 0:
        raise ParameterError("seed", seed, "must be at least 0", 0)


def reported_patterns(model: nn.Module, pattern: NmPattern, gradient: str | NmPattern
                      ) -> dict[str, str]:
    """``pattern`` and ``gradient`` of a :class:`TrainResult`: those given where any layer prunes a
    pass, or samples dY, and dense elsewhere."""
    plans = [layer.nm_plan for _, layer in sparse_layers(model)]
    pruned = any(not plan.is_dense for plan in plans)
    sampled = any(not plan.update.pattern.is_dense for plan in plans)
    return {"pattern": str(pattern) if pruned else "dense",
            "gradient": str(gradient) if sampled else "dense"}


def minimise(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    data: Batch,
    recipe: Recipe,
    epochs: int,
    seed: int,
    progress: Progress | None = None,
) -> float:
    """Train ``model`` in place for ``epochs`` over ``data``; returns the last loss scale.

    The order of examples comes from ``seed``, and so does what dropout would draw: see
    :func:`reproducible`. Raises :class:`ParameterError` for ``epochs`` below 1 or ``seed`` below 0.
    """
    check_run(epochs, seed)
    optimiser = torch.optim.SGD(model.parameters(), lr=recipe.rate, momentum=recipe.momentum,
                                nesterov=True, weight_decay=recipe.weight_decay)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=recipe.loss_scale, growth_interval=200)
    order = torch.Generator().manual_seed(seed)
    examples = len(data.inputs)
    steps, step = epochs * -(-examples // recipe.batch), 0
    model.train()
    with reproducible(seed):
        for epoch in range(1, epochs + 1):
            total = 0.0
            for chosen in torch.split(torch.randperm(examples, generator=order), recipe.batch):
                for group in optimiser.param_groups:
                    group["lr"] = recipe.rate_at(step, steps)
                optimiser.zero_grad()
                value = loss(model, Batch(data.inputs[chosen], data.targets[chosen]))
                scaler.scale(value).backward()  # type: ignore[no-untyped-call]
                scaler.unscale_(optimiser)
                decay_pruned(model)
                scaler.step(optimiser)
                scaler.update()
                total += value.item() * len(chosen)
                step += 1
            if progress is not None:
                progress(epoch, epochs, total / examples)
    return scaler.get_scale()
