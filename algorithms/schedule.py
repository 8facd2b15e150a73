"""When a model trains dense and when sparse: warm-up, gradual pruning, dense tail."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from algorithms.plan import LayerPlan
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Phases of a training run, as shares of its optimiser steps, in this order.

    steps: of the whole run.
    warmup: dense at first.
    gradual: N falls from M / 2 to the pattern's own, in equal phases, one for each N; all of them
        patterns that the array can run.
    tail: dense at the end. The final model is then a dense one: its forward pass is not pruned.

    What is left runs with the pattern itself. Raises :class:`ParameterError` for shares that are
    negative or exceed the whole.
    """

    steps: int
    warmup: float = 0.0
    gradual: float = 0.0
    tail: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ParameterError("steps", self.steps, "must be at least 1", 1)
        for name in ("warmup", "gradual", "tail"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ParameterError(name, share, "must be a share of the steps, from 0 to 1",
                                     1.0 if share > 1 else 0.0)
        total = self.warmup + self.gradual + self.tail
        if total > 1 + 1e-9:
            raise ParameterError("warmup + gradual + tail", round(total, 9), "must be at most 1", 1)

    def plan_at(self, step: int, plan: LayerPlan) -> LayerPlan:
        """``plan`` as it is at ``step``, counted from 0; after the last step, as at the last."""
        done = min(step, self.steps - 1) / self.steps
        if done < self.warmup or done >= 1 - self.tail:
            return plan.with_patterns(lambda pattern: DENSE, sampled=False)
        if done < self.warmup + self.gradual:
            left = 1 - (done - self.warmup) / self.gradual
            return plan.with_patterns(lambda pattern: _loosened(pattern, left), sampled=True)
        return plan


def _loosened(pattern: NmPattern, left: float) -> NmPattern:
    """``pattern`` with a larger N: M / 2 where all of the phase is ``left``, its own at the end."""
    loosest = max(pattern.m // 2, pattern.n)
    # Rounded, so that a phase boundary is one whatever the last bit of a share says.
    return NmPattern(pattern.n + ceil(round((loosest - pattern.n + 1) * left, 9)) - 1, pattern.m)
