"""A layer's training step as operators that :mod:`torch.compile` leaves whole.

``nmsat::linear`` and ``nmsat::conv2d`` run FF, their backward operators BP and WU. They find the
layer, and through it the operands of the present weights, by its number, a constant of the graph;
so neither new weights nor a new phase of a schedule compiles anything again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms.gemms import (
    ConvShape,
    Gradients,
    Layer,
    conv2d_forward,
    conv2d_gradients,
    convolution_backward,
    linear_forward,
    linear_gradients,
)
from algorithms.rounding import compute_dtype

__all__ = ["LAYERS", "conv2d", "linear"]

LAYERS: WeakValueDictionary[int, Layer] = WeakValueDictionary()
"""Layers by their number. A number in the graph outlives neither its layer nor its process."""


@torch.library.custom_op("nmsat::linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    return linear_forward(x, weight, bias, LAYERS[int(layer)])


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    dtype = compute_dtype(x.dtype, LAYERS[int(layer)].nm_precision)
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


@torch.library.custom_op("nmsat::linear_backward", mutates_args=())
def _linear_backward(
    grad: Tensor, x: Tensor | None, weight: Tensor, layer: int, dtype: torch.dtype,
    needs_x: bool, needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _filled(grad, linear_gradients(grad, x, weight, LAYERS[int(layer)], dtype, needs_x,
                                          needs_bias))


@_linear_backward.register_fake
def _(
    grad: Tensor, x: Tensor | None, weight: Tensor, layer: int, dtype: torch.dtype,
    needs_x: bool, needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _filled(grad, Gradients(
        grad.new_empty((*grad.shape[:-1], weight.shape[1]), dtype=dtype) if needs_x else None,
        torch.empty_like(weight) if x is not None else None,
        grad.new_empty(grad.shape[-1:]) if needs_bias else None))


@torch.library.custom_op("nmsat::conv2d", mutates_args=())
def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, layer: int, stride: list[int],
    padding: list[int], dilation: list[int], groups: int,
) -> Tensor:
    return conv2d_forward(x, weight, bias, LAYERS[int(layer)],
                          _shape(stride, padding, dilation, groups))


@_conv2d.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, layer: int, stride: list[int],
    padding: list[int], dilation: list[int], groups: int,
) -> Tensor:
    dtype = compute_dtype(x.dtype, LAYERS[int(layer)].nm_precision)
    return F.conv2d(x.to(dtype), weight.to(dtype), None, stride, padding, dilation, groups)


@torch.library.custom_op("nmsat::conv2d_backward", mutates_args=())
def _conv2d_backward(
    grad: Tensor, x: Tensor | None, weight: Tensor, layer: int, dtype: torch.dtype, needs_x: bool,
    needs_bias: bool, size: list[int], stride: list[int], padding: list[int], dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _filled(grad, conv2d_gradients(
        grad, x, weight, LAYERS[int(layer)], dtype, needs_x, needs_bias, torch.Size(size),
        _shape(stride, padding, dilation, groups)))


@_conv2d_backward.register_fake
def _(
    grad: Tensor, x: Tensor | None, weight: Tensor, layer: int, dtype: torch.dtype, needs_x: bool,
    needs_bias: bool, size: list[int], stride: list[int], padding: list[int], dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    computed = compute_dtype(dtype, LAYERS[int(layer)].nm_precision)
    like = grad.new_empty(size, dtype=computed) if x is None else x.to(computed)
    dx, dw = convolution_backward(grad.to(computed), like, weight.to(computed),
                                  _shape(stride, padding, dilation, groups), needs_x,
                                  x is not None)
    return _filled(grad, Gradients(
        None if dx is None else dx.to(dtype), None if dw is None else dw.to(weight.dtype),
        grad.new_empty(grad.shape[1]) if needs_bias else None))


def _shape(
    stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> ConvShape:
    return ConvShape((stride[0], stride[1]), (padding[0], padding[1]),
                     (dilation[0], dilation[1]), groups)


def _filled(grad: Tensor, found: Gradients) -> tuple[Tensor, Tensor, Tensor]:
    """An operator returns tensors only: what was not asked for is empty."""
    dx, dw, db = (grad.new_empty(0) if each is None else each for each in found)
    return dx, dw, db


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Only what the backward pass reads: a frozen layer does not hold its input."""
    x, weight, bias, ctx.layer, *ctx.geometry = inputs
    ctx.dtype, ctx.size = x.dtype, list(x.shape)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)


def _backward(operator: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Callable[..., Any]:
    def run(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        size = [ctx.size] if ctx.geometry else []
        dx, dw, db = operator(grad, x, weight, ctx.layer, ctx.dtype, needs_x, needs_bias,
                              *size, *ctx.geometry)
        none = [None] * (1 + len(ctx.geometry))
        return (dx if needs_x else None, dw if needs_weight else None,
                db.to(ctx.bias_dtype) if needs_bias else None, *none)

    return run


_linear.register_autograd(_backward(_linear_backward), setup_context=_save)
_conv2d.register_autograd(_backward(_conv2d_backward), setup_context=_save)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    """:func:`algorithms.functions.nm_linear` for ``LAYERS[int(layer)]``."""
    out: Tensor = _linear(x, weight, bias, layer)
    return out


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, layer: int, shape: ConvShape
) -> Tensor:
    """:func:`algorithms.functions.nm_conv2d` for ``LAYERS[int(layer)]``."""
    stride, padding, dilation, groups = shape
    out: Tensor = _conv2d(x, weight, bias, layer, list(stride), list(padding), list(dilation),
                          groups)
    return out
