"""Capture the GEMMs of a real training step: every FF, BP and WU with its operands.

Hooks on the model's own layers note inputs and output gradients while the step runs. A count of
all floating-point work that PyTorch did in the same step is held against the captured GEMMs, so an
operator that is not captured cannot go unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from algorithms import NmLayer
from compiler.array import lowering
from compiler.array.lowering import Operands
from compiler.ir import Conv
from rtl.pattern import DENSE, NmPattern

__all__ = ["Captured", "Gemm", "Stage", "Unsupported", "capture"]

Stage = Literal["FF", "BP", "WU"]


@dataclass(frozen=True)
class Gemm:
    """One GEMM of a training step with its operands.

    ``a`` float16 (P, K); ``b`` float16 (K, Q), as packing prunes it; ``pattern`` of ``b`` along K;
    ``torch_c`` float32 (P, Q), PyTorch's own result; ``padded_channels`` as
    :class:`compiler.array.lowering.Operands`.
    """

    layer: str
    stage: Stage
    a: npt.NDArray[np.float16]
    b: npt.NDArray[np.float16]
    pattern: NmPattern
    torch_c: npt.NDArray[np.float32]
    padded_channels: int = 0

    @property
    def name(self) -> str:
        """Layer and stage, as reports show them."""
        return f"{self.layer} {self.stage}"


@dataclass(frozen=True)
class Unsupported:
    """Work of a module that the array does not get: ``flops`` of it, and why."""

    module: str
    kind: str
    flops: int
    reason: str

    def __str__(self) -> str:
        return f"{self.module} ({self.kind}): {self.reason}"


@dataclass(frozen=True)
class Captured:
    """The GEMMs of one training step in order of layers, and what is missing from them."""

    gemms: tuple[Gemm, ...]
    unsupported: tuple[Unsupported, ...]


@dataclass
class _Seen:
    """What the hooks note of one layer: one entry a call, gradients in reverse order.

    samples: dY as WU read it, of layers that :func:`algorithms.sparsify` swapped.
    """

    inputs: list[Tensor] = field(default_factory=list)
    needs_grad: list[bool] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)

    def gradient(self, call: int) -> Tensor | None:
        """dY of a call."""
        return self.gradients[-1 - call] if self.gradients else None

    def sample(self, call: int) -> Tensor | None:
        """dY as WU of a call read it."""
        return self.samples[-1 - call] if self.samples else self.gradient(call)


def capture(
    model: nn.Module, step: Callable[[], Any], only: Collection[str] | None = None
) -> Captured:
    """Run ``step`` (a forward and backward pass of ``model``) and return its GEMMs.

    Works on any model; layers swapped by :func:`algorithms.sparsify` also contribute their
    patterns, and dY as WU drew it. Operands are rounded to FP16, as the array reads them. Weights
    are the dense master where SORE selects what the layer did, else as the layer has pruned them.
    With ``only``, the GEMMs of those layers, and nothing is said of the rest.
    """
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and (only is None or name in only)
    }
    seen = {name: _Seen() for name in layers}
    handles = [handle for name in layers for handle in _watch(layers[name], seen[name])]
    try:
        with FlopCounterMode(display=False) as counter:
            step()
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers.values():
            if isinstance(layer, NmLayer):
                layer.watch_update(None)

    gemms: list[Gemm] = []
    unsupported: list[Unsupported] = []
    with torch.no_grad():
        for name, layer in layers.items():
            reason = _obstacle(layer)
            if reason:
                unsupported.append(Unsupported(name, type(layer).__name__, 0, reason))
                continue
            for call in range(len(seen[name].inputs)):
                gemms.extend(_lower(name, layer, seen[name], call))
    if only is None:
        unsupported += _uncaptured(model, layers, counter)
    return Captured(tuple(gemms), tuple(unsupported))


def _watch(layer: nn.Module, seen: _Seen) -> Iterator[Any]:
    def note_input(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.inputs.append(args[0].detach())
        seen.needs_grad.append(args[0].requires_grad)
        if output.requires_grad:
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda grad: seen.gradients.append(grad.detach())
            )

    if isinstance(layer, NmLayer):
        layer.watch_update(lambda sample: seen.samples.append(sample.detach()))
    yield layer.register_forward_hook(note_input)


def _obstacle(layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return f"padding_mode={layer.padding_mode!r}: the array pads with zeros only"
    return ""


def _fp16(value: Tensor) -> Tensor:
    """float32 with FP16 values: what the array reads."""
    return value.to(torch.float16).float()


def _lower(name: str, layer: nn.Module, seen: _Seen, call: int) -> Iterator[Gemm]:
    """The GEMMs of one call of a layer, convolution groups one by one."""
    x = _fp16(seen.inputs[call])
    weight = layer.get_parameter("weight")
    dense = _fp16(weight.detach())
    kept_ff = kept_bp = dense_ff = dense_bp = dense
    patterns: dict[str, NmPattern] = {"FF": DENSE, "BP": DENSE, "WU": DENSE}
    prune_gradient = False
    if isinstance(layer, NmLayer):
        method = layer.nm_plan.method
        kept_ff, kept_bp = layer.forward_weight().float(), layer.backward_weight().float()
        patterns = layer.nm_plan.executed_patterns()
        prune_gradient = method.backward == "grad"
        if not method.selects_in_hardware:
            dense_ff, dense_bp = kept_ff, kept_bp
        if method.backward != "weight":
            # Weights shared by both passes (SR-STE): BP multiplies densely what FF left over.
            dense_bp = kept_bp
    dy, drawn = (None if seen_dy is None else _fp16(seen_dy)
                 for seen_dy in (seen.gradient(call), seen.sample(call)))
    if isinstance(layer, nn.Conv2d):
        conv, groups = lowering.conv_of(layer), layer.groups
        if x.dim() == 3:
            x, dy = x.unsqueeze(0), None if dy is None else dy.unsqueeze(0)
    else:
        conv, groups = Conv((1, 1)), 1
        x = x.reshape(-1, x.shape[-1], 1, 1)
        dy = None if dy is None else dy.reshape(-1, dy.shape[-1], 1, 1)
        dense_ff, kept_ff, kept_bp, dense_bp = (
            w[:, :, None, None] for w in (dense_ff, kept_ff, kept_bp, dense_bp)
        )
    drawn = None if drawn is None or dy is None else drawn.reshape(dy.shape)

    def emit(stage: Stage, group: int, operands: Operands) -> Gemm:
        marks = [f"#{call}"] if call else []
        marks += [f"g{group}"] if groups > 1 else []
        marks += [operands.part] if operands.part else []
        label = name + (f"[{' '.join(marks)}]" if marks else "")
        return Gemm(
            label, stage, operands.a.numpy(), operands.b.numpy(), operands.pattern,
            operands.torch_c.contiguous().numpy(), operands.padded_channels,
        )

    for group in range(groups):
        inputs = x.chunk(groups, 1)[group]
        ff, ff_kept, bp, bp_kept = (
            w.chunk(groups, 0)[group] for w in (dense_ff, kept_ff, dense_bp, kept_bp)
        )
        yield emit("FF", group, lowering.forward(inputs, ff, ff_kept, conv, patterns["FF"]))
        if dy is None or drawn is None:
            continue
        gradient = dy.chunk(groups, 1)[group]
        if seen.needs_grad[call]:
            size = (x.shape[2], x.shape[3])
            for operands in lowering.backward(
                gradient, bp, bp_kept, conv, size, patterns["BP"], prune_gradient=prune_gradient
            ):
                yield emit("BP", group, operands)
        if weight.requires_grad:
            yield emit("WU", group, lowering.weight_update(
                inputs, drawn.chunk(groups, 1)[group], conv, patterns["WU"]))


def _uncaptured(
    model: nn.Module, layers: dict[str, nn.Module], counter: FlopCounterMode
) -> list[Unsupported]:
    """Modules that did matrix work outside any captured layer."""
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    root = type(model).__name__
    missing = []
    for name, module in model.named_modules():
        if name in layers:
            continue
        path = f"{root}.{name}" if name else root
        children = (f"{path}.{child}" for child, _ in module.named_children())
        own = counts.get(path, 0) - sum(counts.get(child, 0) for child in children)
        if own > 0:
            missing.append(
                Unsupported(name or root, type(module).__name__, own,
                            "matrix products outside Conv2d and Linear are not captured")
            )
    return missing
