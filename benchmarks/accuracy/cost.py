"""Multiply-accumulates of a training step under any plan of its layers, phase after phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from algorithms import LayerPlan, NmLayer, sparse_layers
from rtl.pattern import NmPattern

__all__ = ["LayerCost", "layer_costs", "step_ratio"]


@dataclass(frozen=True)
class LayerCost:
    """The GEMMs of one layer.

    inputs, outputs: channels of a convolution group. positions: output positions of the whole
    batch, over which WU sums. taps: kernel taps times convolution groups.
    learns_below: whether anything before the layer needs an input gradient.
    """

    inputs: int
    outputs: int
    positions: int
    taps: int
    learns_below: bool

    def macs(self, plan: LayerPlan) -> tuple[int, int]:
        """Of dense training, and with the patterns of ``plan``."""
        patterns = plan.executed_patterns()
        inputs, outputs, positions = self.inputs, self.outputs, self.positions
        forward = positions * outputs * _kept(inputs, patterns["FF"])
        backward = positions * inputs * _kept(outputs, patterns["BP"])
        update = inputs * outputs * _kept(positions, patterns["WU"])
        whole = positions * inputs * outputs
        executed = forward + update + self.learns_below * backward
        return self.taps * whole * (2 + self.learns_below), self.taps * executed


def _kept(length: int, pattern: NmPattern) -> int:
    """Elements that a sum over ``length`` multiplies, zero padding included."""
    return length if pattern.is_dense else pattern.groups(length) * pattern.n


def layer_costs(model: nn.Module, inputs: Tensor) -> list[tuple[NmLayer, LayerCost]]:
    """Every layer that :func:`algorithms.sparsify` swapped, for one batch of ``inputs``.

    The model runs forward once in evaluation mode, so that nothing in it changes.
    """
    found: list[tuple[NmLayer, LayerCost]] = []

    def note(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(layer, NmLayer)
        rows, columns, *kernel = layer.weight.shape
        groups = layer.conv_groups
        found.append((layer, LayerCost(
            columns, rows // groups, out.numel() // rows,
            torch.Size(kernel).numel() * groups, args[0].requires_grad)))

    hooks = [layer.register_forward_hook(note) for _, layer in sparse_layers(model)]
    was_training = model.training
    try:
        model.eval()
        with torch.enable_grad():
            model(inputs)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return found


def step_ratio(costs: Sequence[LayerCost], plans: Sequence[LayerPlan]) -> float:
    """MACs of FF, BP and WU of all layers over those of dense training."""
    macs = [cost.macs(plan) for cost, plan in zip(costs, plans, strict=True)]
    return sum(executed for _, executed in macs) / sum(dense for dense, _ in macs)
