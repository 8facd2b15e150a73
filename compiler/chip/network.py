"""A network as the chip sees it: GEMMs with what is fused into their drain, and host regions.

The model is traced (:mod:`torch.fx`). Convolutions and linear layers become :class:`GemmNode`; a
bias, a residual addition and a ReLU behind one are fused into it. All else is gathered into
:class:`HostNode`: operators that the host runs on device memory at a host point.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from compiler.array.lowering import conv_of
from compiler.ir import Conv
from rtl.errors import ParameterError

__all__ = ["GemmNode", "HostNode", "Network", "Value", "trace"]

_RELU: tuple[Any, ...] = (F.relu, torch.relu, "relu", "relu_")
_ADD: tuple[Any, ...] = (operator.add, torch.add, operator.iadd, "add", "add_")
_FLATTEN: tuple[Any, ...] = (torch.flatten, "flatten")


@dataclass(frozen=True)
class Value:
    """An activation in device memory: (batch, height, width, channels); features are 1 x 1."""

    name: str
    batch: int
    height: int
    width: int
    channels: int
    flat: bool
    """PyTorch's tensor is (batch, channels), without the image axes."""


@dataclass(frozen=True)
class GemmNode:
    """``output = relu(layer(input) + residual)``, with what is there of ReLU and residual.

    A linear layer behind a flattened image is the convolution whose kernel is the image.
    """

    name: str
    layer: nn.Module
    conv: Conv
    input: Value
    output: Value
    residual: Value | None = None
    relu: bool = False


@dataclass(frozen=True)
class HostNode:
    """Operators for the host: ``module`` maps ``inputs`` to ``outputs``."""

    name: str
    module: fx.GraphModule
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Network:
    """Nodes in the order of execution, from ``input`` to ``output``."""

    input: Value
    output: Value
    nodes: tuple[GemmNode | HostNode, ...]

    @property
    def gemms(self) -> tuple[GemmNode, ...]:
        """The layers on the chip."""
        return tuple(node for node in self.nodes if isinstance(node, GemmNode))


class _Tracer(fx.Tracer):
    """Layers stay whole even when their class was swapped for a sparse one."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether tracing stops at this module."""
        whole = isinstance(m, nn.Conv2d | nn.Linear)
        return whole or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, images: Tensor) -> Network:
    """The network of ``model`` for inputs of the shape of ``images`` (B, C, H, W) or (B, C).

    Raises :class:`ParameterError` for a layer that the chip cannot run (grouped convolution,
    padding other than zeros) and for a model that :mod:`torch.fx` cannot trace.
    """
    try:
        graph = _Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError) as failure:
        raise ParameterError("model", type(model).__name__,
                             f"must be traceable by torch.fx ({failure})") from None
    module = fx.GraphModule(model, graph)
    was_training = model.training
    model.eval()  # running statistics are not to move here
    with torch.no_grad():
        ShapeProp(module).propagate(images)
    model.train(was_training)
    return _Builder(module).build()


