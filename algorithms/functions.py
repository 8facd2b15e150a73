"""A layer's training step under autograd.

FF and BP read different weights, which autograd alone cannot express. The operands of the present
weights come from the layer, which makes them once a version of the weights, whoever asks: a second
micro-batch, the recomputation of a checkpoint, the backward pass.

Autograd saves the master weight, as for a plain layer, and complains as it does there if the weight
changes before the backward pass. It differentiates once: a second derivative raises an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from algorithms import operators
from algorithms.gemms import (
    ConvShape,
    Layer,
    conv2d_forward,
    conv2d_gradients,
    linear_forward,
    linear_gradients,
)
from algorithms.rounding import held

__all__ = ["nm_conv2d", "nm_linear"]


def _save(
    ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer
) -> Tensor:
    """Save only what the backward pass reads: a frozen layer holds no input. Returns the input."""
    ctx.layer, ctx.dtype, ctx.size = layer, x.dtype, x.shape
    ctx.bias_dtype = None if bias is None else bias.dtype
    operand = held(x, layer.nm_precision)
    ctx.save_for_backward(operand if ctx.needs_input_grad[1] else None, weight)
    return operand


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer
    ) -> Tensor:
        return linear_forward(_save(ctx, x, weight, bias, layer), weight, bias, layer)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, _, needs_bias = ctx.needs_input_grad[:3]
        dx, dw, db = linear_gradients(grad, x, weight, ctx.layer, ctx.dtype, needs_x, needs_bias)
        return dx, dw, None if db is None else db.to(ctx.bias_dtype), None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer, shape: ConvShape
    ) -> Tensor:
        ctx.shape = shape
        return conv2d_forward(_save(ctx, x, weight, bias, layer), weight, bias, layer, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, _, needs_bias = ctx.needs_input_grad[:3]
        dx, dw, db = conv2d_gradients(grad, x, weight, ctx.layer, ctx.dtype, needs_x, needs_bias,
                                      ctx.size, ctx.shape)
        return dx, dw, None if db is None else db.to(ctx.bias_dtype), None, None


def _traced(x: Tensor) -> bool:
    """Whether the call is being compiled or has no data, and needs the opaque operators."""
    return torch.compiler.is_compiling() or isinstance(x, FakeTensor)


def nm_linear(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer, number: int) -> Tensor:
    """x (..., C_in) times the weights (C_out, C_in) of ``layer``: (..., C_out).

    ``weight`` is the master that receives dW, in its own dtype. The result is float32 in precision
    ``fp16`` and has the dtype of ``x`` in ``native``. ``number`` is the layer's in
    :data:`algorithms.operators.LAYERS`.
    """
    if _traced(x):
        return operators.linear(x, weight, bias, number)
    out: Tensor = _Linear.apply(x, weight, bias, layer)  # type: ignore[no-untyped-call]
    return out


def nm_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer, number: int, shape: ConvShape
) -> Tensor:
    """x (B, C_in, H, W) convolved with (C_out, C_in / groups, kh, kw) of ``layer``.

    Dtypes and arguments as for :func:`nm_linear`.
    """
    if _traced(x):
        return operators.conv2d(x, weight, bias, number, shape)
    out: Tensor = _Conv2d.apply(x, weight, bias, layer, shape)  # type: ignore[no-untyped-call]
    return out
