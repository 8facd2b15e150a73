"""SDGP: output gradients pruned in the backward pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from algorithms.gradients import Gradient
from algorithms.methods.base import Method
from rtl.pattern import NmPattern

__all__ = ["Sdgp"]


@dataclass(frozen=True)
class Sdgp(Method):
    """Structured data gradient pruning (arXiv:2202.00774)::

        FF  Y  = X W                                               dense
        BP  dX = dYp W^T         dYp = N:M of dY along C_out       sparse
        WU  dW = X^T dY          dY unpruned                       dense

    The largest magnitudes stay; the variants that rescale them are not here.
    """

    name = "sdgp"
    summary = "output gradients pruned in BP"
    backward = "grad"

    def backward_gradient(self, gradient: Gradient, pattern: NmPattern) -> Tensor:
        """dY pruned along C_out."""
        return gradient.pruned(pattern)
