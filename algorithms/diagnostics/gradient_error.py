"""How far a sparse method's gradients are from those of dense training, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.diagnostics.table import aligned
from algorithms.handle import SparseHandle
from algorithms.layers import NmLayer, sparse_layers
from rtl.errors import ParameterError
from rtl.pattern import DENSE

__all__ = ["Closeness", "GradientErrors", "LayerGradients", "gradient_errors"]


@dataclass(frozen=True)
class Closeness:
    """A sparse gradient g beside the dense one d.

    error: ``|g - d| / |d|``, Euclidean norms; ``inf`` or NaN where d is zero.
    cosine: ``<g, d> / (|g| |d|)``; NaN where one of them is zero.
    """

    error: float
    cosine: float


@dataclass(frozen=True)
class LayerGradients:
    """One layer; ``None`` where there is no such gradient: frozen weights, data as the input."""

    layer: str
    dx: Closeness | None
    dw: Closeness | None


@dataclass(frozen=True)
class GradientErrors:
    """Every layer of a model on one batch; ``str()`` is a table.

    loss, dense_loss: of the two runs.
    """

    loss: float
    dense_loss: float
    rows: tuple[LayerGradients, ...]

    def __str__(self) -> str:
        header = ("layer", "dX error", "dX cosine", "dW error", "dW cosine")
        cells = [(row.layer or "(model)", *_cells(row.dx), *_cells(row.dw)) for row in self.rows]
        return f"{aligned([header, *cells])}\nloss {self.loss:g}, dense {self.dense_loss:g}"


_Run = tuple[float, dict[str, Tensor], dict[str, Tensor]]


def gradient_errors(
    model: SparseHandle | nn.Module, closure: Callable[[nn.Module], Tensor]
) -> GradientErrors:
    """Compare dX and dW of every swapped layer with those of dense training.

    ``closure(model)`` returns the loss of one batch, a scalar; it is called twice, with the masks
    and with all passes dense, on the same weights and, as far as PyTorch's generators go, the same
    random numbers. Its second dX therefore answers to another dY: the errors are those of the whole
    network, not of a layer by itself. A layer called more than once has its dX one after another.

    Gradients, buffers (running statistics among them), generators and masks are afterwards as they
    were. Both runs' dX and dW are held at once. Modules must be called as such: a model under
    ``torch.compile`` is to be given uncompiled.

    Raises :class:`ParameterError` for a model without sparse layers, or a loss that is no scalar.
    """
    network = model.model if isinstance(model, SparseHandle) else model
    layers = dict(sparse_layers(network))
    if not layers:
        raise ParameterError("model", type(network).__name__,
                             "has no sparse layers; call sparsify(model) first")
    with _unchanged(network):
        loss, dx, dw = _run(network, layers, closure)
    with _unchanged(network), ExitStack() as stack:
        for layer in layers.values():
            plan = layer.nm_plan.with_patterns(lambda pattern: DENSE, sampled=False)
            stack.enter_context(layer.running(plan))
        dense_loss, dense_dx, dense_dw = _run(network, layers, closure)
    return GradientErrors(loss, dense_loss, tuple(
        LayerGradients(name, _closeness(dx, dense_dx, name), _closeness(dw, dense_dw, name))
        for name in layers))


def _run(
    model: nn.Module, layers: dict[str, NmLayer], closure: Callable[[nn.Module], Tensor]
) -> _Run:
    """Loss, dX and dW by layer."""
    pieces: defaultdict[str, list[Tensor]] = defaultdict(list)
    with ExitStack() as stack, torch.enable_grad():
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(_watch(pieces[name]))
            stack.callback(hook.remove)
        loss = closure(model)
        if loss.numel() != 1:
            raise ParameterError("closure(model)", tuple(loss.shape), "must be a scalar loss", ())
        loss.backward()  # type: ignore[no-untyped-call]
    dx = {name: torch.cat(found) for name, found in pieces.items() if found}
    dw = {name: layer.weight.grad for name, layer in layers.items()
          if layer.weight.grad is not None}
    return loss.detach().item(), dx, dw


def _watch(found: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A pre-hook that collects what the layer alone sends back to its input."""
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not args or not args[0].requires_grad or not torch.is_grad_enabled():
            return args
        own = args[0].view_as(args[0])  # other readers send their gradients past it
        own.register_hook(lambda grad: found.append(grad.detach().flatten()))
        return own, *args[1:]

    return hook


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Without gradients inside; gradients, buffers and generators as before afterwards."""
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    buffers = [(module, name, buffer, buffer.clone()) for module in model.modules()
               for name, buffer in module._buffers.items() if buffer is not None]
    devices = {tensor.device for tensor in parameters if tensor.is_cuda}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            for parameter in parameters:
                parameter.grad = None
            yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                buffer.copy_(value)


def _closeness(
    sparse: dict[str, Tensor], dense: dict[str, Tensor], layer: str
) -> Closeness | None:
    if layer not in sparse or layer not in dense:
        return None
    g, d = sparse[layer].double().flatten(), dense[layer].double().flatten()
    size, other = d.norm(), g.norm()
    return Closeness(((g - d).norm() / size).item(), (g.dot(d) / (other * size)).item())


def _cells(closeness: Closeness | None) -> tuple[str, str]:
    return ("-", "-") if closeness is None else (f"{closeness.error:.3g}",
                                                 f"{closeness.cosine:.4f}")
