"""SDWP: weights pruned in the backward pass only."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from algorithms.methods.base import WeightMethod
from algorithms.weights import C_OUT, Weight
from rtl.pattern import NmPattern

__all__ = ["Sdwp"]


@dataclass(frozen=True)
class Sdwp(WeightMethod):
    """The backward half of BDWP, as the SAT paper compares against (arXiv:2309.13015)::

        FF  Y  = X W                                               dense
        BP  dX = dY Wb^T         Wb = N:M of W along C_out         sparse
        WU  dW = X^T dY                                            dense
    """

    name = "sdwp"
    summary = "weights pruned in BP"
    backward = "weight"

    def backward_weight(self, weight: Weight, pattern: NmPattern, forward: Tensor) -> Tensor:
        """W pruned along C_out."""
        return weight.pruned(C_OUT, pattern, self.magnitudes)
