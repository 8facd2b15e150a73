"""SR-STE: weights pruned in the forward pass, with a decay of what is pruned."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from algorithms.methods.base import WeightMethod
from algorithms.weights import C_IN, Weight
from rtl.pattern import NmPattern

__all__ = ["SRSTE_DECAY", "SrSte"]

SRSTE_DECAY = 2e-4
"""The decay that the authors of SR-STE train with."""


@dataclass(frozen=True)
class SrSte(WeightMethod):
    """Sparse-refined straight-through estimator (arXiv:2102.04010)::

        FF  Y  = X Wf            Wf = N:M of W along C_in          sparse
        BP  dX = dY Wf^T         zeros of Wf lie across the sum    dense
        WU  dW = X^T dY + decay (1 - mask) W                       dense

    dW goes straight through to all of W. BP reads the weights of FF, as autograd would, and saves
    nothing there.
    """

    name = "srste"
    summary = "weights pruned in FF, with decay"
    forward = "weight"

    decay: float = SRSTE_DECAY

    def forward_weight(self, weight: Weight, pattern: NmPattern) -> Tensor:
        """W pruned along C_in."""
        return weight.pruned(C_IN, pattern, self.magnitudes)
