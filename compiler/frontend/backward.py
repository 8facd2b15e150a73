"""The training step of a forward graph: the GEMMs of FF, BP and WU, and what the host does.

====== ============== ======== ============ ==========================================
stage  P              Q        K            of a layer ``(P, K) @ (K, Q)``
====== ============== ======== ============ ==========================================
FF     P              Q        K            as the product says
BP     P_in           C_in     taps x Q     P_in pixels of the input, C_in = K / taps
WU     K              Q        P            dense
====== ============== ======== ============ ==========================================

BP of a strided convolution is one GEMM for each residue of the input pixel, with the taps that meet
it (:mod:`compiler.array.lowering`). Both gradients of a product of two activations are BP, ``left``
and ``right``. So is that of what a layer reads where that is itself a parameter, a learnt prompt
for one: it comes out of the layer's weights. Gradients stop where :class:`~compiler.ir.Value` does
not train, and begin at the model's outputs, which feed the loss.

On its way out a gradient is added to what is there of it already: that is one operation and one
read of the results more. So is the ReLU gate, on the last contribution to the gradient of what a
product made with a ReLU. Where several gradients, or a gate, are left without a GEMM to take them
along, as two residual branches may, an ``aten.add`` of the host is. A bias gradient is no task: its
column sums are part of the update, which needs the gradient that they are of.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from compiler.ir import Forward, Gemm, HostOp, HostTask, Product, Step, Task, Update, Window

__all__ = ["training_step"]

_GRADIENT_BYTES = 4
"""Of an element of a parameter's gradient."""

Tasks = tuple[int, ...]
"""Indices of tasks."""


def training_step(forward: Forward, *, training: bool = True) -> Step:
    """The tasks of one training step; the forward pass alone without ``training``.

    The gradient of a host operator reads what the operator read, and as many bytes of gradients as
    it wrote of results. For each input that trains it writes as many bytes as it read, of a
    parameter 4 for every element (rows that no embedding picked are zeros), and reads as many of
    what it adds that to.
    """
    builder = _Builder(forward)
    builder.forward_pass()
    if training:
        builder.backward_pass()
        builder.updates()
    return Step(forward, tuple(builder.tasks), training)


@dataclass(frozen=True)
class _Sum:
    """What a gradient is added to: ``terms`` tensors; ``gate`` if a ReLU's gate comes last."""

    terms: int
    gate: bool
    needs: Tasks


