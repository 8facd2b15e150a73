"""The three GEMMs of a training step as autograd functions with FP16 operands.

FF: Y = X * W_ff. BP: dX = dY * W_bp. WU: dW = dY^T * X, dense and straight through to all of W
(SAT paper, arXiv:2309.13015). X, W and dY are rounded to FP16, overflow becoming Inf; products and
sums are FP32. Autograd differentiates once: a second derivative raises an error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from algorithms.masks import apply_mask, nm_mask
from rtl.pattern import NmPattern

__all__ = ["ConvShape", "nm_conv2d", "nm_linear"]


class ConvShape(NamedTuple):
    """The geometry of a 2-D convolution; padding is symmetric and with zeros."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Autocast would lower the FP32 products again, so it is off inside the functions."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)


def _prune_grad(grad: Tensor, pattern: NmPattern, groups: int, dim: int) -> Tensor:
    """dY pruned along its channel axis, inside each convolution group; ``grad`` itself if dense."""
    if pattern.is_dense:
        return grad
    blocks = torch.unflatten(grad, dim, (groups, -1))
    return apply_mask(blocks, nm_mask(blocks, pattern, dim + 1)).flatten(dim, dim + 1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None,
        forward_weight: Tensor, backward_weight: Tensor, grad_pattern: NmPattern,
    ) -> Tensor:
        rounded = x.to(torch.float16)
        ctx.save_for_backward(rounded, backward_weight)
        ctx.grad_pattern = grad_pattern
        with _full_precision(x):
            return F.linear(rounded.float(), forward_weight, None if bias is None else bias.float())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rounded, backward_weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dy = grad.to(torch.float16).float().reshape(-1, grad.shape[-1])
        dx = dw = db = None
        with _full_precision(grad):
            if needs_x:
                pruned = _prune_grad(dy, ctx.grad_pattern, 1, 1)
                dx = (pruned @ backward_weight).view(rounded.shape)
            if needs_weight:
                dw = dy.T @ rounded.float().reshape(-1, rounded.shape[-1])
            if needs_bias:
                db = dy.sum(0)
        return dx, dw, db, None, None, None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, forward_weight: Tensor,
        backward_weight: Tensor, grad_pattern: NmPattern, shape: ConvShape,
    ) -> Tensor:
        rounded = x.to(torch.float16)
        ctx.save_for_backward(rounded, backward_weight)
        ctx.grad_pattern, ctx.shape = grad_pattern, shape
        with _full_precision(x):
            bias = None if bias is None else bias.float()
            return F.conv2d(rounded.float(), forward_weight, bias, *shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rounded, backward_weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        shape: ConvShape = ctx.shape
        dy = grad.to(torch.float16).float()
        x = rounded.float()
        dx = dw = db = None
        with _full_precision(grad):
            pruned = _prune_grad(dy, ctx.grad_pattern, shape.groups, 1) if needs_x else dy
            # The weight gradient does not read the weights, so one call serves both passes
            # unless they read different gradients.
            if pruned is dy and (needs_x or needs_weight):
                dx, dw = _conv_gradients(dy, x, backward_weight, shape, needs_x, needs_weight)
            elif needs_x:
                dx, _ = _conv_gradients(pruned, x, backward_weight, shape, True, False)
                if needs_weight:
                    _, dw = _conv_gradients(dy, x, backward_weight, shape, False, True)
            if needs_bias:
                db = dy.sum((0, 2, 3))
        return dx, dw, db, None, None, None, None


def _conv_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, shape: ConvShape, needs_x: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, shape.stride, shape.padding, shape.dilation, False, (0, 0),
        shape.groups, (needs_x, needs_weight, False),
    )
    return dx, dw


def nm_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    forward_weight: Tensor, backward_weight: Tensor, grad_pattern: NmPattern,
) -> Tensor:
    """x (..., C_in) times the weights (C_out, C_in): float32 (..., C_out).

    ``weight`` is the master that receives dW; ``forward_weight`` and ``backward_weight`` are what
    FF and BP multiply with (float32, FP16 values). BP reads dY pruned with ``grad_pattern`` along
    its last axis.
    """
    out: Tensor = _Linear.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, forward_weight, backward_weight, grad_pattern)
    return out


def nm_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, forward_weight: Tensor,
    backward_weight: Tensor, grad_pattern: NmPattern, shape: ConvShape,
) -> Tensor:
    """x (B, C_in, H, W) convolved with (C_out, C_in / groups, kh, kw): float32.

    Arguments as for :func:`nm_linear`; dY is pruned along its channels, inside each convolution
    group.
    """
    out: Tensor = _Conv2d.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, forward_weight, backward_weight, grad_pattern, shape)
    return out
