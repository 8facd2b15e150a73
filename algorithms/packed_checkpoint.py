"""A sparse model's weights in packed form, apart from any file: made from a model, put into one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from algorithms.layers import NmLayer, sparse_layers
from algorithms.packed_form import OperandForm
from algorithms.packed_operand import PackedOperand
from rtl.errors import ParameterError, closest

__all__ = ["PackedCheckpoint", "PackedLayer", "pack_model"]


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """The weight of one sparse layer, once for each pass that reads it.

    Parameters
    ----------
    name: dotted, as in ``named_modules``.
    kind: name of the plain torch class, e.g. ``"Conv2d"``.
    forward: operand of FF, Y = X W.
    backward: operand of BP, dX = dY W.
    """

    name: str
    kind: str
    forward: PackedOperand
    backward: PackedOperand

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, (C_out, C_in / groups, *kernel)."""
        return self.forward.form.shape

    @property
    def groups(self) -> int:
        """Convolution groups."""
        return self.forward.form.groups

    @property
    def key(self) -> str:
        """Name of the weight in a state_dict."""
        return f"{self.name}.weight" if self.name else "weight"

    def check(self, module: nn.Module) -> None:
        """Raise :class:`ParameterError` unless ``module`` is such a layer, sparse or plain."""
        if self.kind not in {kind.__name__ for kind in type(module).__mro__}:
            raise ParameterError(self.name or "model", type(module).__name__,
                                 "must be of the class that the file holds", self.kind)
        groups = getattr(module, "groups", 1)
        if groups != self.groups:
            raise ParameterError(f"{self.name}.groups", groups,
                                 "must be as many as the file holds", self.groups)


@dataclass(frozen=True, eq=False)
class PackedCheckpoint:
    """Every weight of a sparse model as its passes read it, and the rest of the state_dict.

    ``layers``: name to layer. ``tensors``: everything else under its own name, on the CPU. Equal
    operands and tied tensors are one object.
    """

    layers: Mapping[str, PackedLayer]
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    def load_into(self, model: nn.Module) -> None:
        """Give ``model`` the FF operands as weights, and all other parameters and buffers.

        A plain model of the same architecture then computes what the sparse one did, but for the
        rounding of layer inputs to FP16, which plain layers do not do. A layer whose weight is
        tied to a tensor with other values (an embedding stays as it was, while the layer that
        shares it had its weight rounded or pruned) gets a parameter of its own.

        Raises
        ------
        ParameterError: a layer or tensor that only one side has, another class, shape or number
            of convolution groups, or a weight type that cannot hold the FP16 values. The model is
            then unchanged.
        """
        _require_module(model)
        modules = dict(model.named_modules(remove_duplicate=False))
        _match("layer", self.layers, modules)
        for name, layer in self.layers.items():
            layer.check(modules[name])
        weights = {layer.key: layer.forward.dense() for layer in self.layers.values()}
        state = {**self.tensors, **weights}  # layers last: they are the ones that can be untied
        held: dict[str, Tensor] = model.state_dict(keep_vars=True)
        _match("tensor", state, held)
        for name in held.keys() - state.keys():
            rule = "the model has it and the file does not"
            raise ParameterError("tensor", name, rule, closest(name, state))
        for name, tensor in state.items():
            if tensor.shape != held[name].shape:
                raise ParameterError(f"{name}.shape", tuple(held[name].shape),
                                     "must be the file's", tuple(tensor.shape))
        for name, weight in weights.items():
            if not _same(weight, weight.to(held[name].dtype).to(weight.dtype)):
                rule = "must hold the file's FP16 weights exactly"
                raise ParameterError(f"{name}.dtype", str(held[name].dtype), rule, torch.float32)
        apart = list(self._apart(modules, state, held))
        for name in apart:
            module = modules[name.rpartition(".")[0]]
            old = held[name]
            module.weight = nn.Parameter(old.detach().clone(), old.requires_grad)
        model.load_state_dict(state)

    def _apart(
        self, modules: Mapping[str, nn.Module], state: Mapping[str, Tensor],
        held: Mapping[str, Tensor],
    ) -> Iterable[str]:
        """Weights that are tied in the model to a tensor with other values in the file."""
        first: dict[int, str] = {}
        for name, tensor in state.items():
            other = first.setdefault(id(held[name]), name)
            if _same(state[other], tensor):
                continue
            owners = [modules[key.rpartition(".")[0]] for key in (other, name)]
            if name in self.tensors or owners[0] is owners[1]:
                rule = f"is tied to {other} in the model, and has other values in the file"
                raise ParameterError("tensor", name, rule)
            yield name


