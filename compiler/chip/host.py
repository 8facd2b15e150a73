"""The host's part of a training step: what runs on device memory at host points.

Regions of the network that the chip does not run are executed by PyTorch on the activations in
device memory, forward and backward, in float32 with FP16 in memory. Parameters that live there
(normalisation) are updated by the host's own optimiser. Gradients that WU reads sampled are drawn
and packed here too: no unit of the chip draws numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from algorithms import Method
from algorithms.gradients import Gradient
from compiler.chip.network import HostNode, Value
from compiler.chip.tensors import Activation, Image, PackedWeights

__all__ = [
    "Contribution", "HostPoint", "HostRuntime", "Loss", "Sample", "from_device", "to_device",
]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Scores and targets to a scalar."""


@dataclass(frozen=True)
class Contribution:
    """A gradient on its way into a value.

    target: where the sum goes. before: what other readers of the value have brought already.
    gate: the value itself if a ReLU made it and this is its last contribution.
    """

    target: Activation
    before: Activation | None = None
    gate: Activation | None = None


@dataclass(frozen=True)
class Sample:
    """dY of a layer, sampled N:M along batch and pixels and packed, as WU reads it.

    value: the layer's output. method: draws the sample. target: one tap, whose C_in are the pixels.
    """

    value: Value
    method: Method
    target: PackedWeights

    def draw(self, image: Image, dy: Activation) -> None:
        """Sample what lies in ``dy``, by PyTorch's global generator."""
        whole = Gradient(from_device(image, dy, self.value), 1, torch.float16)
        drawn = self.method.update_gradient(whole, self.target.pattern)
        rows = drawn.movedim(1, -1).reshape(1, -1, self.target.c_out)
        self.target.store(image, rows.to(torch.float16).numpy())

    def load(self, image: Image) -> Tensor:
        """What was drawn, as :func:`from_device` has dY."""
        value, rows = self.value, self.target.unpack(self.target.load(image))
        array = torch.from_numpy(rows.astype(np.float32))
        shaped = array.reshape(value.batch, value.height, value.width, value.channels)
        return shaped.flatten(0, 2) if value.flat else shaped.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class HostPoint:
    """One stop of the program: what the host reads and writes there.

    ``node`` is None for the loss, whose input is the scores and whose output their gradient, and
    with a ``sample``, whose input is dY. Backward, ``inputs`` are the gradients of the node's
    outputs and ``outputs`` go to its inputs.
    """

    name: str
    node: HostNode | None
    backward: bool
    inputs: tuple[Activation, ...]
    outputs: tuple[Contribution | None, ...]
    sample: Sample | None = None

    @property
    def operators(self) -> str:
        """What the host computes, for reports."""
        if self.sample is not None:
            return f"sample {self.sample.target.pattern}"
        return "loss" if self.node is None else ", ".join(self.node.kinds)

    @property
    def bytes(self) -> int:
        """Bytes that the host reads and writes."""
        tensors: list[Activation | PackedWeights] = [*self.inputs]
        if self.sample is not None:
            tensors.append(self.sample.target)
        for output in self.outputs:
            if output is not None:
                tensors += [t for t in (output.target, output.before, output.gate) if t is not None]
        return sum(tensor.words for tensor in tensors) * 32


def from_device(image: Image, tensor: Activation, value: Value) -> Tensor:
    """float32 in PyTorch's layout: (batch, channels) or (batch, channels, height, width)."""
    array = torch.from_numpy(tensor.load(image).astype(np.float32)).permute(0, 3, 1, 2)
    return array.flatten(1) if value.flat else array.contiguous()


def to_device(image: Image, tensor: Activation, array: Tensor) -> None:
    """Store PyTorch's layout as FP16; a value beyond its range becomes Inf."""
    shaped = array.detach().reshape(tensor.batch, tensor.channels, tensor.height, tensor.width)
    tensor.store(image, shaped.permute(0, 2, 3, 1).to(torch.float16).numpy())


