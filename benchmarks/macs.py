"""Multiply-accumulates of a training step, from the shapes that a real batch gives each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from algorithms import LayerPlan, NmLayer, sparse_layers

__all__ = ["LayerCost", "StepMacs", "layer_costs", "step_macs", "training_macs"]


class StepMacs(NamedTuple):
    """MACs of FF, BP and WU together: of dense training, and with the model's patterns."""

    dense: int
    executed: int

    @property
    def ratio(self) -> float:
        """Executed MACs over dense ones, 1 where there are none."""
        return self.executed / self.dense if self.dense else 1.0


@dataclass(frozen=True)
class LayerCost:
    """The GEMMs of one layer.

    inputs, outputs: channels of a convolution group. positions: output positions of the whole
    batch, over which WU sums. taps: kernel taps times convolution groups.
    learns_below: whether anything before the layer needs an input gradient.
    learns: whether its weights do; frozen ones have no WU.
    """

    inputs: int
    outputs: int
    positions: int
    taps: int
    learns_below: bool
    learns: bool = True

    def macs(self, plan: LayerPlan) -> StepMacs:
        """A step with the patterns of ``plan``, zero padding included."""
        patterns = plan.executed_patterns()
        inputs, outputs, positions = self.inputs, self.outputs, self.positions
        forward = positions * outputs * patterns["FF"].kept(inputs)
        backward = positions * inputs * patterns["BP"].kept(outputs)
        update = inputs * outputs * patterns["WU"].kept(positions)
        dense = positions * inputs * outputs * (1 + self.learns + self.learns_below)
        executed = forward + self.learns * update + self.learns_below * backward
        return StepMacs(self.taps * dense, self.taps * executed)


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
            torch.Size(kernel).numel() * groups, args[0].requires_grad,
            layer.weight.requires_grad)))

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


def step_macs(costs: Sequence[LayerCost], plans: Sequence[LayerPlan]) -> StepMacs:
    """FF, BP and WU of all layers, each under its plan."""
    macs = [cost.macs(plan) for cost, plan in zip(costs, plans, strict=True)]
    return StepMacs(sum(step.dense for step in macs), sum(step.executed for step in macs))


def training_macs(model: nn.Module, inputs: Tensor) -> StepMacs:
    """A step of ``model`` as it stands, for one batch of ``inputs``."""
    found = layer_costs(model, inputs)
    return step_macs([cost for _, cost in found], [layer.nm_plan for layer, _ in found])
