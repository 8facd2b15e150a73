"""The three GEMMs of a training step of one layer: what is computed, without autograd.

FF: Y = X Wf. BP: dX = dY Wb^T. WU: dW = X^T dY. Which operands are pruned, the layer's method says.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms.gpu import semi_structured
from algorithms.gradients import Gradient
from algorithms.plan import LayerPlan
from algorithms.rounding import Precision, compute_dtype, rounded, rounding

__all__ = [
    "ConvShape",
    "Gradients",
    "Layer",
    "Operands",
    "conv2d_forward",
    "conv2d_gradients",
    "convolution_backward",
    "linear_forward",
    "linear_gradients",
]


class Operands(NamedTuple):
    """The weight operands of one version of a layer's weights."""

    forward: Tensor
    backward: Tensor


class Layer(Protocol):
    """What the operators ask of the layer that they run for."""

    nm_plan: LayerPlan
    nm_precision: Precision

    @property
    def conv_groups(self) -> int:
        """Convolution groups."""

    def note_update(self, gradient: Tensor) -> None:
        """Told of dY as WU reads it, in each backward pass."""

    def operands(self, weight: Tensor, rounding: torch.dtype, dtype: torch.dtype) -> Operands:
        """Weight operands for ``weight``, which is the layer's own."""


class Gradients(NamedTuple):
    """Results of a backward pass; ``None`` where not asked for."""

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class ConvShape(NamedTuple):
    """The geometry of a 2-D convolution; padding is symmetric and with zeros."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def _full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Autocast would lower the products inside the operators, so it is off there."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _weights(layer: Layer, weight: Tensor, dtype: torch.dtype) -> Operands:
    """Weight operands for an input of ``dtype``."""
    precision = layer.nm_precision
    return layer.operands(weight, rounding(dtype, precision), compute_dtype(dtype, precision))


def _cast(bias: Tensor | None, x: Tensor, precision: Precision) -> Tensor | None:
    return None if bias is None else bias.to(compute_dtype(x.dtype, precision))


def _gradients(layer: Layer, grad: Tensor, x_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """dY as the bias, BP and WU read it."""
    plan, precision = layer.nm_plan, layer.nm_precision
    dy = rounded(grad if precision == "fp16" else grad.to(x_dtype), precision)
    whole = Gradient(dy, layer.conv_groups, rounding(dy.dtype, precision))
    for_weight = plan.method.update_gradient(whole, plan.update.pattern)
    layer.note_update(for_weight)
    return dy, plan.method.backward_gradient(whole, plan.backward.pattern), for_weight


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer) -> Tensor:
    """FF of x (..., C_in): (..., C_out)."""
    precision = layer.nm_precision
    with _full_precision(x):
        return semi_structured.linear(
            rounded(x, precision), _weights(layer, weight, x.dtype).forward,
            layer.nm_plan.forward.pattern, _cast(bias, x, precision))


def linear_gradients(
    grad: Tensor, x: Tensor | None, weight: Tensor, layer: Layer, dtype: torch.dtype,
    needs_x: bool, needs_bias: bool,
) -> Gradients:
    """BP and WU of dY (..., C_out); no WU without ``x``, whose dtype ``dtype`` is."""
    dx = dw = None
    with _full_precision(grad):
        dy, for_x, for_weight = _gradients(layer, grad.reshape(-1, grad.shape[-1]), dtype)
        if needs_x:
            backward = _weights(layer, weight, dtype).backward
            pattern = layer.nm_plan.weight_patterns()["BP"]
            dx = semi_structured.input_gradient(for_x, backward, pattern)
            dx = dx.view(*grad.shape[:-1], weight.shape[1]).to(dtype)
        if x is not None:
            rows = rounded(x, layer.nm_precision).reshape(-1, x.shape[-1])
            dw = (for_weight.T @ rows).to(weight.dtype)
        return Gradients(dx, dw, dy.sum(0) if needs_bias else None)


def conv2d_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer, shape: ConvShape
) -> Tensor:
    """FF of x (B, C_in, H, W): (B, C_out, H_out, W_out)."""
    precision = layer.nm_precision
    with _full_precision(x):
        return F.conv2d(rounded(x, precision), _weights(layer, weight, x.dtype).forward,
                        _cast(bias, x, precision), *shape)


def conv2d_gradients(
    grad: Tensor, x: Tensor | None, weight: Tensor, layer: Layer, dtype: torch.dtype,
    needs_x: bool, needs_bias: bool, size: torch.Size, shape: ConvShape,
) -> Gradients:
    """BP and WU of dY (B, C_out, ...); no WU without ``x``, whose dtype and size are given."""
    with _full_precision(grad):
        dy, for_x, for_weight = _gradients(layer, grad, dtype)
        # Without a weight gradient only the size of x is read; without an input gradient only that
        # of the weights.
        operand = dy.new_empty(1).expand(size) if x is None else rounded(x, layer.nm_precision)
        backward = (_weights(layer, weight, dtype).backward if needs_x
                    else operand.new_empty(1).expand(weight.shape))
        # The weight gradient does not read the weights, so one call serves both passes
        # unless they read different gradients.
        if for_x is for_weight:
            dx, dw = convolution_backward(for_x, operand, backward, shape, needs_x, x is not None)
        else:
            dx, _ = convolution_backward(for_x, operand, backward, shape, needs_x, False)
            _, dw = convolution_backward(for_weight, operand, backward, shape, False,
                                         x is not None)
        return Gradients(None if dx is None else dx.to(dtype),
                         None if dw is None else dw.to(weight.dtype),
                         dy.sum((0, 2, 3)) if needs_bias else None)


def convolution_backward(
    dy: Tensor, x: Tensor, weight: Tensor, shape: ConvShape, needs_x: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dX and dW of a convolution, as far as needed."""
    if not (needs_x or needs_weight):
        return None, None
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, shape.stride, shape.padding, shape.dilation, False, (0, 0),
        shape.groups, (needs_x, needs_weight, False),
    )
    return dx, dw
