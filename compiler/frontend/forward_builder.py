"""Puts a forward graph together: values, products, and operators of the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor

from compiler.frontend.names import Names
from compiler.frontend.products import Matrices, sizes
from compiler.ir import HostOp, Kind, Product, Value

__all__ = ["ForwardBuilder", "element_bytes"]

HALF = 2
"""Bytes of an activation's element in device memory."""


def element_bytes(dtype: torch.dtype, kind: Kind = "activation") -> int:
    """Of one element: FP16 for activations and constants, FP32 masters for parameters."""
    if dtype.is_floating_point:
        return min(dtype.itemsize, 4 if kind == "parameter" else HALF)
    return 2 * HALF if dtype.is_complex else dtype.itemsize


@dataclass
class ForwardBuilder:
    """What was built so far; ``grad`` is off while gradients are not to flow."""

    names: Names
    values: dict[str, Value] = field(default_factory=dict)
    nodes: list[Product | HostOp] = field(default_factory=list)
    grad: bool = True

    def value(
        self, name: str, tensor: Tensor, kind: Kind = "activation", trains: bool = False
    ) -> str:
        """A new value like ``tensor``; only floating ones can train."""
        differentiable = tensor.is_floating_point() or tensor.is_complex()
        return self._add(Value(name, sizes(tensor.shape), element_bytes(tensor.dtype, kind), kind,
                               trains and differentiable))

    def result(self, name: str, shape: tuple[int, ...], trains: bool) -> str:
        """A new floating value."""
        return self._add(Value(name, shape, HALF, trains=trains))

    def changed(self, before: str, name: str, trains: bool) -> str:
        """What ``before`` is after an operator wrote to its memory."""
        old = self.values[before]
        return self._add(Value(name, old.shape, old.bytes,
                               trains=old.trains or (trains and old.bytes == HALF)))

    def detached(self, name: str) -> str:
        """The value with its gradient stopped."""
        source = self.values[name]
        if not source.trains:
            return name
        stopped = replace(source, name=f"{name}.detached", trains=False, of=name)
        self.values[stopped.name] = stopped
        return stopped.name

    def trains(self, values: Iterable[str]) -> bool:
        """Whether what is computed from these values has a gradient."""
        return self.grad and any(self.values[value].trains for value in values)

    def product(
        self, name: str, output: str, left: str, right: str, found: Matrices,
        shape: tuple[int, ...], addend: str | None = None,
    ) -> str:
        """Add ``left @ right + addend`` of the sizes ``found``; its output, of ``shape``.

        A parameter is the right operand if either is. Batches that share it are one GEMM. The
        addend is left out where it is neither a bias nor an activation of the output's shape.
        """
        a, b = self.values[left], self.values[right]
        p, q, k, batch, window = found.p, found.q, found.k, found.batch, found.window
        if window is None and a.kind == "parameter" != b.kind:
            a, b, p, q = b, a, q, p
        if window is None and b.kind == "parameter" and b.elements == k * q:
            p, batch = p * batch, 1
        product = Product(name, a.name, b.name, "", p, q, k, batch, window)
        if addend is not None:
            added = self.values[addend]
            if added.elements == (q if window is None else q * batch):
                product = replace(product, fused=("bias",), bias=addend)
            elif added.kind == "activation" and added.elements == prod(shape):
                product = replace(product, fused=("add",), residual=addend)
        product = replace(product, output=self.result(output, shape, self.trains(product.inputs)))
        self.nodes.append(product)
        return product.output

    @property
    def last_product(self) -> Product | None:
        """The node added last, if it is a product."""
        last = self.nodes[-1] if self.nodes else None
        return last if isinstance(last, Product) else None

    def fuse(self, kind: str, residual: str | None = None) -> None:
        """Let the product added last apply ``kind`` to its result."""
        product = self.last_product
        if product is None:
            raise AssertionError("no product to fuse with")
        product = replace(product, fused=(*product.fused, kind),
                          residual=residual or product.residual)
        self.nodes[-1] = product
        self.values[product.output] = replace(self.values[product.output],
                                              trains=self.trains(product.inputs))

    def host(
        self, name: str, operator: str, reads: Mapping[str, int], made: Sequence[str],
        written_bytes: int, fallback: bool = False,
    ) -> None:
        """Add an operator that ``reads`` so many elements of values."""
        read_bytes = sum(self.values[value].bytes * count for value, count in reads.items())
        self.nodes.append(HostOp(name, operator, tuple(reads), tuple(made), read_bytes,
                                 written_bytes, fallback))

    def floating_host(
        self, name: str, operator: str, output: str, inputs: Iterable[str], shape: tuple[int, ...]
    ) -> str:
        """Add an operator that reads all of ``inputs``; its floating output, of ``shape``."""
        reads = {value: self.values[value].elements for value in inputs}
        made = self.result(output, shape, self.trains(reads))
        self.host(name, operator, reads, (made,), prod(shape) * HALF)
        return made

    def _add(self, value: Value) -> str:
        name = self.names.value(value.name)
        self.values[name] = replace(value, name=name)
        return name
