"""What the compiler knows of a network: a forward graph, and the training step made of it.

A model becomes a :class:`Forward` graph (:mod:`compiler.frontend.export`): products, and operators
of the host, in order of execution, over named values. From it :mod:`compiler.frontend.backward`
derives the :class:`Step`: every GEMM of FF, BP and WU with its sizes, operands and dependencies.
All of it is data, frozen and free of PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rtl.pattern import DENSE, NmPattern

__all__ = [
    "Conv", "Forward", "Gemm", "HostOp", "HostTask", "Product", "Stage", "Step", "Task", "Update",
    "Value", "Window",
]

Stage = Literal["FF", "BP", "WU"]
"""The GEMMs of a training step: forward, input gradient, weight gradient."""

Kind = Literal["activation", "parameter", "constant"]


@dataclass(frozen=True)
class Value:
    """A tensor of the forward graph.

    Parameters
    ----------
    name: unique in the graph; of a parameter, its dotted name in the model (the first, if tied).
    shape: its sizes.
    bytes: of one element where the host keeps it.
    kind: ``parameter`` and ``constant`` are there before the step, activations are made by it or
        given to it.
    trains: a gradient of the loss with respect to it is needed: a parameter that is not frozen, or
        anything computed from one.
    of: the value that this one is, with the gradient stopped (``detach``); it has no maker then.
    """

    name: str
    shape: tuple[int, ...]
    bytes: int
    kind: Kind = "activation"
    trains: bool = False
    of: str | None = None

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Conv:
    """Geometry of one convolution group; ``padding`` is left, right, top, bottom, zeros.

    A linear layer is the convolution of a 1 x 1 image by a 1 x 1 kernel.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution: its parameters, and input and output size (height, width)."""

    conv: Conv
    size: tuple[int, int]
    out_size: tuple[int, int]


@dataclass(frozen=True)
class Product:
    """``output (batch, P, Q) = left (batch, P, K) @ right (batch, K, Q)``, one forward GEMM.

    Parameters
    ----------
    name: dotted name of the module, with ``#1`` for its second call and so on; of a product
        outside any layer, module and operator.
    left, right: operands; ``right`` is the weight of a layer.
    p, q, k, batch: sizes; ``batch`` GEMMs with operands of their own (heads, images, groups).
    window: of a convolution, whose ``left`` is im2col: K is kernel taps times channels.
    fused: what is applied to the result on its way out: ``bias``, ``add`` (a residual), ``relu``.
    residual: the value that ``add`` adds.
    bias: the value that ``bias`` adds to every line.
    """

    name: str
    left: str
    right: str
    output: str
    p: int
    q: int
    k: int
    batch: int = 1
    window: Window | None = None
    fused: tuple[str, ...] = ()
    residual: str | None = None
    bias: str | None = None

    @property
    def taps(self) -> int:
        """Kernel positions along K; 1 without a window."""
        return 1 if self.window is None else self.window.conv.kernel[0] * self.window.conv.kernel[1]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Values that it reads."""
        added = (value for value in (self.residual, self.bias) if value is not None)
        return (self.left, self.right, *added)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The value that it makes."""
        return (self.output,)


@dataclass(frozen=True)
class HostOp:
    """An operator that the array does not run.

    Parameters
    ----------
    name: module and operator.
    operator: of PyTorch, ``aten.batch_norm``.
    inputs, outputs: values, views seen through.
    read_bytes, written_bytes: traffic of the forward pass.
    fallback: its cost is not known; it runs on the host because the user asked for that.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    read_bytes: int
    written_bytes: int
    fallback: bool = False


@dataclass(frozen=True)
class Forward:
    """A model's forward pass for inputs of one shape.

    Parameters
    ----------
    model: name of its class.
    values: every value by name; views of a value are that value.
    nodes: in order of execution.
    inputs, outputs: values that the model is given and returns.
    parameters: elements of each distinct trainable parameter, GEMM operand or not.
    unsupported: operators whose cost is unknown, run by the host because the user asked for it.
    """

    model: str
    values: dict[str, Value]
    nodes: tuple[Product | HostOp, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: dict[str, int]
    unsupported: tuple[str, ...] = ()

    @property
    def products(self) -> tuple[Product, ...]:
        """The forward GEMMs."""
        return tuple(node for node in self.nodes if isinstance(node, Product))


@dataclass(frozen=True)
class Gemm:
    """One GEMM of the training step: ``C (P, Q) = A (P, K) @ B (K, Q)``, ``batch`` times.

    Parameters
    ----------
    layer: name of the :class:`Product` it comes from.
    stage: FF, BP (a gradient of an activation or a learnt input) or WU (a gradient of a weight).
    a, b, c: values that it reads and makes; a gradient is ``grad(value)``. Im2col is implied.
    part: which of several GEMMs of the stage: a residue of a strided convolution, an operand.
    taps: kernel positions along K, each with ``k / taps`` channels, padded to whole groups each.
    pattern: of B along K; dense unless B is a pruned weight or gradient.
    weight: the parameter that is B (FF, BP) or whose gradient is C (WU); None for products of
        activations.
    vector_ops, epilogue_words: operations on each line of 16 results on its way out, and words of
        32 bytes loaded for each line for them.
    result_bytes: of an element of C as stored: 2, or 4 for a gradient of a parameter.
    needs: indices of the tasks whose results it reads.
    """

    layer: str
    stage: Stage
    p: int
    q: int
    k: int
    a: str
    b: str
    c: str
    batch: int = 1
    part: str = ""
    taps: int = 1
    pattern: NmPattern = DENSE
    weight: str | None = None
    vector_ops: int = 1
    epilogue_words: int = 0
    result_bytes: int = 2
    needs: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Layer, stage and part."""
        return f"{self.layer} {self.stage}" + (f" {self.part}" if self.part else "")

    @property
    def samples(self) -> bool:
        """B is a gradient that the host has sampled N:M and packed."""
        return self.stage == "WU" and self.pattern != DENSE

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates without pruning."""
        return self.batch * self.p * self.q * self.k


@dataclass(frozen=True)
class HostTask:
    """What the host does in the step: an operator of the forward pass, its gradient, a sample."""

    name: str
    operator: str
    backward: bool
    bytes: int
    fallback: bool
    needs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Update:
    """The optimiser on one parameter, and the packed copies that it leaves for the next step.

    ``packed``: stage and pattern of each packed copy; ``half``: a dense FP16 copy is read as well.
    """

    parameter: str
    elements: int
    packed: tuple[tuple[Stage, NmPattern], ...] = ()
    half: bool = False
    needs: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The parameter, and that it is updated."""
        return f"{self.parameter} update"


Task = Gemm | HostTask | Update


@dataclass(frozen=True)
class Step:
    """A training step: tasks in a legal order, each naming by index what it needs.

    Without ``training``, the forward pass alone.
    """

    forward: Forward
    tasks: tuple[Task, ...]
    training: bool = True

    def gemms(self) -> Iterator[tuple[int, Gemm]]:
        """Index and GEMM, in order."""
        for index, task in enumerate(self.tasks):
            if isinstance(task, Gemm):
                yield index, task
