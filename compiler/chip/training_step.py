"""A whole training step of a network as one program: forward, backward, update.

:func:`compile_step` places every tensor in device memory and emits the code. What the chip does not
run becomes a host point, where the program stops until the host has done it
(:mod:`compiler.chip.host`); a network of convolutions, linear layers, ReLU and residual additions
trained on the squared error has none, unless the method samples the gradients that WU reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from algorithms import Method, NmLayer, get_method
from compiler.chip.addition import emit_addition
from compiler.chip.allocator import DeviceMemory, Region, round_up
from compiler.chip.builder import ProgramBuilder
from compiler.chip.conv_geometry import ConvGeometry
from compiler.chip.gemm import emit_backward, emit_forward, emit_weight_update
from compiler.chip.host import Contribution, HostPoint, HostRuntime, Loss, Sample
from compiler.chip.loss_code import emit_bias_gradient, emit_squared_error
from compiler.chip.network import GemmNode, HostNode, Network, Value, trace
from compiler.chip.optimisers import Optimiser
from compiler.chip.parameters import place_vector, place_weight
from compiler.chip.tensors import (
    Activation,
    Image,
    Matrix,
    PackedWeights,
    Vector,
    gradient_group,
)
from compiler.chip.tensors import (
    Tensor as DeviceTensor,
)
from compiler.chip.update_code import Parameter
from rtl import isa
from rtl.architecture import Architecture
from rtl.chunk import WORD_BYTES
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern

__all__ = ["Layer", "Section", "TrainingStep", "compile_step", "require_method"]

T = TypeVar("T", bound=DeviceTensor)

_METHODS = ("dense", "bdwp", "bdwp+wu")


@dataclass(frozen=True)
class Layer:
    """A layer's tensors in device memory; ``ff`` and ``bp`` are what FF and BP read.

    ``sample``: of dY, where WU reads that.
    """

    node: GemmNode
    geometry: ConvGeometry
    weight: Parameter
    bias: Parameter | None
    ff: PackedWeights | Matrix
    bp: PackedWeights | Matrix
    sample: Sample | None = None

    def store(self, image: Image) -> None:
        """Write the layer's parameters, zero state, and the copies that FF and BP read."""
        master = self.weights()
        half = master.astype(np.float16)
        _matrix(self.weight.master).store(image, master)
        for state in self.weight.state:
            _matrix(state).store(image, np.zeros_like(master))
        if self.weight.half is not None:
            self.weight.half.store(image, half)
        for packed in self.weight.packed:
            packed.store(image, half)
        if self.bias is not None:
            bias = self.node.layer.get_parameter("bias").detach().numpy()
            for tensor, array in ((self.bias.master, bias),
                                  *((s, np.zeros_like(bias)) for s in self.bias.state)):
                _vector(tensor).store(image, array)

    def weights(self) -> npt.NDArray[np.float32]:
        """The model's weights as (taps, C_in, C_out) float32."""
        return self.as_matrix(self.node.layer.get_parameter("weight").detach().numpy())

    def as_matrix(self, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """PyTorch's weight tensor as (taps, C_in, C_out)."""
        shape = (self.geometry.c_out, self.geometry.c_in, self.geometry.taps)
        return np.ascontiguousarray(weight.reshape(shape).transpose(2, 1, 0))

    def load(self, image: Image) -> dict[str, npt.NDArray[np.float32]]:
        """Weights and bias in PyTorch's shapes."""
        shape = tuple(self.node.layer.get_parameter("weight").shape)
        weight = _matrix(self.weight.master).load(image).transpose(2, 1, 0)
        found = {"weight": np.ascontiguousarray(weight).reshape(shape)}
        if self.bias is not None:
            found["bias"] = _vector(self.bias.master).load(image)
        return found


class Section(NamedTuple):
    """One operation of the step: ``program[start:stop]``, which with an ``end`` runs on its own."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class TrainingStep:
    """A compiled training step; the program begins at ``program_at`` behind the tensors."""

    architecture: Architecture
    network: Network
    layers: tuple[Layer, ...]
    values: dict[Value, Activation]
    gradients: dict[Value, Activation]
    points: tuple[HostPoint, ...]
    program: tuple[int, ...]
    sections: tuple[Section, ...]
    bases: tuple[int, ...]
    program_at: int
    memory_bytes: int
    optimiser: Optimiser
    loss: Loss | None
    loss_scale: float
    target: Activation | None = None
    losses: Vector | None = None
    seed: int = 0

    def image(self) -> Image:
        """Device memory with all parameters and the program in it."""
        image = Image(np.zeros(self.memory_bytes, np.uint8), self.bases)
        for layer in self.layers:
            layer.store(image)
        image.store_program(self.program_at, self.program)
        return image

    def runtime(self) -> HostRuntime:
        """The host's part of a machine that runs this step, from the model's present state."""
        return HostRuntime(self.points, self.values, loss=self.loss, loss_scale=self.loss_scale,
                           optimiser=self.optimiser.torch, seed=self.seed)

    def scalars(self, step: int) -> list[float]:
        """Scalar registers for step number ``step``, from 1."""
        scores = self.network.output
        error = 2 * self.loss_scale / (scores.batch * scores.channels)
        return self.optimiser.scalars(step, self.loss_scale, error)

    def feed(self, image: Image, runtime: HostRuntime, images: Tensor, targets: Tensor) -> None:
        """Put a batch where the step reads it; for the squared error targets are (B, classes)."""
        source = self.values[self.network.input]
        array = images.detach().reshape(source.batch, source.channels, source.height, source.width)
        source.store(image, array.permute(0, 2, 3, 1).numpy().astype(np.float16))
        if self.target is None:
            runtime.targets = targets
        else:
            self.target.store(image, targets.numpy().astype(np.float16)[:, None, None, :])

    def mean_loss(self, image: Image, runtime: HostRuntime) -> float:
        """The loss of the step that ran last."""
        if self.losses is None:
            return runtime.losses[-1]
        scores = self.network.output
        return float(self.losses.load(image).sum()) / (scores.batch * scores.channels)

    def parameters(self, image: Image) -> dict[str, npt.NDArray[np.float32]]:
        """The layers' parameters in device memory, by PyTorch's names."""
        return {
            f"{layer.node.name}.{name}": array
            for layer in self.layers for name, array in layer.load(image).items()
        }


def compile_step(
    model: nn.Module, images: Tensor, architecture: Architecture, *, optimiser: Optimiser,
    loss: Loss | None = None, loss_scale: float = 1024.0, seed: int = 0,
) -> TrainingStep:
    """The program of one training step of ``model`` on a batch of the shape of ``images``.

    Parameters
    ----------
    model: dense, or swapped by :func:`algorithms.sparsify` with method ``bdwp`` or ``bdwp+wu``.
    loss: run by the host; ``None`` is the mean squared error, which the chip runs.
    seed: of what the host draws when it samples gradients.

    Raises :class:`ParameterError` for what the chip cannot run.
    """
    return _Planner(trace(model, images), architecture, optimiser, loss, loss_scale, seed).plan()


def require_method(method: str | Method, parameter: str = "method") -> None:
    """Raise :class:`ParameterError`, naming ``parameter``, unless the chip trains with a method."""
    chosen = get_method(method, parameter)
    if chosen.name not in _METHODS:
        raise ParameterError(parameter, chosen.name,
                             f"the chip runs training steps of {', '.join(_METHODS)}", "bdwp")
    if chosen.decays or not chosen.selects_in_hardware:
        raise ParameterError(parameter, chosen, "the chip trains with the method's default options:"
                             " SORE makes all weights from the dense master", chosen.name)


@dataclass
class _Planner:
    network: Network
    architecture: Architecture
    optimiser: Optimiser
    loss: Loss | None
    loss_scale: float
    seed: int
    space: DeviceMemory = field(default_factory=DeviceMemory)
    layers: dict[str, Layer] = field(default_factory=dict)
    values: dict[Value, Activation] = field(default_factory=dict)
    gradients: dict[Value, Activation] = field(default_factory=dict)
    points: list[HostPoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.builder = ProgramBuilder(self.architecture)
        self.readers: dict[Value, int] = {}
        self.makers = {value: node for node in self.network.nodes for value in _outputs(node)}
        for node in self.network.nodes:
            for value in _inputs(node):
                self.readers[value] = self.readers.get(value, 0) + 1

    def plan(self) -> TrainingStep:
        """Emit everything in order."""
        source, scores = self.network.input, self.network.output
        self.values[source] = self._place(Region.DATA, "input", _activation(source))
        for node in self.network.nodes:
            self._forward(node)
        target, losses = self._squared_error(scores) if self.loss is None else (None, None)
        if self.loss is not None:
            place = Contribution(self._gradient_of(scores))
            self._stop(HostPoint("loss", None, True, (self.values[scores],), (place,)))
            self.gradients[scores] = place.target
        for node in reversed(self.network.nodes):
            self._backward(node)
        # A guarded store looks at the sticky flag: all gradients must have been seen by then.
        self.builder.section("fence")
        self.builder.emit(isa.FENCE)
        for layer in self.layers.values():
            self.builder.section(f"{layer.node.name} update")
            for parameter in (layer.weight, layer.bias):
                if parameter is not None:
                    self.optimiser.emit(self.builder, parameter)
        starts = self.builder.sections
        stops = [start for _, start in starts[1:]] + [len(self.builder)]
        sections = tuple(Section(*each, stop) for each, stop in zip(starts, stops, strict=True))
        bases, end = self.space.bases(), self.space.size()
        program = tuple(self.builder.program())
        program_at = round_up(end)
        return TrainingStep(
            self.architecture, self.network, tuple(self.layers.values()), self.values,
            self.gradients, tuple(self.points), program, sections, tuple(bases), program_at,
            round_up(program_at + len(program) * WORD_BYTES), self.optimiser, self.loss,
            self.loss_scale, target, losses, self.seed,
        )

    def _place(self, region: Region, name: str, tensor: T) -> T:
        return self.space.allocate(region, name, tensor)

    def _stop(self, point: HostPoint) -> None:
        self.builder.section(f"host {point.name}")
        self.builder.emit(isa.HOST, point=len(self.points))
        self.points.append(point)

    # Forward.

    def _forward(self, node: GemmNode | HostNode) -> None:
        for value in _outputs(node):
            self.values[value] = self._place(Region.ACTIVATIONS, value.name, _activation(value))
        if isinstance(node, HostNode):
            self._stop(HostPoint(
                node.name, node, False, tuple(self.values[v] for v in node.inputs),
                tuple(Contribution(self.values[v]) for v in node.outputs),
            ))
            return
        layer = self.layers[node.name] = self._layer(node)
        self.builder.section(f"{node.name} FF")
        emit_forward(
            self.builder, layer.geometry, self.values[node.input], layer.ff,
            self.values[node.output],
            bias=None if layer.bias is None else _vector(layer.bias.master),
            add=None if node.residual is None else self.values[node.residual], relu=node.relu,
        )

    def _layer(self, node: GemmNode) -> Layer:
        name, module = node.name, node.layer
        patterns = _patterns(name, module)
        read, made = node.input, node.output
        if isinstance(module, nn.Linear) and read.height * read.width > 1 and not (
                patterns["FF"] == patterns["BP"] == DENSE):
            raise ParameterError(
                name, f"Linear behind a {read.height} x {read.width} image",
                "a sparse layer's groups must be channels of one pixel",
                f"Conv2d({read.channels}, {made.channels}, {node.conv.kernel})")
        geometry = ConvGeometry(node.conv, read.batch, read.height, read.width, read.channels,
                                made.channels)
        sizes = geometry.taps, geometry.c_in, geometry.c_out
        backward = None if read == self.network.input else patterns["BP"]
        weight = place_weight(self.space, name, sizes, patterns["FF"], backward,
                              states=self.optimiser.states, group=gradient_group(self.architecture))
        bias = None if module.bias is None else place_vector(
            self.space, f"{name}.bias", geometry.c_out, states=self.optimiser.states)
        copies = {one.backward: one for one in weight.packed}
        ff = copies.get(False, weight.half)
        bp = copies.get(True, weight.half or ff)
        if ff is None or bp is None:
            raise AssertionError("a layer without weights")
        return Layer(node, geometry, weight, bias, ff, bp, self._sample(node, geometry))

    def _sample(self, node: GemmNode, geometry: ConvGeometry) -> Sample | None:
        plan = node.layer.nm_plan if isinstance(node.layer, NmLayer) else None
        if plan is None or plan.update.pattern == DENSE:
            return None
        packed = PackedWeights(1, geometry.output().pixels, geometry.c_out, plan.update.pattern)
        return Sample(node.output, plan.method,
                      self._place(Region.ACTIVATIONS, f"{node.name}.sample", packed))

    def _squared_error(self, scores: Value) -> tuple[Activation, Vector]:
        target = self._place(Region.DATA, "target", _activation(scores))
        losses = self._place(Region.DATA, "losses", Vector(scores.channels))
        gradient = self.gradients[scores] = self._gradient_of(scores)
        self.builder.section("loss")
        emit_squared_error(self.builder, self.values[scores], target, gradient, losses)
        return target, losses

    # Backward.

    def _gradient_of(self, value: Value, part: int = 0) -> Activation:
        name = f"d.{value.name}.{part}"
        return self._place(Region.ACTIVATIONS, name, _activation(value))

    def _contribute(self, value: Value) -> Contribution | None:
        """Where the next contribution to a value's gradient goes; None for the network's input."""
        if value == self.network.input:
            return None
        self.readers[value] -= 1
        maker = self.makers[value]
        gated = isinstance(maker, GemmNode) and maker.relu and not self.readers[value]
        before = self.gradients.get(value)
        target = self.gradients[value] = self._gradient_of(value, self.readers[value])
        return Contribution(target, before, self.values[value] if gated else None)

    def _backward(self, node: GemmNode | HostNode) -> None:
        if isinstance(node, HostNode):
            inputs = tuple(self.gradients[value] for value in node.outputs)
            outputs = tuple(self._contribute(value) for value in node.inputs)
            self._stop(HostPoint(f"{node.name} backward", node, True, inputs, outputs))
            return
        layer, dy = self.layers[node.name], self.gradients[node.output]
        if node.residual is not None:
            self._pass_on(node.residual, dy)
        if layer.sample is not None:
            self._stop(HostPoint(f"{node.name} sample", None, True, (dy,), (), layer.sample))
        place = self._contribute(node.input)
        if place is not None:
            self.builder.section(f"{node.name} BP")
            emit_backward(self.builder, layer.geometry, dy, layer.bp, place.target,
                          add=place.before, gate=place.gate)
        self.builder.section(f"{node.name} WU")
        emit_weight_update(self.builder, layer.geometry, self.values[node.input],
                           dy if layer.sample is None else layer.sample.target,
                           _matrix(layer.weight.gradient))
        if layer.bias is not None:
            emit_bias_gradient(self.builder, dy, _vector(layer.bias.gradient))

    def _pass_on(self, value: Value, dy: Activation) -> None:
        """A residual's gradient is that of the sum: the same tensor, if nothing else is there."""
        maker = self.makers.get(value)
        gated = isinstance(maker, GemmNode) and maker.relu
        if value in self.gradients or (gated and self.readers[value] == 1):
            place = self._contribute(value)
            if place is not None:
                self.builder.section(f"{value.name} residual")
                emit_addition(self.builder, dy, place.target, add=place.before, gate=place.gate)
        elif value != self.network.input:
            self.readers[value] -= 1
            self.gradients[value] = dy


def _inputs(node: GemmNode | HostNode) -> Iterator[Value]:
    if isinstance(node, HostNode):
        yield from node.inputs
        return
    yield node.input
    if node.residual is not None:
        yield node.residual


def _outputs(node: GemmNode | HostNode) -> tuple[Value, ...]:
    return node.outputs if isinstance(node, HostNode) else (node.output,)


def _activation(value: Value) -> Activation:
    return Activation(value.batch, value.height, value.width, value.channels)


def _matrix(tensor: Matrix | Vector) -> Matrix:
    if not isinstance(tensor, Matrix):
        raise AssertionError("not a matrix")
    return tensor


def _vector(tensor: Matrix | Vector) -> Vector:
    if not isinstance(tensor, Vector):
        raise AssertionError("not a vector")
    return tensor


def _patterns(name: str, layer: nn.Module) -> dict[str, NmPattern]:
    if not isinstance(layer, NmLayer):
        return {"FF": DENSE, "BP": DENSE}
    require_method(layer.nm_plan.method, f"{name}.method")
    return layer.nm_plan.executed_patterns()
