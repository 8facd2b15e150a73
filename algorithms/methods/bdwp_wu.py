"""BDWP+WU: the weight gradient sparse as well, by unbiased sampling of dY."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from algorithms.gradients import Gradient
from algorithms.methods.bdwp import Bdwp
from rtl.pattern import NmPattern

__all__ = ["BdwpWu"]


@dataclass(frozen=True)
class BdwpWu(Bdwp):
    """BDWP whose third GEMM is N:M too, so that all of training is::

        FF  Y  = X Wf            Wf  = N:M of W along C_in                    sparse
        BP  dX = dY Wb^T         Wb  = N:M of W along C_out                   sparse
        WU  dW = X^T dYs         dYs = N:M of dY along batch and pixels       sparse

    dYs is drawn anew in each step such that its mean is dY and its variance the least that N of M
    allow (MVUE, arXiv:2203.10991; :mod:`algorithms.mvue`). Plain pruning by magnitude would bias dW
    and is known to fail. The pattern of dYs is ``gradient=`` of :func:`algorithms.sparsify`: 1:2,
    or 2:4. The bias's gradient is the sum of all of dY.
    """

    name = "bdwp+wu"
    summary = "weights pruned in FF and BP, gradients sampled in WU"
    update = "grad"

    def update_gradient(self, gradient: Gradient, pattern: NmPattern) -> Tensor:
        """dY sampled along batch and pixels."""
        return gradient.sampled(pattern)
