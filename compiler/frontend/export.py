"""From a PyTorch model to the compiler's graph of matrix products and work of the host.

The model is exported (:mod:`torch.export`), which runs it on tensors without data, and the exported
graph is walked once. Views vanish: a value is the tensor that they show.

Traffic of a host operator counts each value that it reads once, at most as many elements as the
operator's views of it show (a gather: as it picks), and each result. An element takes 2 bytes if it
is floating, since device memory holds activations as FP16; of a parameter it has the parameter's
own size, at most 4, since the host reads the FP32 master; integers have their own size. Integers
without axes, such as a counter of batches, are not counted.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.utils import _pytree as pytree

from algorithms import NmLayer, sparse_layers
from compiler.frontend.forward_builder import ForwardBuilder
from compiler.frontend.graph_walk import Cell, Walker
from compiler.frontend.names import Names
from compiler.frontend.operators import UnsupportedOperators
from compiler.ir import Forward
from rtl.errors import ParameterError

__all__ = ["capture"]


def capture(
    model: nn.Module, *examples: object, host_fallback: bool = False, name: str | None = None
) -> Forward:
    """The forward pass of ``model`` on inputs of the shapes of ``examples``.

    Parameters
    ----------
    model: on any device, ``meta`` included; traced in the mode it is in (``train`` or ``eval``) and
        left as it was. Layers that :func:`algorithms.sparsify` swapped are traced as the dense
        layers they were.
    examples: its positional arguments. Values of tensors do not matter; for a model on ``meta``
        they may be on any device.
    host_fallback: run operators of unknown cost on the host instead of refusing them.
    name: of the model; its class by default.

    Raises
    ------
    UnsupportedOperators: operators of unknown cost, all of them in one message.
    ParameterError: a model that PyTorch cannot export, such as one that branches on data.
    """
    label = name or type(model).__name__
    program = _export(model, examples, label)
    builder = ForwardBuilder(Names(model))
    walker = Walker(builder)
    given = list(_inputs(program, model, builder))
    # Names now: an operator in place may change what a cell holds.
    inputs = tuple(cell.value for cell, spec in given
                   if spec.kind is InputKind.USER_INPUT and cell is not None)
    ends = walker.run(program.graph, [cell for cell, _ in given])
    if walker.unknown and not host_fallback:
        raise UnsupportedOperators(label, walker.unknown)
    outputs = dict.fromkeys(end.value for end in ends if isinstance(end, Cell))
    parameters = {path: parameter.numel() for path, parameter in model.named_parameters()
                  if parameter.requires_grad}
    return Forward(label, builder.values, tuple(builder.nodes), inputs, tuple(outputs), parameters,
                   tuple(walker.unknown))


def _export(model: nn.Module, examples: tuple[object, ...], label: str) -> ExportedProgram:
    if any(parameter.is_meta for parameter in model.parameters()):
        examples = pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), examples)
    try:
        with _as_dense(model), _silence():
            return torch.export.export(model, examples, strict=False)
    except Exception as failure:  # whatever the model or PyTorch raises while it is traced
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
        raise ParameterError("model", label, f"torch.export cannot trace it: {reason}") from failure


@contextmanager
def _as_dense(model: nn.Module) -> Iterator[None]:
    """Sparse layers are the plain ones inside: patterns are assigned to GEMMs, not traced."""
    swapped: list[tuple[nn.Module, type[nn.Module]]] = [
        (layer, type(layer)) for _, layer in sparse_layers(model)]
    try:
        for layer, kind in swapped:
            layer.__class__ = next(base for base in kind.__mro__ if issubclass(base, nn.Module)
                                   and not issubclass(base, NmLayer))
        yield
    finally:
        for layer, kind in swapped:
            layer.__class__ = kind


@contextmanager
def _silence() -> Iterator[None]:
    """PyTorch reports on tracing at length; what matters is in the exception."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _inputs(
    program: ExportedProgram, model: nn.Module, builder: ForwardBuilder
) -> Iterator[tuple[Cell | None, InputSpec]]:
    """The tensors that the graph is given; a tied parameter is one."""
    trains = {path for path, parameter in model.named_parameters() if parameter.requires_grad}
    known: dict[str, str] = {}
    placeholders = (node for node in program.graph.nodes if node.op == "placeholder")
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        tensor = node.meta.get("val")
        cell: Cell | None = None
        if not isinstance(tensor, Tensor):
            pass  # a plain number, which the graph has inside
        elif spec.kind is InputKind.PARAMETER and spec.target is not None:
            path = builder.names.parameter[spec.target]
            if path not in known:
                known[path] = builder.value(path, tensor, "parameter", path in trains)
            cell = Cell(known[path])
        elif spec.kind is InputKind.USER_INPUT:
            cell = Cell(builder.value(node.name, tensor, trains=tensor.requires_grad))
        else:
            cell = Cell(builder.value(spec.target or node.name, tensor, "constant"))
        yield cell, spec
