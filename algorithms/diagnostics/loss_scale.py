"""The loss scale over a training run, and the steps that it cost."""

from __future__ import annotations

import torch

__all__ = ["LossScaleHistory"]


class LossScaleHistory:
    """Follows a ``torch.amp.GradScaler``; call :meth:`update` after each ``scaler.update()``.

    A scaler says by nothing but a smaller scale that it skipped a step: gradients had an Inf or a
    NaN. So a scale set lower by hand counts as a skipped step, and of several optimisers under one
    scaler any may have been the one.
    """

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self._scaler = scaler
        self.scales: list[float] = [scaler.get_scale()]
        """At construction, then after each step; 1 where the scaler is disabled."""
        self.skipped: list[int] = []
        """Steps that were skipped, counted from 0."""

    @property
    def steps(self) -> int:
        """Steps seen, skipped ones among them."""
        return len(self.scales) - 1

    def update(self) -> bool:
        """Record the scale after a step; returns whether the step was made."""
        scale = self._scaler.get_scale()
        made = scale >= self.scales[-1]
        if not made:
            self.skipped.append(self.steps)
        self.scales.append(scale)
        return made

    def __str__(self) -> str:
        return (f"loss scale {self.scales[-1]:g} after {self.steps} steps, "
                f"{len(self.skipped)} of them skipped")
