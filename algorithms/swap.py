"""The public entry points: make a model train N:M sparse in place, and undo it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import nn

from algorithms.layers import NmConv2d, NmLayer, NmLinear
from algorithms.masks import apply_mask
from algorithms.methods import Method, get_method
from algorithms.plan import LayerPlan, plan_layer
from algorithms.report import LayerReport, SparsityReport
from rtl.errors import ParameterError, closest
from rtl.pattern import DENSE, NmPattern

__all__ = ["Rules", "decay_pruned", "plan_model", "sparse_layers", "sparsify", "unsparsify"]

Rules = Mapping[str | type[nn.Module], str | NmPattern]
"""Layer selector (glob on the dotted name, or a class) to pattern; the last match wins."""

_SWAPS: dict[type[nn.Module], type[NmLayer]] = {nn.Linear: NmLinear, nn.Conv2d: NmConv2d}
_ORIGINALS: dict[type[nn.Module], type[nn.Module]] = {new: old for old, new in _SWAPS.items()}


def sparsify(
    model: nn.Module,
    method: str = "bdwp",
    pattern: str | NmPattern = "2:8",
    rules: Rules | None = None,
) -> SparsityReport:
    """Make every ``nn.Linear`` and ``nn.Conv2d`` of ``model`` train with ``method``, in place.

    All of them then compute with FP16 operands and FP32 sums on FP32 master weights, also those
    that stay dense. Dense by default are the first convolution and the last linear layer in module
    order (without a convolution, the first linear layer as well). ``rules`` are applied after that
    default and override it. Calling it again on a sparse model replaces the earlier choice.

    Parameters
    ----------
    model: any module; parameters, hooks and state_dict keys stay as they are.
    method: a name in :data:`algorithms.METHODS`.
    pattern: ``"N:M"`` or ``"dense"``.
    rules: e.g. ``{"layers.0.*": "2:4", nn.Linear: "dense"}``, in order, last match wins.

    Returns
    -------
    A printable report: for each layer and pass the pattern, or why it is dense.

    Raises
    ------
    ParameterError: unknown method, illegal pattern, a rule that selects nothing, or a model with
        nothing to sparsify. The model is then unchanged.
    """
    if not isinstance(model, nn.Module):
        raise ParameterError("model", type(model).__name__, "must be a torch.nn.Module")
    report = plan_model(model, method, pattern, rules)
    for layer in report.layers:
        if layer.plan is not None:
            module = model.get_submodule(layer.name)
            if not isinstance(module, NmLayer):
                _become(module, _SWAPS[type(module)])
            cast(NmLayer, module).adopt(layer.plan)
    return report


def plan_model(
    model: nn.Module,
    method: str = "bdwp",
    pattern: str | NmPattern = "2:8",
    rules: Rules | None = None,
) -> SparsityReport:
    """What :func:`sparsify` would do with the same arguments; the model is not touched."""
    chosen = get_method(method)
    default = _as_pattern(pattern, "pattern")
    layers = {name: module for name, module in model.named_modules()
              if isinstance(module, nn.Linear | nn.Conv2d)}
    if not layers:
        rule = "has no nn.Linear or nn.Conv2d to sparsify"
        raise ParameterError("model", type(model).__name__, rule)
    choices = dict.fromkeys(layers, (default, ""))
    choices.update((name, (DENSE, why)) for name, why in _ends(layers).items())
    for name, override in _overrides(layers, rules or {}):
        choices[name] = (override, f"rule: {override}" if override.is_dense else "")

    reports: list[LayerReport] = []
    for name, module in layers.items():
        reason = _obstacle(module)
        plan = None if reason else _plan(module, chosen, *choices[name])
        kind = _ORIGINALS.get(type(module), type(module)).__name__
        reports.append(LayerReport(name, kind, tuple(module.weight.shape), plan, reason))
    return SparsityReport(chosen, tuple(reports))


def unsparsify(model: nn.Module, prune: bool = False) -> None:
    """Turn every layer of :func:`sparsify` back into the plain torch layer it was.

    With ``prune`` the weights that FF did not use are set to zero first, so that the plain model
    computes what the sparse one did, up to FP16 rounding.
    """
    for _, module in list(sparse_layers(model)):
        if prune:
            with torch.no_grad():
                module.weight.copy_(apply_mask(module.weight, module.forward_mask()))
        _become(module, _ORIGINALS[type(module)])
        del module.nm_plan, module._nm_operands


def decay_pruned(model: nn.Module) -> None:
    """Add SR-STE's decay, ``decay * (1 - mask) * W``, to the gradients (arXiv:2102.04010).

    Call it once before each optimiser step, on gradients that are no longer scaled. It acts only
    where the method has a decay and FF prunes.
    """
    seen: set[int] = set()
    for _, module in sparse_layers(model):
        plan, weight = module.nm_plan, module.weight
        active = plan.method.decay and not plan.forward.pattern.is_dense
        if active and weight.grad is not None and id(weight) not in seen:
            seen.add(id(weight))
            pruned = apply_mask(weight.detach(), ~module.forward_mask())
            weight.grad.add_(pruned, alpha=plan.method.decay)


def sparse_layers(model: nn.Module) -> Iterator[tuple[str, NmLayer]]:
    """Dotted name and module of every layer that :func:`sparsify` swapped."""
    for name, module in model.named_modules():
        if isinstance(module, NmLayer):
            yield name, module


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    module.__class__ = kind


def _as_pattern(pattern: str | NmPattern, parameter: str) -> NmPattern:
    if isinstance(pattern, NmPattern):
        return pattern
    return NmPattern.parse(str(pattern), parameter)


def _ends(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Layers that stay dense by default, with the reason."""
    convs = [name for name, module in layers.items() if isinstance(module, nn.Conv2d)]
    linears = [name for name, module in layers.items() if isinstance(module, nn.Linear)]
    ends = dict.fromkeys(linears[-1:], "last linear layer")
    if convs:
        ends[convs[0]] = "first convolution"
    else:
        ends[linears[0]] = "first linear layer"
    return ends


def _overrides(
    layers: Mapping[str, nn.Module], rules: Rules
) -> Iterator[tuple[str, NmPattern]]:
    for selector, value in rules.items():
        label = selector if isinstance(selector, str) else selector.__name__
        pattern = _as_pattern(value, f"rules[{label!r}]")
        if isinstance(selector, str):
            matches = [name for name in layers if fnmatchcase(name, selector)]
        else:
            matches = [name for name, module in layers.items() if isinstance(module, selector)]
        if not matches:
            rule = "must select a layer, by glob on its dotted name or by class"
            raise ParameterError("rules", label, rule, closest(label, layers) or next(iter(layers)))
        yield from ((name, pattern) for name in matches)


def _obstacle(module: nn.Module) -> str:
    """Why a layer cannot be swapped; empty when it can."""
    if type(module) not in _SWAPS and type(module) not in _ORIGINALS:
        return "a subclass may compute something else"
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance"
    return ""


def _plan(
    module: nn.Linear | nn.Conv2d, method: Method, pattern: NmPattern, reason: str
) -> LayerPlan:
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    outputs, inputs = module.weight.shape[0] // groups, module.weight.shape[1]
    return plan_layer(method, pattern, inputs, outputs, reason)
