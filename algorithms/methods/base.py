"""What a sparse-training method is: which operand of which GEMM it prunes, and how.

A training step of a layer is three GEMMs. X is the layer's input, W its master weights, dY the
gradient at its output; the sum of each runs over the axis in the last column::

    FF  Y  = X W      C_in
    BP  dX = dY W^T   C_out
    WU  dW = X^T dY   batch and pixels

A method replaces some of these operands by N:M ones, with groups along the axis of the sum, since
only there do pruned elements save cycles. Each method has its own file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from algorithms.gradients import Gradient
from algorithms.weights import Weight
from rtl.errors import ParameterError, closest
from rtl.pattern import NmPattern

__all__ = ["MAGNITUDES", "Method", "WeightMethod"]

MAGNITUDES = ("hard", "soft", "rescaled")
"""Values of kept weights, see :class:`algorithms.weights.Weight`."""


@dataclass(frozen=True)
class Method:
    """A method without options that prunes nothing; the base of all others.

    forward: operand pruned in FF: ``"weight"`` or none (``"dense"``).
    backward: operand pruned in BP: ``"weight"``, ``"grad"`` (dY) or none.
    update: operand pruned in WU: ``"grad"`` (dY) or none.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    forward: ClassVar[Literal["dense", "weight"]] = "dense"
    backward: ClassVar[Literal["dense", "weight", "grad"]] = "dense"
    update: ClassVar[Literal["dense", "grad"]] = "dense"

    @property
    def decays(self) -> float:
        """Factor of SR-STE's decay of pruned weights, 0 without one."""
        return 0.0

    @property
    def mask_interval(self) -> int:
        """Changes of the weights from one choice of masks to the next."""
        return 1

    @property
    def selects_in_hardware(self) -> bool:
        """Whether SORE makes the weight operands from the dense master by itself."""
        return True

    def forward_weight(self, weight: Weight, pattern: NmPattern) -> Tensor:
        """The weight operand of FF; ``pattern`` is the layer's in FF."""
        return weight.rounded()

    def backward_weight(self, weight: Weight, pattern: NmPattern, forward: Tensor) -> Tensor:
        """The weight operand of BP, given that of FF; ``pattern`` is the layer's in BP."""
        return forward

    def backward_gradient(self, gradient: Gradient, pattern: NmPattern) -> Tensor:
        """dY as BP reads it."""
        return gradient.tensor

    def update_gradient(self, gradient: Gradient, pattern: NmPattern) -> Tensor:
        """dY as WU reads it; ``pattern`` is the layer's in WU."""
        return gradient.tensor

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class WeightMethod(Method):
    """Options of every method that prunes weights.

    decay: SR-STE's pull of weights that FF prunes towards zero, see
        :func:`algorithms.decay_pruned`; 0 for none. Without effect where FF prunes nothing.
    magnitudes: ``"hard"`` keeps the values of what it keeps; ``"soft"`` and ``"rescaled"`` change
        them, see :class:`algorithms.weights.Weight`.
    refresh: masks are chosen anew at every ``refresh``-th change of the weights; in between, the
        kept weights follow the master and the others stay pruned.

    Raises :class:`ParameterError` for an illegal option.
    """

    decay: float = 0.0
    magnitudes: Literal["hard", "soft", "rescaled"] = "hard"
    refresh: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.decay < float("inf"):
            raise ParameterError("decay", self.decay, "must be finite and not negative", 0.0)
        if self.magnitudes not in MAGNITUDES:
            rule = f"must be one of {', '.join(MAGNITUDES)}"
            nearest = closest(str(self.magnitudes), MAGNITUDES) or "hard"
            raise ParameterError("magnitudes", self.magnitudes, rule, nearest)
        if self.refresh < 1:
            raise ParameterError("refresh", self.refresh, "must be at least 1", 1)

    @property
    def decays(self) -> float:
        """Factor of SR-STE's decay of pruned weights, 0 without one."""
        return self.decay if self.forward == "weight" else 0.0

    @property
    def mask_interval(self) -> int:
        """Changes of the weights from one choice of masks to the next."""
        return self.refresh

    @property
    def selects_in_hardware(self) -> bool:
        """Whether SORE makes the weight operands from the dense master by itself."""
        return self.magnitudes == "hard" and self.refresh == 1