class HostRuntime:
    """Executes host points for one machine; keeps autograd's state from forward to backward.

    Parameters
    ----------
    points: by number, as the program names them.
    values: activations of the network by value.
    loss, targets: for the point of the loss; gradients are multiplied by ``loss_scale``.
    optimiser: makes an optimiser for the parameters that live on the host.
    seed: of the numbers that samples are drawn with.

    Modules are copies, so that several machines can run the same step from the same state.
    """

    def __init__(
        self, points: tuple[HostPoint, ...], values: dict[Value, Activation], *,
        loss: Loss | None, loss_scale: float,
        optimiser: Callable[[list[nn.Parameter]], torch.optim.Optimizer], seed: int = 0,
    ) -> None:
        self.points, self._values = points, values
        self._loss, self._scale = loss, loss_scale
        self.targets = torch.empty(0)
        self.losses: list[float] = []
        nodes = {point.node.name: point.node for point in points if point.node is not None}
        self._modules = {name: copy.deepcopy(node.module).train() for name, node in nodes.items()}
        self.parameters = [p for m in self._modules.values() for p in m.parameters()]
        self._optimiser = optimiser(self.parameters) if self.parameters else None
        self._held: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        self._random = torch.Generator().manual_seed(seed).get_state()

    def run(self, number: int, image: Image) -> None:
        """Do what host point ``number`` asks for."""
        point = self.points[number]
        if point.sample is not None:
            self._run_sample(point, point.sample, image)
        elif point.node is None:
            self._run_loss(point, image)
        elif point.backward:
            self._run_backward(point, point.node, image)
        else:
            self._run_forward(point, point.node, image)

    def finish(self, skip: bool) -> None:
        """End of a step: update the host's parameters unless the step is skipped."""
        if self._optimiser is not None:
            finite = all(bool(torch.isfinite(p.grad).all())
                         for p in self.parameters if p.grad is not None)
            if finite and not skip:
                for parameter in self.parameters:
                    if parameter.grad is not None:
                        parameter.grad /= self._scale
                self._optimiser.step()
            self._optimiser.zero_grad()
        self._held.clear()

    def _run_forward(self, point: HostPoint, node: HostNode, image: Image) -> None:
        inputs = [
            from_device(image, tensor, value).requires_grad_()
            for tensor, value in zip(point.inputs, node.inputs, strict=True)
        ]
        # Clones, because an operator may work in place.
        outputs = list(self._modules[node.name](*(x.clone() for x in inputs)))
        self._held[node.name] = inputs, outputs
        for place, array in zip(point.outputs, outputs, strict=True):
            if place is not None:
                to_device(image, place.target, array)

    def _run_backward(self, point: HostPoint, node: HostNode, image: Image) -> None:
        inputs, outputs = self._held[node.name]
        gradients = [
            from_device(image, tensor, value)
            for tensor, value in zip(point.inputs, node.outputs, strict=True)
        ]
        for x in inputs:
            x.grad = None
        torch.autograd.backward(outputs, gradients)
        for x, place, value in zip(inputs, point.outputs, node.inputs, strict=True):
            if place is None:
                continue
            total = torch.zeros_like(x) if x.grad is None else x.grad
            if place.before is not None:
                total = total + from_device(image, place.before, value)
            if place.gate is not None:
                total = total * (from_device(image, place.gate, value) > 0)
            to_device(image, place.target, total)

    def _run_sample(self, point: HostPoint, sample: Sample, image: Image) -> None:
        (dy,) = point.inputs
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            sample.draw(image, dy)
            self._random = torch.get_rng_state()

    def _run_loss(self, point: HostPoint, image: Image) -> None:
        (scores,), (place,) = point.inputs, point.outputs
        value = next(v for v, tensor in self._values.items() if tensor == scores)
        if self._loss is None or place is None:
            raise AssertionError("a point of the loss without a loss")
        array = from_device(image, scores, value).requires_grad_()
        loss = self._loss(array, self.targets)
        (loss * self._scale).backward()  # type: ignore[no-untyped-call]
        self.losses.append(loss.item())
        if array.grad is None:
            raise AssertionError("the loss does not depend on the scores")
        to_device(image, place.target, array.grad)
