"""Multiply-accumulates of a training step, from the shapes that a real batch gives each layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from algorithms import NmLayer, sparse_layers
from rtl.pattern import NmPattern

__all__ = ["StepMacs", "training_macs"]


class StepMacs(NamedTuple):
    """MACs of FF, BP and WU together: of dense training, and with the model's patterns."""

    dense: int
    executed: int

    @property
    def ratio(self) -> float:
        """Executed MACs over dense ones."""
        return self.executed / self.dense


def _reduced(channels: int, pattern: NmPattern) -> int:
    """Elements that a reduction over ``channels`` multiplies, zero padding included."""
    return channels if pattern.is_dense else pattern.groups(channels) * pattern.n


def _layer_macs(layer: NmLayer, inputs: Tensor, outputs: Tensor) -> StepMacs:
    rows, columns, *kernel = layer.weight.shape
    groups = layer.conv_groups
    rows //= groups
    # Products per pair of channels: output positions times kernel taps, in every group.
    repeats = outputs.numel() // (rows * groups) * groups * torch.Size(kernel).numel()
    patterns = layer.nm_plan.executed_patterns()
    dense = repeats * rows * columns
    executed = repeats * rows * _reduced(columns, patterns["FF"])
    # WU sums over the pixels of the batch: for each weight, those instead of one a position.
    pixels = outputs.numel() // (rows * groups)
    executed += repeats // pixels * rows * columns * _reduced(pixels, patterns["WU"])
    if not inputs.requires_grad:  # nothing before this layer learns: no input gradient
        return StepMacs(2 * dense, executed)
    return StepMacs(3 * dense, executed + repeats * columns * _reduced(rows, patterns["BP"]))


def training_macs(model: nn.Module, inputs: Tensor) -> StepMacs:
    """Count every layer that :func:`algorithms.sparsify` swapped, for one batch of ``inputs``.

    The model runs forward once in evaluation mode, so that nothing in it changes.
    """
    found: list[StepMacs] = []

    def record(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(layer, NmLayer):
            found.append(_layer_macs(layer, args[0], out))

    handles = [layer.register_forward_hook(record) for _, layer in sparse_layers(model)]
    was_training = model.training
    try:
        model.eval()
        with torch.enable_grad():
            model(inputs)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return StepMacs(sum(step.dense for step in found), sum(step.executed for step in found))
