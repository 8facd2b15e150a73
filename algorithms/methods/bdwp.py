"""BDWP: weights pruned in both passes, each along its own axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from algorithms.methods.base import WeightMethod
from algorithms.weights import C_IN, C_OUT, Weight
from rtl.errors import ParameterError, closest
from rtl.pattern import NmPattern

__all__ = ["BACKWARD_MASKS", "Bdwp"]

BACKWARD_MASKS = ("independent", "double", "transposable")
"""Choices of :attr:`Bdwp.backward_mask`."""


@dataclass(frozen=True)
class Bdwp(WeightMethod):
    """Bidirectional weight pruning (SAT, arXiv:2309.13015)::

        FF  Y  = X Wf            Wf = N:M of W along C_in          sparse
        BP  dX = dY Wb^T         Wb = N:M of W along C_out         sparse
        WU  dW = X^T dY  [+ decay (1 - mask of Wf) W]              dense

    dW goes straight through to all of W, so that masks can change.

    backward_mask: ``"independent"`` takes Wb from the dense master; ``"double"`` prunes Wf once
        more along C_out, so that BP reads nothing that FF did not (Bi-Mask, ICML 2023; SLoPe,
        ICLR 2025); ``"transposable"`` has one mask that is N:M along both axes, for Wf and Wb
        alike (arXiv:2102.08124), in layers where both passes are N:M.
    """

    name = "bdwp"
    summary = "weights pruned in FF and BP"
    forward = "weight"
    backward = "weight"

    backward_mask: Literal["independent", "double", "transposable"] = "independent"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backward_mask not in BACKWARD_MASKS:
            rule = f"must be one of {', '.join(BACKWARD_MASKS)}"
            nearest = closest(str(self.backward_mask), BACKWARD_MASKS) or "independent"
            raise ParameterError("backward_mask", self.backward_mask, rule, nearest)

    @property
    def selects_in_hardware(self) -> bool:
        """Whether SORE makes the weight operands from the dense master by itself."""
        return super().selects_in_hardware and self.backward_mask == "independent"

    def forward_weight(self, weight: Weight, pattern: NmPattern) -> Tensor:
        """W pruned along C_in, or along both axes."""
        if self.backward_mask == "transposable" and weight.can_be_transposable(pattern):
            return weight.transposable(pattern, self.magnitudes)
        return weight.pruned(C_IN, pattern, self.magnitudes)

    def backward_weight(self, weight: Weight, pattern: NmPattern, forward: Tensor) -> Tensor:
        """W, or what FF kept of it, pruned along C_out."""
        if self.backward_mask == "transposable" and weight.can_be_transposable(pattern):
            return forward
        source = forward if self.backward_mask == "double" else None
        return weight.pruned(C_OUT, pattern, self.magnitudes, of=source)
