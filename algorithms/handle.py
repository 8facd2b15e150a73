"""What :func:`algorithms.sparsify` returns: the report, and the hand on the model's sparsity."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from algorithms.decay import decay_pruned
from algorithms.layers import NmLayer, sparse_layers
from algorithms.methods.base import Method
from algorithms.plan import LayerPlan
from algorithms.report import LayerReport, SparsityReport
from algorithms.schedule import Schedule
from rtl.errors import ParameterError

__all__ = ["SparseHandle", "loss_scale_of"]


class SparseHandle:
    """A sparse model, its report, and its schedule; ``str()`` is the report.

    Nothing here is needed to train: masks follow the weights by themselves. :meth:`attach` adds
    what happens once an optimiser step: SR-STE's decay, and the phases of a schedule.
    """

    def __init__(self, model: nn.Module, report: SparsityReport, schedule: Schedule | None) -> None:
        self.model, self.report, self.schedule = model, report, schedule
        self.steps = 0
        """Optimiser steps made so far."""
        # By module: a wrapper put around a layer later, such as LoRA's, changes its name.
        self._planned = [(layer, layer.nm_plan) for _, layer in sparse_layers(self.model)]
        self._follow()

    @property
    def method(self) -> Method:
        """The method that the model trains with."""
        return self.report.method

    @property
    def layers(self) -> tuple[LayerReport, ...]:
        """One line of the report for each weight layer."""
        return self.report.layers

    @property
    def sparse_layers(self) -> tuple[LayerReport, ...]:
        """Layers with at least one N:M pass."""
        return self.report.sparse_layers

    def __str__(self) -> str:
        return str(self.report)

    def attach(self, optimiser: torch.optim.Optimizer) -> None:
        """Do what is due once a step around each of the optimiser's steps, by its public hooks.

        Before it, the decay of pruned weights is added to the gradients, multiplied by the loss
        scale where the optimiser itself unscales (fused optimisers under a ``GradScaler``). After
        it the schedule advances. A step that a ``GradScaler`` skips counts for neither.
        """
        # ``register_step_pre_hook`` is untyped in parts of torch.
        hooks: Any = optimiser
        hooks.register_step_pre_hook(lambda stepping, *_: self.before_step(loss_scale_of(stepping)))
        hooks.register_step_post_hook(
            lambda stepping, *_: None if _was_skipped(stepping) else self.step())

    def before_step(self, gradient_scale: float | torch.Tensor = 1.0) -> None:
        """Add the decay; gradients are multiplied by ``gradient_scale``."""
        decay_pruned(self.model, gradient_scale)

    def step(self, count: int = 1) -> None:
        """Advance the schedule by ``count`` optimiser steps."""
        self.restore(self.steps + count)

    def restore(self, steps: int) -> None:
        """Go to the phase after ``steps`` optimiser steps, when training resumes."""
        if steps < 0:
            raise ParameterError("steps", steps, "must not be negative", 0)
        self.steps = steps
        self._follow()

    def refresh(self) -> None:
        """Make masks and operands anew, after weights were changed through ``.data``.

        PEFT does so when it merges an adapter into its base layer or takes it out again.
        """
        for _, layer in sparse_layers(self.model):
            layer.refresh()

    def plans(self) -> dict[str, LayerPlan]:
        """What each layer does in the present phase, by its dotted name."""
        return {name: layer.nm_plan for name, layer in sparse_layers(self.model)}

    def _follow(self) -> None:
        """Put every layer into the schedule's present phase."""
        if self.schedule is None:
            return
        for layer, whole in self._planned:
            if not isinstance(layer, NmLayer):  # made plain again since
                continue
            plan = self.schedule.plan_at(self.steps, whole)
            if plan != layer.nm_plan:
                layer.adopt(plan, layer.nm_precision)


def loss_scale_of(optimiser: torch.optim.Optimizer) -> float | torch.Tensor:
    """The loss scale that the optimiser will divide its gradients by, as ``GradScaler`` sets it."""
    scale: float | torch.Tensor | None = getattr(optimiser, "grad_scale", None)
    return 1.0 if scale is None else scale


def _was_skipped(optimiser: torch.optim.Optimizer) -> bool:
    """Whether a fused optimiser, which is called all the same, left out an overflowing step."""
    found: torch.Tensor | None = getattr(optimiser, "found_inf", None)
    return found is not None and bool(found)