@dataclass
class _Builder:
    graph: Forward
    tasks: list[Task] = field(default_factory=list)
    made_by: dict[str, Tasks] = field(default_factory=dict)
    """Tasks that make a value."""
    terms: dict[str, list[Tasks]] = field(default_factory=dict)
    """Tensors that a value's gradient is the sum of so far, by the tasks that make each."""
    readers: Counter[str] = field(default_factory=Counter)
    """How many contributions to a value's gradient are still to come."""
    gated: set[str] = field(default_factory=set)
    """Made with a ReLU whose gate is still to come."""

    def source(self, name: str) -> str:
        """The tensor that a value is, with or without gradient."""
        return self.graph.values[name].of or name

    def makers(self, *names: str | None) -> Tasks:
        """The tasks that values come from."""
        return _union(self.made_by.get(self.source(name), ()) for name in names if name is not None)

    def emit(self, task: Task) -> int:
        """Add a task; its index."""
        self.tasks.append(task)
        return len(self.tasks) - 1

    def parameter(self, name: str) -> str | None:
        """The parameter that a value is, frozen or not."""
        return self.source(name) if self.graph.values[name].kind == "parameter" else None

    # Forward.

    def forward_pass(self) -> None:
        """FF in order of execution."""
        for node in self.graph.nodes:
            needs = self.makers(*node.inputs)
            if isinstance(node, Product):
                made = self.emit(Gemm(
                    node.name, "FF", node.p, node.q, node.k, self.source(node.left),
                    self.source(node.right), node.output, node.batch, taps=node.taps,
                    weight=self.parameter(node.right), vector_ops=max(1, len(node.fused)),
                    epilogue_words=int(node.residual is not None), needs=needs))
            else:
                made = self.emit(HostTask(node.name, node.operator, False,
                                          node.read_bytes + node.written_bytes, node.fallback,
                                          needs))
            self.made_by.update((value, (made,)) for value in node.outputs)

    # Backward.

    def backward_pass(self) -> None:
        """BP and WU in reverse order, of what the outputs depend on."""
        values = self.graph.values
        loss = self.makers(*self.graph.outputs)
        self.terms = {name: [loss] for name in self.graph.outputs if values[name].trains}
        crossed: list[Product | HostOp] = []
        reached = set(self.terms)
        for node in reversed(self.graph.nodes):
            if reached.isdisjoint(node.outputs):
                continue
            crossed.append(node)
            trained = [name for name in node.inputs if values[name].trains]
            reached.update(trained)
            self.readers.update(trained)
            if isinstance(node, Product) and "relu" in node.fused:
                self.gated.add(node.output)
        # The loss gates the gradient of what it alone reads.
        self.gated -= {name for name in self.terms if not self.readers[name]}
        for node in crossed:
            if isinstance(node, Product):
                self.product_gradients(node)
            else:
                self.host_gradients(node)

    def gradient_of(self, *names: str) -> Tasks:
        """The tasks that a finished gradient comes from, the last sum among them if one is due."""
        for name in names:
            terms, gate = self.terms.get(name, []), name in self.gated
            if len(terms) > 1 or gate:
                value = self.graph.values[name]
                moved = (len(terms) + gate + 1) * value.elements * value.bytes
                made = self.emit(HostTask(
                    f"{name} gradient", "aten.add", True, moved, False,
                    _union([*terms, self.makers(name) if gate else ()])))
                self.gated.discard(name)
                self.terms[name] = [(made,)]
        return _union(itertools.chain(*(self.terms.get(name, []) for name in names)))

    def contribution(self, name: str) -> _Sum:
        """What the next contribution to a value's gradient has to take in."""
        self.readers[name] -= 1
        gate = name in self.gated and not self.readers[name]
        terms = self.terms.get(name, [])
        return _Sum(len(terms), gate, _union([*terms, self.makers(name) if gate else ()]))

    def contributed(self, name: str, taken: _Sum, made: Tasks) -> None:
        """Tasks have added to a value's gradient."""
        self.terms[name] = [_union([*self.terms.get(name, []), made])]
        if taken.gate:
            self.gated.discard(name)

    def product_gradients(self, node: Product) -> None:
        """What a product's operands get from the gradient of its result."""
        gradient = self.gradient_of(node.output)
        for name in (node.residual, node.bias):
            if name is not None and self.graph.values[name].trains:  # the gradient as it is
                self.readers[name] -= 1
                self.terms.setdefault(name, []).append(gradient)
        operands = (node.left, node.right)
        sides = ("", "") if self.parameter(node.right) else ("left", "right")
        for name, other, side in zip(operands, reversed(operands), sides, strict=True):
            if self.graph.values[name].trains:
                taken = self.contribution(name)
                needs = _union([gradient, self.makers(other), taken.needs])
                gemms = self.gradient_gemms(node, name, other, side, taken, needs)
                made = tuple(self.emit(gemm) for gemm in gemms)
                self.contributed(name, taken, made)

    def gradient_gemms(
        self, node: Product, name: str, other: str, side: str, taken: _Sum, needs: Tasks
    ) -> Iterator[Gemm]:
        """The gradient of operand ``name``; several GEMMs for the input of a strided layer."""
        parameter, weight = self.parameter(name), self.parameter(other)
        of_weight = parameter is not None and name == node.right
        size = _GRADIENT_BYTES if parameter else 2
        left, right, made = self.source(other), f"grad({node.output})", f"grad({name})"
        sizes = [("", node.k, node.q, node.p, 1)]
        if name == node.left and side != "right":
            left, right = right, left
            sizes = [("", node.p, node.k, node.q, 1)]
            if node.window is not None:
                sizes = list(_input_gradient(node, node.window))
        for residue, p, q, k, taps in sizes:
            yield Gemm(
                node.name, "WU" if of_weight else "BP", p, q, k, left, right, made, node.batch,
                " ".join(filter(None, (side, residue))), taps,
                weight=parameter if of_weight else weight,
                vector_ops=1 + taken.terms + taken.gate,
                epilogue_words=size // 2 * taken.terms + taken.gate, result_bytes=size, needs=needs)

    def host_gradients(self, node: HostOp) -> None:
        """The gradient of a host operator, all inputs at once."""
        needs = [self.gradient_of(*node.outputs), self.makers(*node.inputs, *node.outputs)]
        moved = node.read_bytes + node.written_bytes
        taken: dict[str, _Sum] = {}
        for name in node.inputs:
            value = self.graph.values[name]
            if value.trains:
                taken[name] = self.contribution(name)
                needs.append(taken[name].needs)
                written = value.elements * _GRADIENT_BYTES if value.kind == "parameter" else min(
                    value.elements * value.bytes, node.read_bytes)
                moved += (1 + taken[name].terms) * written
        made = self.emit(HostTask(f"{node.name} backward", node.operator, True, moved,
                                  node.fallback, _union(needs)))
        for name, before in taken.items():
            self.contributed(name, before, (made,))

    # Update.

    def updates(self) -> None:
        """One for each parameter that has a gradient, in order of first use."""
        used = dict.fromkeys(name for node in self.graph.nodes for name in node.inputs)
        operands = {self.source(name) for product in self.graph.products
                    for name in (product.left, product.right)}
        for name in used:
            if name in self.graph.parameters and self.terms.get(name):
                self.emit(Update(name, self.graph.parameters[name], half=name in operands,
                                 needs=_union(self.terms[name])))


def _union(tasks: Iterable[Tasks]) -> Tasks:
    return tuple(dict.fromkeys(itertools.chain.from_iterable(tasks)))


def _input_gradient(
    node: Product, window: Window
) -> Iterator[tuple[str, int, int, int, int]]:
    """Part, P, Q, K and taps of each residue of a convolution's stride that some tap meets."""
    conv = window.conv
    images = node.p // (window.out_size[0] * window.out_size[1])
    before = conv.padding[2], conv.padding[0]
    axes = [
        [(len(range(residue, size, stride)),
          sum((residue + pad - tap * dilation) % stride == 0 for tap in range(kernel)))
         for residue in range(stride)]
        for size, kernel, stride, pad, dilation in zip(
            window.size, conv.kernel, conv.stride, before, conv.dilation, strict=True)
    ]
    for (i, (rows, above)), (j, (columns, beside)) in itertools.product(*map(enumerate, axes)):
        pixels, taps = rows * columns, above * beside
        if pixels and taps:
            part = "" if conv.stride == (1, 1) else f"{i},{j}"
            yield part, images * pixels, node.k // node.taps, taps * node.q, taps
