"""The weight update of any model as a program of its own: gradients in, new weights out.

For models whose products run on the bare array (:mod:`compiler.array.offload`), WUVE and SORE do
what is left of a step: unscale, the optimiser in FP32, FP16 copies, and the selection for the next
FF and BP. Nothing here looks for Inf or NaN in a gradient: that is the array's flag, see
:class:`sim.engine.EngineRun`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from algorithms import NmLayer
from compiler.chip.allocator import DeviceMemory, round_up
from compiler.chip.builder import ProgramBuilder
from compiler.chip.optimisers import Optimiser
from compiler.chip.parameters import place_vector, place_weight
from compiler.chip.tensors import Image, Matrix, Vector, gradient_group
from compiler.chip.training_step import require_method
from compiler.chip.update_code import Parameter
from rtl.architecture import Architecture
from rtl.chunk import WORD_BYTES
from rtl.errors import ParameterError
from rtl.pattern import DENSE

__all__ = ["Update", "UpdateStep", "compile_update"]

Single = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Update:
    """One parameter of the model and its tensors in device memory.

    Weights of linear layers lie as the array reads them, (1, C_in, C_out); all else is a vector.
    """

    name: str
    values: nn.Parameter
    place: Parameter

    def lay_out(self, values: torch.Tensor) -> Single:
        """Values of the parameter's shape as they lie in memory."""
        array: Single = values.detach().float().numpy()
        if isinstance(self.place.master, Vector):
            return array.reshape(-1)
        return np.ascontiguousarray(array.T)[None]

    def store(self, image: Image) -> None:
        """Write master, copies, gradient, and a state of zeros."""
        master = self.lay_out(self.values)
        if self.values.grad is None:
            raise ParameterError(self.name, None, "has no gradient: run a backward pass first")
        gradient = self.lay_out(self.values.grad)
        for tensor, array in ((self.place.master, master), (self.place.gradient, gradient),
                              *((state, np.zeros_like(master)) for state in self.place.state)):
            tensor.store(image, array)
        half = master.astype(np.float16)
        for copy in (self.place.half, *self.place.packed):
            if copy is not None:
                copy.store(image, half)

    def load(self, image: Image) -> Single:
        """The parameter after the update, in its own shape."""
        found = self.place.master.load(image)
        if isinstance(self.place.master, Matrix):
            found = found[0].T
        return np.ascontiguousarray(found).reshape(tuple(self.values.shape))


@dataclass(frozen=True)
class UpdateStep:
    """The program, at ``program_at`` behind the tensors, and what it updates."""

    architecture: Architecture
    updates: tuple[Update, ...]
    program: tuple[int, ...]
    bases: tuple[int, ...]
    program_at: int
    memory_bytes: int
    optimiser: Optimiser
    loss_scale: float

    def image(self) -> Image:
        """Device memory before the first update: parameters, their present gradients, program."""
        image = Image(np.zeros(self.memory_bytes, np.uint8), self.bases)
        for update in self.updates:
            update.store(image)
        image.store_program(self.program_at, self.program)
        return image

    def scalars(self) -> list[float]:
        """Scalar registers of the first step."""
        return self.optimiser.scalars(1, self.loss_scale, 0.0)


def compile_update(
    model: nn.Module, architecture: Architecture, *, optimiser: Optimiser, loss_scale: float,
) -> UpdateStep:
    """The update of all parameters of ``model`` that learn, as one program.

    Raises :class:`ParameterError` if none learns, or a layer's method is not one of the chip's.
    """
    space, builder = DeviceMemory(), ProgramBuilder(architecture)
    layers = {layer.weight: layer for layer in model.modules() if isinstance(layer, nn.Linear)}
    updates = []
    for name, values in model.named_parameters():
        if not values.requires_grad:
            continue
        layer = layers.get(values)
        if layer is None:
            place = place_vector(space, name, values.numel(), states=optimiser.states)
        else:
            patterns = {"FF": DENSE, "BP": DENSE}
            if isinstance(layer, NmLayer):
                require_method(layer.nm_plan.method, f"{name}.method")
                patterns = layer.nm_plan.executed_patterns()
            place = place_weight(
                space, name, (1, layer.in_features, layer.out_features), patterns["FF"],
                patterns["BP"], states=optimiser.states, group=gradient_group(architecture))
        updates.append(Update(name, values, place))
    if not updates:
        raise ParameterError("model", type(model).__name__, "has no parameter that learns")
    for update in updates:
        builder.section(update.name)
        optimiser.emit(builder, update.place)
    program = tuple(builder.program())
    at = round_up(space.size())
    size = round_up(at + len(program) * WORD_BYTES)
    return UpdateStep(architecture, tuple(updates), program, tuple(space.bases()), at, size,
                      optimiser, loss_scale)
