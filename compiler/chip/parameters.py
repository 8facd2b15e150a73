"""Places of a parameter and all that belongs to it: master, gradient, state, and its copies."""

from __future__ import annotations

from compiler.chip.allocator import DeviceMemory, Region
from compiler.chip.tensors import Matrix, PackedWeights, Vector
from compiler.chip.update_code import Parameter
from rtl.pattern import DENSE, NmPattern

__all__ = ["place_vector", "place_weight"]


def place_weight(
    space: DeviceMemory, name: str, sizes: tuple[int, int, int], forward: NmPattern,
    backward: NmPattern | None, *, states: int, group: int,
) -> Parameter:
    """A layer's weights (taps, C_in, C_out), with the copies that the next FF and BP read.

    Parameters
    ----------
    forward, backward: patterns of FF and BP; no BP reads a layer whose ``backward`` is ``None``.
    states: FP32 tensors of the optimiser.
    group: of the gradient, see :class:`compiler.chip.tensors.Matrix`.

    The FP16 copy is there if a pass is dense; packed copies come in the order FF, BP.
    """
    weights, half = Region.WEIGHTS, None
    packed: list[PackedWeights] = []
    if DENSE in (forward, backward):
        half = space.allocate(weights, f"{name}.half", Matrix(*sizes, half=True))
    if forward != DENSE:
        packed.append(space.allocate(weights, f"{name}.ff", PackedWeights(*sizes, forward)))
    if backward not in (None, DENSE):
        packed.append(space.allocate(
            weights, f"{name}.bp", PackedWeights(*sizes, backward, backward=True)))
    return Parameter(
        space.allocate(weights, f"{name}.weight", Matrix(*sizes)),
        space.allocate(Region.ACTIVATIONS, f"{name}.gradient", Matrix(*sizes, group=group)),
        tuple(space.allocate(weights, f"{name}.state{n}", Matrix(*sizes)) for n in range(states)),
        half, tuple(packed),
    )


def place_vector(space: DeviceMemory, name: str, channels: int, *, states: int) -> Parameter:
    """A vector of FP32 values, such as a bias; ``name`` is followed by what belongs to it."""
    vector = Vector(channels)
    return Parameter(
        space.allocate(Region.WEIGHTS, name, vector),
        space.allocate(Region.ACTIVATIONS, f"{name}_gradient", vector),
        tuple(space.allocate(Region.WEIGHTS, f"{name}_state{n}", vector) for n in range(states)),
    )