def pack_model(model: nn.Module) -> PackedCheckpoint:
    """Pack what :func:`algorithms.sparsify` made of ``model``; later training does not change it.

    Raises
    ------
    ParameterError: no sparse layer, a weight that is computed from other parameters, a state_dict
        entry that is no tensor, or an N:M pattern with M above 256.
    """
    _require_module(model)
    sparse = {id(layer): layer for _, layer in sparse_layers(model)}
    if not sparse:
        rule = "has no sparse layer to pack; call sparsify(model) first"
        raise ParameterError("model", type(model).__name__, rule)
    held: dict[str, Tensor] = model.state_dict(keep_vars=True)
    pools: dict[int, list[PackedOperand]] = {}
    layers: dict[str, PackedLayer] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in sparse:
            weight = sparse[id(module)].weight
            pool = pools.setdefault(id(weight), [])
            layers[name] = layer = _pack_layer(name, sparse[id(module)], pool)
            if held.get(layer.key) is not weight:
                rule = "must be a parameter of the layer itself, not computed from others"
                raise ParameterError(layer.key, type(weight).__name__, rule)
    weights = {layer.key for layer in layers.values()}
    return PackedCheckpoint(layers, _copies(
        {name: tensor for name, tensor in held.items() if name not in weights}))


def _pack_layer(name: str, layer: NmLayer, pool: list[PackedOperand]) -> PackedLayer:
    """``pool``: operands that were made from the same weight, each of which is held once."""
    patterns, operands = layer.pass_patterns(), []
    for stage, weight in (("FF", layer.forward_weight()), ("BP", layer.backward_weight())):
        form = OperandForm(tuple(weight.shape), layer.conv_groups, patterns[stage], stage == "BP")
        operand = PackedOperand(form, form.pack(weight))
        if not _same(operand.dense(), weight.cpu()):
            rule = "the layer's operand keeps more than N of M, and packing would prune it"
            raise ParameterError(f"{name}.{stage}", str(form.pattern), rule)
        for other in pool:
            if _identical(operand.arrays, other.arrays):
                operand = PackedOperand(form, other.arrays)
                break
        else:
            pool.append(operand)
        operands.append(operand)
    kind = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn."))
    return PackedLayer(name, kind.__name__, *operands)


def _copies(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU, one for all names of one tensor."""
    copies: dict[int, Tensor] = {}
    for name, tensor in held.items():
        if not isinstance(tensor, Tensor):
            raise ParameterError(name, type(tensor).__name__, "must be a tensor to be saved")
        if id(tensor) not in copies:
            copies[id(tensor)] = torch.empty(
                tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    return {name: copies[id(tensor)] for name, tensor in held.items()}


def _require_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ParameterError("model", type(model).__name__, "must be a torch.nn.Module")


def _match(what: str, wanted: Mapping[str, object], had: Mapping[str, object]) -> None:
    for name in wanted:
        if name not in had:
            raise ParameterError(what, name, "the file has it and the model does not",
                                 closest(name, had))


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal element by element, NaN to NaN."""
    return a is b or bool(((a == b) | (a.isnan() & b.isnan())).all())


def _identical(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Equal bit for bit."""
    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape and a[name].dtype == b[name].dtype
        and np.array_equal(a[name].numpy().view(np.uint8), b[name].numpy().view(np.uint8))
        for name in a)
