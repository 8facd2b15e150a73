"""Dense training, the baseline, with the same operands and rounding as the sparse methods."""

from __future__ import annotations

from dataclasses import dataclass

from algorithms.methods.base import Method

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense(Method):
    """Nothing is pruned::

        FF  Y  = X W        BP  dX = dY W^T        WU  dW = X^T dY
    """

    name = "dense"
    summary = "nothing pruned"