@dataclass
class _Builder:
    """Walks the traced graph once."""

    module: fx.GraphModule
    values: dict[fx.Node, Value] = field(default_factory=dict)
    nodes: list[GemmNode | HostNode] = field(default_factory=list)
    region: list[fx.Node] = field(default_factory=list)
    done: set[fx.Node] = field(default_factory=set)

    def build(self) -> Network:
        source = output = None
        for node in self.module.graph.nodes:
            if node in self.done:
                continue
            if node.op == "placeholder":
                source = self.values[node] = _value(node)
            elif node.op == "output":
                self._close()
                output = self._chip_value(node.args[0])
            elif self._layer(node) is not None:
                self._gemm(node)
            elif not self._is_view(node):
                self.region.append(node)
        if source is None or output is None:
            raise ParameterError("model", type(self.module).__name__, "must have input and output")
        return Network(source, output, tuple(self.nodes))

    def _layer(self, node: fx.Node) -> nn.Module | None:
        if node.op != "call_module":
            return None
        layer = self.module.get_submodule(str(node.target))
        return layer if isinstance(layer, nn.Conv2d | nn.Linear) else None

    def _is(self, node: fx.Node, targets: tuple[Any, ...], kind: type[nn.Module] | None) -> bool:
        if node.op == "call_module":
            return kind is not None and isinstance(
                self.module.get_submodule(str(node.target)), kind)
        return node.op in ("call_function", "call_method") and node.target in targets

    def _is_view(self, node: fx.Node) -> bool:
        """A flattened image that only linear layers read: the linear layer sees to it."""
        return (
            self._is(node, _FLATTEN, nn.Flatten)
            and isinstance(node.args[0], fx.Node) and node.args[0] in self.values
            and all(isinstance(self._layer(user), nn.Linear) for user in node.users)
        )

    def _chip_value(self, node: Any) -> Value:
        """The value that a layer reads; through a flattening view."""
        self._close_if_inside(node)
        if node in self.values:
            return self.values[node]
        return self.values[node.args[0]]

    def _close_if_inside(self, node: fx.Node) -> None:
        if node in self.region:
            self._close()

    def _gemm(self, node: fx.Node) -> None:
        """One layer and what its drain takes along."""
        layer = self._layer(node)
        if layer is None:
            raise AssertionError("not a layer")
        source = node.args[0]
        if not isinstance(source, fx.Node):
            raise ParameterError(str(node.target), source, "must read an activation")
        read = self._chip_value(source)
        fused, residual, relu = [node], None, False
        user = _only_user(node)
        if user is not None and self._is(user, _ADD, None) and not user.kwargs:
            other = next((arg for arg in user.args if arg is not node), None)
            if isinstance(other, fx.Node) and other in self.values and (
                    _shape(other) == _shape(node)):
                residual = self.values[other]
                fused.append(user)
                user = _only_user(user)
        if user is not None and self._is(user, _RELU, nn.ReLU):
            relu = True
            fused.append(user)
        self.done.update(fused)
        made = self.values[fused[-1]] = _value(fused[-1])
        self.nodes.append(GemmNode(
            str(node.target), layer, _geometry(str(node.target), layer, read), read, made,
            residual, relu,
        ))

    def _close(self) -> None:
        """Make one host node of the operators gathered so far."""
        if not self.region:
            return
        inside, self.region = self.region, []
        graph, copies = fx.Graph(), {}
        inputs: list[fx.Node] = []

        def outer(node: fx.Node) -> fx.Node:
            if node not in copies:
                if node in self.values:
                    inputs.append(node)
                    copies[node] = graph.placeholder(node.name)
                else:  # a view that this region sees too
                    copies[node] = graph.node_copy(node, outer)
            return copies[node]

        # Placeholders come first in a graph.
        for node in inside:
            for argument in node.all_input_nodes:
                if argument in self.values:
                    outer(argument)
        for node in inside:
            copies[node] = graph.node_copy(node, outer)
        ends = [node for node in inside if any(user not in inside for user in node.users)]
        graph.output(tuple(copies[node] for node in ends))
        module = fx.GraphModule(self.module, graph)
        for node in ends:
            self.values[node] = _value(node)
        self.nodes.append(HostNode(
            inside[0].name, module, tuple(self.values[node] for node in inputs),
            tuple(self.values[node] for node in ends),
            tuple(self._kind(node) for node in inside),
        ))

    def _kind(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return type(self.module.get_submodule(str(node.target))).__name__
        return node.target if isinstance(node.target, str) else getattr(
            node.target, "__name__", str(node.target))


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _value(node: fx.Node) -> Value:
    shape = _shape(node)
    if len(shape) == 4:
        batch, channels, height, width = shape
        return Value(node.name, batch, height, width, channels, flat=False)
    if len(shape) == 2:
        return Value(node.name, shape[0], 1, 1, shape[1], flat=True)
    raise ParameterError(node.name, shape, "must be (batch, channels, height, width) or "
                         "(batch, features)")


def _geometry(name: str, layer: nn.Module, read: Value) -> Conv:
    if isinstance(layer, nn.Linear):
        return Conv((read.height, read.width))
    if not isinstance(layer, nn.Conv2d):
        raise AssertionError("neither convolution nor linear")
    if layer.groups != 1:
        raise ParameterError(name, layer.groups, "the chip runs convolutions of one group", 1)
    if layer.padding_mode != "zeros":
        raise ParameterError(name, layer.padding_mode, "the chip pads with zeros only", "zeros")
    return conv_of(layer)
