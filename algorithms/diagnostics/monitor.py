"""One object that gathers the diagnostics of a run and writes them as scalars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from algorithms.diagnostics.churn import ChurnReport, MaskChurn
from algorithms.diagnostics.gradient_error import GradientErrors, gradient_errors
from algorithms.diagnostics.loss_scale import LossScaleHistory
from algorithms.handle import SparseHandle
from algorithms.plan import STAGES
from rtl.errors import ParameterError

__all__ = ["Monitor", "ScalarWriter", "pruned_shares"]


class ScalarWriter(Protocol):
    """Such as ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> object:
        """Write one value."""


def pruned_shares(handle: SparseHandle) -> dict[str, float]:
    """``FF``, ``BP``, ``WU``: share of the swapped layers' weights whose product a pass leaves out.

    That is ``1 - N / M`` of the pattern that each layer runs with at present, weighted by the size
    of its weights, whichever operand is the pruned one; 0 in a dense phase of the schedule.
    """
    sizes = {name: handle.model.get_submodule(name).get_parameter("weight").numel()
             for name in handle.plans()}
    total = sum(sizes.values())
    pruned = dict.fromkeys(STAGES, 0.0)
    for name, plan in handle.plans().items():
        for stage, pattern in plan.executed_patterns().items():
            pruned[stage] += (1 - pattern.n / pattern.m) * sizes[name]
    return {stage: value / total if total else 0.0 for stage, value in pruned.items()}


class Monitor:
    """Writes, every ``every`` steps, these scalars (``<layer>`` is its dotted name)::

        sparsity/<FF, BP or WU>             share of products left out, see pruned_shares
        mask_churn/<FF or BP>               of the whole model, since the scalars before
        mask_churn/<FF or BP>/<layer>
        mask_sad/<FF or BP>                 positions that differ from the start
        mask_sad/<FF or BP>/<layer>
        loss_scale/scale                    with a scaler
        loss_scale/skipped                  steps skipped so far

    and whenever :meth:`gradient_errors` is called::

        gradient_error/<dX or dW>/<layer>   relative to dense training
        gradient_cosine/<dX or dW>/<layer>

    :mod:`algorithms.diagnostics.churn`, ``loss_scale`` and ``gradient_error`` define them.

    Parameters
    ----------
    handle: of the sparse model.
    writer: with ``add_scalar(tag, value, step)``; ``None`` where scalars are only returned, such as
        on all ranks but the first.
    every: steps from one look at the masks to the next.
    scaler: the loss scaler, if there is one.

    Raises :class:`ParameterError` for ``every`` below 1.
    """

    def __init__(
        self, handle: SparseHandle, writer: ScalarWriter | None = None, every: int = 1,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        if every < 1:
            raise ParameterError("every", every, "must be at least 1", 1)
        self.handle, self.writer, self.every = handle, writer, every
        self.steps = 0
        """Steps seen so far."""
        self.scalars: dict[str, float] = {}
        """What was written last, by name."""
        self.churn = MaskChurn(handle)
        self.loss_scale = None if scaler is None else LossScaleHistory(scaler)

    def step(self, step: int | None = None) -> dict[str, float]:
        """Call after each optimiser step, and after ``scaler.update()``.

        ``step`` is the number of steps made so far, where training resumed. Returns the scalars, or
        nothing between two writings.
        """
        self.steps = self.steps + 1 if step is None else step
        if self.loss_scale is not None:
            self.loss_scale.update()
        if self.steps % self.every:
            return {}
        scalars = {f"sparsity/{stage}": share
                   for stage, share in pruned_shares(self.handle).items()}
        scalars |= _of_masks(self.churn.update())
        if self.loss_scale is not None:
            scalars["loss_scale/scale"] = self.loss_scale.scales[-1]
            scalars["loss_scale/skipped"] = len(self.loss_scale.skipped)
        return self._write(scalars)

    def gradient_errors(self, closure: Callable[[nn.Module], Tensor]) -> GradientErrors:
        """:func:`~algorithms.diagnostics.gradient_error.gradient_errors`, written as well."""
        errors = gradient_errors(self.handle, closure)
        scalars = {}
        for row in errors.rows:
            for operand, closeness in (("dX", row.dx), ("dW", row.dw)):
                if closeness is not None:
                    scalars[f"gradient_error/{operand}/{row.layer}"] = closeness.error
                    scalars[f"gradient_cosine/{operand}/{row.layer}"] = closeness.cosine
        self._write(scalars)
        return errors

    def _write(self, scalars: dict[str, float]) -> dict[str, float]:
        self.scalars = scalars
        if self.writer is not None:
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, self.steps)
        return scalars


def _of_masks(report: ChurnReport) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for stage in dict.fromkeys(row.stage for row in report.rows):
        scalars[f"mask_churn/{stage}"] = report.churn(stage)
        scalars[f"mask_sad/{stage}"] = report.sad(stage)
    for row in report.rows:
        scalars[f"mask_churn/{row.stage}/{row.layer}"] = row.churn
        scalars[f"mask_sad/{row.stage}/{row.layer}"] = row.diverged
    return scalars
