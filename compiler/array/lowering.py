"""Convolutions and linear layers as GEMMs: the operands of FF, BP and WU as matrices.

Every stage is ``C (P, Q) = A (P, K) @ B (K, Q)`` (SAT paper, section 1.2 of its algorithm):

====== ===================== ======== =================== =================
stage  P                     Q        K                   sparse operand
====== ===================== ======== =================== =================
FF     batch x output pixels C_out    taps x C_in         weights, C_in
BP     batch x input pixels  C_in     taps x C_out        weights, C_out
WU     taps x C_in           C_out    batch x out pixels  dY, pixels
====== ===================== ======== =================== =================

Along K the channels of one kernel tap are neighbours, padded with zeros to whole groups of M, so
that a group is M channels of one pixel. BP of a strided convolution falls apart into one GEMM for
each residue of the input pixel, each with just the taps that meet it: no product with the zeros
that a stride puts between gradients. Along K of WU pixels run image by image, row by row; what is
pruned there is dY as the method has sampled it, of which packing keeps all that is not zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from compiler.ir import Conv
from rtl.pattern import DENSE, NmPattern

__all__ = ["Operands", "backward", "conv_of", "forward", "weight_update"]


@dataclass(frozen=True)
class Operands:
    """One GEMM: float16 matrices ``a`` (P, K) and ``b`` (K, Q), and B's ``pattern`` along K.

    ``torch_c``: float32 (P, Q), the same result out of PyTorch's own kernel for the layer.
    ``part``: which of several GEMMs of the stage this is, empty if there is one.
    ``padded_channels``: zero channels added per kernel tap to fill the last group of M.
    """

    a: Tensor
    b: Tensor
    pattern: NmPattern
    torch_c: Tensor
    part: str = ""
    padded_channels: int = 0


def conv_of(layer: nn.Conv2d) -> Conv:
    """Geometry of a convolution layer, with string paddings worked out."""
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    return Conv(
        (layer.kernel_size[0], layer.kernel_size[1]), (layer.stride[0], layer.stride[1]),
        (left, right, top, bottom), (layer.dilation[0], layer.dilation[1]),
    )


def _pad_channels(taps: Tensor, pattern: NmPattern) -> Tensor:
    """(..., taps, channels) with the channels padded to whole groups."""
    channels = taps.shape[-1]
    return F.pad(taps, (0, pattern.groups(channels) * pattern.m - channels))


def _columns(image: Tensor, conv: Conv) -> Tensor:
    """im2col of an already padded image: (B, C, H, W) to (B, out_h, out_w, taps, C)."""
    batch, channels, height, width = image.shape
    out_h = (height - conv.dilation[0] * (conv.kernel[0] - 1) - 1) // conv.stride[0] + 1
    out_w = (width - conv.dilation[1] * (conv.kernel[1] - 1) - 1) // conv.stride[1] + 1
    unfolded = F.unfold(image, conv.kernel, conv.dilation, 0, conv.stride)
    taps = conv.kernel[0] * conv.kernel[1]
    return unfolded.view(batch, channels, taps, out_h, out_w).permute(0, 3, 4, 2, 1)


def _half(value: Tensor) -> Tensor:
    return value.to(torch.float16)


def forward(x: Tensor, weight: Tensor, kept: Tensor, conv: Conv, pattern: NmPattern) -> Operands:
    """FF: Y = X * W.

    ``x`` (B, C_in, H, W) and ``weight`` (C_out, C_in, kh, kw), float32 with FP16 values; ``kept``
    is the weight as PyTorch pruned it, for the reference.
    """
    image = F.pad(x, conv.padding)
    a = _pad_channels(_columns(image, conv), pattern)
    b = _pad_channels(weight.permute(2, 3, 0, 1).flatten(0, 1), pattern)
    y = F.conv2d(image, kept, None, conv.stride, 0, conv.dilation)
    return Operands(
        _half(a.flatten(0, 2).flatten(1)),
        _half(b.permute(0, 2, 1).flatten(0, 1)),
        pattern,
        y.permute(0, 2, 3, 1).flatten(0, 2),
        padded_channels=b.shape[-1] - weight.shape[1],
    )


def weight_update(x: Tensor, dy: Tensor, conv: Conv, pattern: NmPattern = DENSE) -> Operands:
    """WU: dW = X^T * dY; ``dy`` is (B, C_out, out_h, out_w), sampled already to ``pattern``."""
    image = F.pad(x, conv.padding)
    columns = _columns(image, conv)
    # A stride may leave pixels over that no output reads.
    columns = columns[:, : dy.shape[2], : dy.shape[3]]
    shape = (dy.shape[1], x.shape[1], *conv.kernel)
    dw = conv2d_weight(  # type: ignore[no-untyped-call]
        image, shape, dy, stride=conv.stride, dilation=conv.dilation
    )
    return Operands(
        _half(columns.flatten(0, 2).flatten(1).T),
        _half(dy.permute(0, 2, 3, 1).flatten(0, 2)),
        pattern,
        dw.permute(2, 3, 1, 0).flatten(0, 2),
    )


def backward(
    dy: Tensor, weight: Tensor, kept: Tensor, conv: Conv, size: tuple[int, int],
    pattern: NmPattern, *, prune_gradient: bool = False,
) -> Iterator[Operands]:
    """BP: dX = dY * W, for an input of ``size`` (H, W); one GEMM a residue of the stride.

    With ``prune_gradient`` (SDGP) the pattern prunes dY along its channels, not the weights. The
    array prunes operand B, so the GEMM is then transposed: dX^T = W^T * dY^T.
    """
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel, strict=True)]
    spread = torch.zeros(
        *dy.shape[:2], *((n - 1) * s + 1 for n, s in zip(dy.shape[2:], conv.stride, strict=True))
    )
    spread[:, :, :: conv.stride[0], :: conv.stride[1]] = dy
    left, top = reach[1] - conv.padding[0], reach[0] - conv.padding[2]
    right = size[1] + reach[1] - spread.shape[3] - left
    bottom = size[0] + reach[0] - spread.shape[2] - top
    taps = _columns(
        F.pad(spread, (left, right, top, bottom)), Conv(conv.kernel, dilation=conv.dilation)
    )
    turned = weight.flip(2, 3).permute(2, 3, 1, 0).flatten(0, 1)  # (taps, C_in, C_out)
    dx = _reference(dy, kept, conv, size, pattern if prune_gradient else DENSE)

    for residue in itertools.product(range(conv.stride[0]), range(conv.stride[1])):
        rows, cols = (slice(r, None, s) for r, s in zip(residue, conv.stride, strict=True))
        met = [
            tap
            for tap, place in enumerate(itertools.product(*map(range, conv.kernel)))
            if all(
                (r + i * d - before) % s == 0
                for r, i, d, before, s in zip(
                    residue, place, conv.dilation, (top, left), conv.stride, strict=True
                )
            )
        ]
        here = dx[:, :, rows, cols].permute(0, 2, 3, 1).flatten(0, 2)
        if not met or not len(here):
            continue
        a = _pad_channels(taps[:, rows, cols][:, :, :, met], pattern).flatten(0, 2).flatten(1)
        b = _pad_channels(turned[met], pattern).permute(0, 2, 1).flatten(0, 1)
        part = "" if conv.stride == (1, 1) else f"{residue[0]},{residue[1]}"
        padded = pattern.groups(dy.shape[1]) * pattern.m - dy.shape[1]
        if prune_gradient:
            yield Operands(_half(b.T), _half(a.T), pattern, here.T, part, padded)
        else:
            yield Operands(_half(a), _half(b), pattern, here, part, padded)


def _reference(
    dy: Tensor, kept: Tensor, conv: Conv, size: tuple[int, int], gradient: NmPattern
) -> Tensor:
    """dX (B, C_in, H, W) out of PyTorch's kernel, for the pruned weights or pruned gradient."""
    from algorithms import apply_mask, nm_mask

    if not gradient.is_dense:
        dy = apply_mask(dy, nm_mask(dy, gradient, 1))
    left, right, top, bottom = conv.padding
    padded = (dy.shape[0], kept.shape[1], size[0] + top + bottom, size[1] + left + right)
    dx: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
        padded, kept, dy, stride=conv.stride, dilation=conv.dilation
    )
    return dx[:, :, top : top + size[0], left : left + size[1]]
