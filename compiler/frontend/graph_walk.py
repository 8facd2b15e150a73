"""One walk over an exported graph: each call becomes a product, work of the host, or a view.

A tensor in memory is a :class:`Cell`, which its views share. An operator in place puts another
value into the cell, so that all views read it from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from compiler.frontend.forward_builder import ForwardBuilder, element_bytes
from compiler.frontend.operators import (
    keeps_order,
    mutates,
    operator_name,
    reads_rows,
    role,
    written,
)
from compiler.frontend.products import (
    Matrices,
    arguments,
    is_sized_by_data,
    matrices,
    shape_of,
    sizes,
)

__all__ = ["Cell", "Entry", "Walker"]


@dataclass(eq=False)
class Cell:
    """A tensor in memory: the name of the value that it holds at present."""

    value: str


Entry = Cell | tuple["Entry", ...] | None
"""What a call returns: a tensor, several, or none."""


@dataclass
class Walker:
    """Adds the graphs that it walks to ``builder``.

    ``unknown`` gathers operators of unknown cost: how often each was met, in which module first.
    """

    builder: ForwardBuilder
    unknown: dict[str, tuple[int, str]] = field(default_factory=dict)
    _entries: dict[fx.Node, Entry] = field(default_factory=dict)
    _traced: dict[str, fx.GraphModule] = field(default_factory=dict)
    _origin: fx.Node | None = None
    """The composite operator whose parts are being walked."""

    def run(self, graph: fx.Graph, given: Iterable[Entry]) -> tuple[Entry, ...]:
        """Walk a graph whose placeholders are ``given``; what it returns."""
        outer, self._entries = self._entries, {}
        ends: tuple[Entry, ...] = ()
        inputs = iter(given)
        for node in graph.nodes:
            if node.op == "placeholder":
                self._entries[node] = next(inputs)
            elif node.op == "output":
                made = node.args[0] if isinstance(node.args[0], tuple | list) else node.args
                ends = tuple(self._entry(end) for end in made)
            elif node.op == "get_attr":
                held = _attribute(node)
                self._entries[node] = Cell(self.builder.value(
                    node.name, held, "constant")) if isinstance(held, Tensor) else None
            elif node not in self._entries:  # else it was fused
                self._call(node)
        self._entries = outer
        return ends

    def _call(self, node: fx.Node) -> None:
        found = role(node)
        source = self._entry(node.args[0]) if node.args else None
        made: Entry = None
        if found in ("view", "nothing"):
            made = source if found == "view" else None
        elif found == "item":
            made = source[cast(int, node.args[1])] if isinstance(source, tuple) else source
        elif found == "copy":
            made = Cell(source.value) if isinstance(source, Cell) else None
        elif found == "detach":
            made = self._detached(source)
        elif found == "region":
            made = self._region(node)
        elif found == "composite":
            (made,) = self._composite(node)
        elif found == "attention":
            made = self._attention(node)
        elif found == "product" and (sizes_ := matrices(node)) is not None:
            made = self._product(node, sizes_)
        elif found in ("product", "unknown") or is_sized_by_data(node):
            made = self._unknown(node)
        else:
            made = self._host(node, {} if found == "factory" else self._reads(node))
        self._entries[node] = made
        if isinstance(made, Cell) and found in ("product", "composite", "attention"):
            self._fuse(node, made)

    def _entry(self, node: Any) -> Entry:
        return self._entries[node] if isinstance(node, fx.Node) else None

    def _cell(self, node: Any) -> Cell:
        entry = self._entry(node)
        if not isinstance(entry, Cell):
            raise AssertionError(f"{node} is not one tensor")
        return entry

    def _label(self, node: fx.Node) -> str:
        """Name for the value that a call makes."""
        return node.name if self._origin is None else f"{self._origin.name}.{node.name}"

    def _operator(self, node: fx.Node, operator: str) -> str:
        return self.builder.names.operator(self._origin or node, operator)

    # Graphs in the graph.

    def _detached(self, entry: Entry) -> Entry:
        if isinstance(entry, tuple):
            return tuple(map(self._detached, entry))
        return entry and Cell(self.builder.detached(entry.value))

    def _region(self, node: fx.Node) -> Entry:
        """A part under ``no_grad`` or ``autocast``."""
        inside = next(index for index, argument in enumerate(node.args)
                      if isinstance(argument, fx.Node) and argument.op == "get_attr")
        outer = self.builder.grad
        if operator_name(node.target).endswith("set_grad_enabled"):
            self.builder.grad = bool(node.args[0])
        body = _attribute(cast(fx.Node, node.args[inside])).graph
        ends = self.run(body, [self._entry(given) for given in node.args[inside + 1:]])
        if not self.builder.grad:
            ends = tuple(map(self._detached, ends))
        self.builder.grad = outer
        return ends

    def _composite(self, node: fx.Node) -> tuple[Entry, ...]:
        """An operator that PyTorch itself makes of others."""
        leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
        key = repr((node.target, spec, [
            (shape_of(leaf), leaf.meta["val"].dtype) if isinstance(leaf, fx.Node) else leaf
            for leaf in leaves]))
        if key not in self._traced:
            self._traced[key] = _trace(node.target, leaves, spec)
        outer, self._origin = self._origin, self._origin or node
        ends = self.run(self._traced[key].graph, [self._entries[tensor] for tensor in tensors])
        self._origin = outer
        return ends

    # Products.

    def _product(self, node: fx.Node, found: Matrices) -> Cell:
        build, shape = self.builder, shape_of(node)
        left, right = self._cell(found.left).value, self._cell(found.right).value
        addend = None if found.addend is None else self._cell(found.addend).value
        name = self._product_name(node, left, right)
        made = build.product(name, self._label(node), left, right, found, shape, addend)
        product = build.last_product
        if addend is not None and product is not None and not product.fused:
            made = build.floating_host(self._operator(node, "add"), "aten.add", self._label(node),
                                       (made, addend), shape)
        return Cell(made)

    def _product_name(self, node: fx.Node, left: str, right: str) -> str:
        origin = self._origin or node
        operands = (self.builder.values[name] for name in (right, left))
        weight = next((value.of or value.name for value in operands
                       if value.kind == "parameter"), "")
        return self.builder.names.product(origin, weight, operator_name(origin.target))

    def _attention(self, node: fx.Node) -> Cell:
        """Scores of all queries and keys, a softmax, and values weighted by it."""
        build, label, given = self.builder, self._label(node), arguments(node)
        query, key, value = given["query"], given["key"], given["value"]
        *outer, queries, width = shape_of(node)
        keys, depth = shape_of(key)[-2:]
        shape, batch = (*outer, queries, keys), prod(outer)
        scores = build.product(
            self._operator(node, "scores"), f"{label}.scores", self._cell(query).value,
            self._cell(key).value, Matrices(query, key, queries, keys, depth, batch), shape)
        mask = () if given["attn_mask"] is None else (self._cell(given["attn_mask"]).value,)
        weights = build.floating_host(self._operator(node, "softmax"), "aten.softmax",
                                      f"{label}.softmax", (scores, *mask), shape)
        return Cell(build.product(
            self._operator(node, "values"), label, weights, self._cell(value).value,
            Matrices(node, value, queries, width, keys, batch), shape_of(node)))

    def _fuse(self, node: fx.Node, made: Cell) -> None:
        """Let a product take along the addition and the ReLU that alone read it."""
        product = self.builder.last_product
        if product is None or product.output != made.value:
            return
        for kind in ("add", "relu"):
            shown, user = _only_reader(node)
            if user is None or operator_name(user.target) != f"aten.{kind}" or not _can_move(
                    user, node):
                continue
            residual = None
            if kind == "add":
                residual = None if product.residual else self._residual(user, shown)
                if residual is None:
                    continue
            self.builder.fuse(kind, residual)
            if mutates(user) and user.args[0] is not shown:
                made = self._cell(self._walked(user.args[0]))
                made.value = product.output
            self._entries[user], node = made, user

    def _walked(self, node: Any) -> Any:
        """A tensor that was met already and that ``node`` is, or will be, a view of in order."""
        while isinstance(node, fx.Node) and node not in self._entries and keeps_order(node):
            node = node.args[0]
        return node

    def _residual(self, user: fx.Node, node: fx.Node) -> str | None:
        """The other operand of an addition, if it is there already and of the same shape."""
        others = [other for other in user.args if other is not node]
        if len(user.args) != 2 or user.kwargs or len(others) != 1:
            return None
        (other,) = others
        entry = self._entries.get(self._walked(other))
        if not isinstance(other, fx.Node) or not isinstance(entry, Cell):
            return None
        value, shape = self.builder.values[entry.value], shape_of(node)
        alike = shape_of(other) == shape and value.elements == prod(shape)
        floating = other.meta["val"].is_floating_point()
        return value.name if alike and floating and value.kind == "activation" else None

    # The host.

    def _unknown(self, node: fx.Node) -> Entry:
        name = operator_name(node.target)
        module = self.builder.names.module(self._origin or node)
        count, first = self.unknown.get(name, (0, module))
        self.unknown[name] = count + 1, first
        return self._host(node, self._reads(node), fallback=True)

    def _reads(self, node: fx.Node) -> dict[str, int]:
        """Elements that a call reads of each value."""
        read: dict[str, int] = {}
        for operand in node.all_input_nodes:
            shown = operand.meta.get("val")
            for cell in _cells(self._entries[operand]):
                value = self.builder.values[cell.value]
                count = prod(sizes(shown.shape)) if isinstance(shown, Tensor) else value.elements
                if reads_rows(node) and operand is node.args[0]:
                    count = min(count, prod(shape_of(node)))
                read[value.name] = min(value.elements, read.get(value.name, 0) + count)
        return read

    def _host(self, node: fx.Node, reads: dict[str, int], fallback: bool = False) -> Entry:
        build, result, label = self.builder, node.meta.get("val"), self._label(node)
        targets = [self._cell(target) for target in written(node)]
        if isinstance(result, Tensor) and _is_count(result) and all(_is_count(each.meta.get("val"))
                                     for each in node.all_input_nodes):
            return targets[0] if targets else Cell(build.value(label, result, "constant"))
        trains = build.trains(reads)
        for cell in targets:
            cell.value = build.changed(cell.value, label, trains)
        made = [cell.value for cell in targets]
        entry: Entry = targets[0] if targets else None
        if not targets or not isinstance(result, Tensor):
            entry = self._results(result, label, trains)
            made += [cell.value for cell in _cells(entry)]
        operator = operator_name(node.target)
        size = sum(prod(sizes(each.shape)) * element_bytes(each.dtype)
                   for each in pytree.tree_leaves(result) if isinstance(each, Tensor))
        build.host(self._operator(node, operator), operator, reads, made, size, fallback)
        return entry

    def _results(self, result: Any, label: str, trains: bool) -> Entry:
        if isinstance(result, Tensor):
            return Cell(self.builder.value(label, result, trains=trains))
        if isinstance(result, tuple | list):
            return tuple(self._results(each, f"{label}.{index}", trains)
                         for index, each in enumerate(result))
        return None


def _cells(entry: Entry) -> Iterator[Cell]:
    if isinstance(entry, Cell):
        yield entry
    elif entry is not None:
        for each in entry:
            yield from _cells(each)


def _attribute(node: fx.Node) -> Any:
    """What a ``get_attr`` node stands for."""
    held: Any = node.graph.owning_module
    for name in str(node.target).split("."):
        held = getattr(held, name)
    return held


def _trace(target: Any, leaves: list[Any], spec: pytree.TreeSpec) -> fx.GraphModule:
    """The operators that a composite one calls, for tensors of these shapes."""
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, fx.Node)]

    def call(*tensors: Tensor) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return target(*args, **kwargs)

    return make_fx(call)(*(
        torch.empty(shape_of(leaves[place]), dtype=leaves[place].meta["val"].dtype, device="meta")
        for place in places))


def _only_reader(node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The view of a result that its only reader reads, and that reader, if it has only one."""
    while len(node.users) == 1:
        (user,) = node.users
        if not keeps_order(user):
            return node, user
        node = user
    return node, None


def _can_move(user: fx.Node, node: fx.Node) -> bool:
    """Whether ``user`` may run right behind ``node``: nothing in between meets a changed tensor."""
    between = []
    while (node := node.next) is not user:
        if not keeps_order(node):
            between.append(node)
    return not between or not any(map(mutates, (user, *between)))


def _is_count(value: Any) -> bool:
    """A lone integer or boolean."""
    return isinstance(value, Tensor) and not value.dim() and not (
        value.is_floating_point() or value.is_complex())
