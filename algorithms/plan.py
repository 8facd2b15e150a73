"""What a sparse layer does in each pass of the training step, decided once, before any swap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from algorithms.methods.base import Method
from rtl.pattern import DENSE, NmPattern

__all__ = ["STAGES", "LayerPlan", "PassPlan", "plan_layer"]

STAGES = ("FF", "BP", "WU")
"""The GEMMs of a training step: forward, input gradient, weight gradient."""


@dataclass(frozen=True)
class PassPlan:
    """One pass of one layer: the pattern that it runs with, and why it is dense or padded."""

    pattern: NmPattern
    note: str = ""


@dataclass(frozen=True)
class LayerPlan:
    """One layer: its method, and the plans of its passes.

    ``backward.pattern`` belongs to the weights, or to dY where ``method.backward`` is ``"grad"``;
    ``update.pattern`` to dY.
    """

    method: Method
    forward: PassPlan
    backward: PassPlan
    update: PassPlan = PassPlan(DENSE)

    @property
    def is_dense(self) -> bool:
        """True when no pass prunes anything."""
        return all(pattern.is_dense for pattern in self.executed_patterns().values())

    def executed_patterns(self) -> dict[str, NmPattern]:
        """Pattern that each stage's GEMM runs with, whichever operand is the pruned one."""
        return {"FF": self.forward.pattern, "BP": self.backward.pattern,
                "WU": self.update.pattern}

    def weight_patterns(self) -> dict[str, NmPattern]:
        """Pattern of each stage's weight operand; dense where something else is pruned."""
        of_weights = self.method.backward != "grad"
        backward = self.backward.pattern if of_weights else DENSE
        return {"FF": self.forward.pattern, "BP": backward, "WU": DENSE}

    def with_patterns(self, weights: Callable[[NmPattern], NmPattern], sampled: bool) -> LayerPlan:
        """This plan with ``weights`` of the patterns of FF and BP; WU dense unless ``sampled``."""
        def of(plan: PassPlan) -> PassPlan:
            return plan if plan.pattern.is_dense else replace(plan, pattern=weights(plan.pattern))

        update = self.update if sampled else replace(self.update, pattern=DENSE)
        return replace(self, forward=of(self.forward), backward=of(self.backward), update=update)


def _plan_pass(prunes: bool, pattern: NmPattern, channels: int, axis: str) -> PassPlan:
    if not prunes or pattern.is_dense:
        return PassPlan(DENSE)
    if channels < pattern.m:
        return PassPlan(DENSE, f"{channels} {axis} channels a group, fewer than M={pattern.m}")
    padded = pattern.groups(channels) * pattern.m
    note = f"{channels} {axis} channels padded to {padded}" if padded != channels else ""
    return PassPlan(pattern, note)


def plan_layer(
    method: Method, pattern: NmPattern, inputs: int, outputs: int, keep_dense: str = "",
    gradient: NmPattern = DENSE,
) -> LayerPlan:
    """Plan one layer with ``inputs`` and ``outputs`` channels per convolution group.

    ``keep_dense``, when not empty, is the reason to leave all passes dense. A pass whose reduction
    has fewer channels than one group of M also stays dense; one that M does not divide is padded
    with zeros, and its note says so. ``gradient`` is the pattern of dY in WU, for methods that
    sample it there; WU stays dense in a layer whose other passes both do.
    """
    if keep_dense:
        return LayerPlan(method, *(PassPlan(DENSE, keep_dense) for _ in STAGES))
    forward = _plan_pass(method.forward == "weight", pattern, inputs, "input")
    backward = _plan_pass(method.backward != "dense", pattern, outputs, "output")
    update = PassPlan(DENSE)
    if method.update == "grad":
        small = forward.pattern.is_dense and backward.pattern.is_dense
        update = PassPlan(DENSE, "FF and BP are dense") if small else PassPlan(gradient)
    return LayerPlan(method, forward, backward, update)
