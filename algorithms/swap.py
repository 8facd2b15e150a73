"""The public entry points: make a model train N:M sparse in place, and undo it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from algorithms.handle import SparseHandle
from algorithms.layers import NmConv2d, NmLayer, NmLinear, sparse_layers
from algorithms.masks import apply_mask
from algorithms.methods.base import Method
from algorithms.methods.catalogue import get_method
from algorithms.plan import LayerPlan, plan_layer
from algorithms.report import LayerReport, SparsityReport
from algorithms.rounding import check_precision
from algorithms.rules import Rules, as_pattern, select
from algorithms.schedule import Schedule
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern

__all__ = ["plan_model", "sparsify", "unsparsify"]

_SWAPS: dict[type[nn.Module], type[NmLayer]] = {nn.Linear: NmLinear, nn.Conv2d: NmConv2d}
_ADDED = ("nm_plan", "nm_precision", "_nm_number", "_nm_cached", "_nm_masks", "_nm_buffers",
          "_nm_shard", "_nm_watcher")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_ORIGINALS: dict[type[nn.Module], type[nn.Module]] = {new: old for old, new in _SWAPS.items()}


def sparsify(
    model: nn.Module,
    method: str | Method = "bdwp",
    pattern: str | NmPattern = "2:8",
    rules: Rules | None = None,
    *,
    gradient: str | NmPattern = "1:2",
    precision: str = "fp16",
    schedule: Schedule | None = None,
) -> SparseHandle:
    """Make every ``nn.Linear`` and ``nn.Conv2d`` of ``model`` train with ``method``, in place.

    Dense by default are the first convolution and the last linear layer in module order (without a
    convolution, the first linear layer as well), and adapters of PEFT, whose base layers count as
    the model's own. ``rules`` are applied after that default and override it. All swapped layers,
    also those that stay dense, compute in ``precision``.

    Parameters
    ----------
    model: any module; parameters, hooks and state_dict keys stay as they are.
    method: a name in :data:`algorithms.METHODS`, or a method with options from
        :func:`algorithms.get_method`.
    pattern: ``"N:M"`` or ``"dense"``, of what the method prunes in FF and BP.
    rules: e.g. ``{"layers.0.*": "2:4", nn.Linear: "dense", Size(below=4096): "dense"}``, in order,
        last match wins; see :data:`algorithms.rules.Rules`.
    gradient: pattern of dY in WU, for methods that sample it.
    precision: ``"fp16"``, the accelerator's numerics, with float32 results; or ``"native"``, what
        the plain layer would compute in, autocast included.
    schedule: dense warm-up, gradual pruning, dense tail; then call
        :meth:`SparseHandle.attach <algorithms.handle.SparseHandle.attach>`.

    Returns
    -------
    A handle that prints as a table: for each layer and pass the pattern, or why it is dense.

    Raises
    ------
    ParameterError: unknown method or precision, illegal pattern, a rule that selects nothing, a
        model with nothing to sparsify, one that is sparse already, or weights of a dtype without
        magnitudes to rank. The model is then unchanged.
    """
    if not isinstance(model, nn.Module):
        raise ParameterError("model", type(model).__name__, "must be a torch.nn.Module")
    earlier = next(sparse_layers(model), None)
    if earlier is not None:
        rule = f"is sparse already ({earlier[1].nm_plan.method}); call unsparsify(model) first"
        raise ParameterError("model", type(model).__name__, rule)
    kept = check_precision(precision)
    report = plan_model(model, method, pattern, rules, gradient)
    for layer in report.layers:
        if layer.plan is not None:
            module = model.get_submodule(layer.name)
            _become(module, _SWAPS[type(module)])
            cast(NmLayer, module).adopt(layer.plan, kept)
    return SparseHandle(model, report, schedule)


def plan_model(
    model: nn.Module,
    method: str | Method = "bdwp",
    pattern: str | NmPattern = "2:8",
    rules: Rules | None = None,
    gradient: str | NmPattern = "1:2",
) -> SparsityReport:
    """What :func:`sparsify` would do with the same arguments; the model is not touched."""
    chosen = get_method(method)
    default = as_pattern(pattern, "pattern")
    sampled = as_pattern(gradient, "gradient")
    layers = {name: module for name, module in model.named_modules()
              if isinstance(module, nn.Linear | nn.Conv2d)}
    if not layers:
        rule = "has no nn.Linear or nn.Conv2d to sparsify"
        raise ParameterError("model", type(model).__name__, rule)
    for name, module in layers.items():
        if module.weight.dtype not in _DTYPES:
            legal = ", ".join(str(dtype) for dtype in _DTYPES)
            raise ParameterError(f"{name or 'model'}.weight.dtype", str(module.weight.dtype),
                                 f"must be one of {legal}", "torch.float32")
    choices = dict.fromkeys(layers, (default, ""))
    adapters = _adapters(model) & layers.keys()
    own = {name: module for name, module in layers.items() if name not in adapters}
    choices.update((name, (DENSE, why)) for name, why in _ends(own).items())
    choices.update(dict.fromkeys(adapters, (DENSE, "adapter of low rank")))
    for name, override in select(layers, rules or {}):
        choices[name] = (override, f"rule: {override}" if override.is_dense else "")

    reports: list[LayerReport] = []
    for name, module in layers.items():
        reason = _obstacle(module)
        plan = None if reason else _plan(module, chosen, sampled, *choices[name])
        kind = _ORIGINALS.get(type(module), type(module)).__name__
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        shape = tuple(module.weight.shape)
        reports.append(LayerReport(name, kind, shape, plan, reason, groups))
    return SparsityReport(chosen, tuple(reports))


def unsparsify(model: nn.Module, prune: bool = False) -> None:
    """Turn every layer of :func:`sparsify` back into the plain torch layer it was.

    With ``prune`` the weights that FF did not use are set to zero first, so that the plain model
    computes what the sparse one did, up to FP16 rounding.

    Raises :class:`ParameterError`, with the model unchanged, for a layer whose class something
    else has changed since, such as ``fully_shard`` of the layer itself.
    """
    layers = list(sparse_layers(model))
    for name, module in layers:
        if type(module) not in _ORIGINALS:
            raise ParameterError(name or "model", type(module).__name__,
                                 "its class was changed after sparsify; undo that first")
    for _, module in layers:
        if prune:
            with torch.no_grad():
                module.weight.copy_(apply_mask(module.weight, module.forward_mask()))
        _become(module, _ORIGINALS[type(module)])
        for name in _ADDED:
            delattr(module, name)


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    module.__class__ = kind


def _ends(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Layers that stay dense by default, with the reason."""
    convs = [name for name, module in layers.items() if isinstance(module, nn.Conv2d)]
    linears = [name for name, module in layers.items() if isinstance(module, nn.Linear)]
    ends = dict.fromkeys(linears[-1:], "last linear layer")
    if convs:
        ends[convs[0]] = "first convolution"
    elif linears:
        ends[linears[0]] = "first linear layer"
    return ends


def _adapters(model: nn.Module) -> set[str]:
    """Modules that a tuner of PEFT put beside a base layer; such tuners name them themselves."""
    found: set[str] = set()
    for owner, module in model.named_modules(remove_duplicate=False):
        for part in getattr(module, "adapter_layer_names", ()):
            inside = getattr(module, part, None)
            if isinstance(inside, nn.Module):
                prefix = f"{owner}.{part}".removeprefix(".")
                found.update(name for name, _ in inside.named_modules(prefix=prefix))
    return found


def _obstacle(module: nn.Module) -> str:
    """Why a layer cannot be swapped; empty when it can."""
    if type(module) not in _SWAPS and type(module) not in _ORIGINALS:
        return "a subclass may compute something else"
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance"
    return ""


def _plan(
    module: nn.Linear | nn.Conv2d, method: Method, gradient: NmPattern, pattern: NmPattern,
    reason: str,
) -> LayerPlan:
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    outputs, inputs = module.weight.shape[0] // groups, module.weight.shape[1]
    return plan_layer(method, pattern, inputs, outputs, reason, gradient)
