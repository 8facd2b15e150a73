"""N:M masks in PyTorch, equal bit for bit to :meth:`rtl.pattern.NmPattern.mask`.

Numerics contract, rule 6: elements are ranked by the magnitude bits of their FP16 rounding (so NaN
ranks above Inf and -0 equals +0), ties go to the lowest index, and a last group that ``m`` does not
fill is padded with zeros. Other roundings follow the same rule with their own bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from algorithms.native import kernels
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

__all__ = ["apply_mask", "nm_mask", "nm_mask_eager"]

_INTEGERS = {
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float32: (torch.int32, 0x7F80_0000),
    torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
}
"""Types that an operand may be rounded to: the integers of their width, and the bits of Inf."""

_INT32_GROUP = 1 << 16
"""Largest group for which a 15-bit ``magnitude * m + (m - 1)`` still fits a signed 32-bit key."""


def _magnitude(operand: Tensor, rounding: torch.dtype) -> Tensor:
    """Magnitude bits of the rounded operand, as integers of its width.

    Which NaN a conversion makes depends on the processor, so those are all one, just above Inf.
    """
    integer, infinity = _INTEGERS[rounding]
    bits = operand.to(rounding).view(integer) & torch.iinfo(integer).max
    return bits if operand.dtype == rounding else bits.clamp_(max=infinity + 1)


def _keys(operand: Tensor, m: int, rounding: torch.dtype) -> Tensor:
    """Ranking keys of an operand whose groups run along axis 0: (m, groups, ...) integers.

    The key is ``magnitude * m + (m - 1 - index)``: no two elements of a group share one, so every
    later comparison is free of ties. Position is the outermost axis, which makes each step of the
    selection one vector operation over all groups.
    """
    magnitude = _magnitude(operand, rounding)
    short = -magnitude.shape[0] % m
    if short:
        magnitude = torch.cat([magnitude, magnitude.new_zeros(short, *magnitude.shape[1:])])
    if magnitude.dtype == torch.int64:  # leave room for the index: a magnitude's place among all
        magnitude = torch.unique(magnitude, return_inverse=True)[1]
    narrow = magnitude.dtype == torch.int16 and m <= _INT32_GROUP
    dtype = torch.int32 if narrow else torch.int64
    planes = torch.unflatten(magnitude, 0, (-1, m)).transpose(0, 1)
    keys = planes.to(dtype, memory_format=torch.contiguous_format).mul_(m)
    index = torch.arange(m - 1, -1, -1, dtype=dtype, device=operand.device)
    return keys.add_(index.view(m, *[1] * (keys.dim() - 1)))


def _nth_largest(keys: Tensor, n: int) -> Tensor:
    """The n-th largest key of each group, by insertion into n sorted registers: (groups, ...)."""
    registers: list[Tensor] = []
    for key in keys.unbind(0):
        for rank, held in enumerate(registers):
            registers[rank] = torch.maximum(held, key)
            if rank + 1 < n:  # what the last register displaces is never kept
                key = torch.minimum(held, key)
        if len(registers) < n:
            registers.append(key)
    return registers[-1]


def _check(operand: Tensor, dim: int, rounding: torch.dtype) -> None:
    if not operand.is_floating_point():
        rule = "masks rank floating-point operands"
        raise ParameterError("operand", str(operand.dtype), rule, "torch.float16")
    if not -operand.dim() <= dim < operand.dim():
        rule = f"must be an axis of an operand with {operand.dim()} axes"
        nearest = max(operand.dim() - 1, 0) if dim > 0 else -operand.dim()
        raise ParameterError("dim", dim, rule, nearest)
    if rounding not in _INTEGERS:
        rule = "must be one of " + ", ".join(map(str, _INTEGERS))
        raise ParameterError("rounding", str(rounding), rule, "torch.float16")


def nm_mask(
    operand: Tensor, pattern: NmPattern, dim: int, *, rounding: torch.dtype = torch.float16
) -> Tensor:
    """Which elements of ``operand`` the pattern keeps, with groups along ``dim``.

    Parameters
    ----------
    operand: floating point, any shape with at least one axis.
    pattern: any N:M with N <= M.
    dim: the reduction axis. For a convolution weight (C_out, C_in, kh, kw) that is 1 in FF and 0 in
        BP, so that a group always lies at one kernel position.
    rounding: what the operand is rounded to before it is ranked: the type that the GEMM reads, one
        of float16, bfloat16, float32 and float64.

    Returns
    -------
    Contiguous boolean tensor of the operand's shape. Every full group keeps exactly ``n`` elements.

    Raises
    ------
    ParameterError: operand not floating point, ``dim`` out of range, or no such ``rounding``.
    """
    _check(operand, dim, rounding)
    if pattern.is_dense or not kernels.supports(operand, pattern, rounding):
        return nm_mask_eager(operand, pattern, dim, rounding=rounding)
    mask = torch.empty(operand.shape, dtype=torch.bool)
    outer, inner = math.prod(operand.shape[:dim]), math.prod(operand.shape[dim:][1:])
    source = operand.detach().contiguous()
    kernels.mask_into(source, mask, pattern, outer, operand.shape[dim], inner, rounding)
    return mask


def nm_mask_eager(
    operand: Tensor, pattern: NmPattern, dim: int, *, rounding: torch.dtype = torch.float16
) -> Tensor:
    """:func:`nm_mask` in PyTorch operations only: for other devices, types and group sizes."""
    _check(operand, dim, rounding)
    if pattern.is_dense or not operand.numel():
        return torch.ones_like(operand, dtype=torch.bool)
    grouped = operand.detach().movedim(dim, 0)
    keys = _keys(grouped, pattern.m, rounding)
    kept = keys >= _nth_largest(keys, pattern.n)
    mask = kept.transpose(0, 1).flatten(0, 1)[: grouped.shape[0]].movedim(0, dim)
    return mask.contiguous()


def apply_mask(operand: Tensor, mask: Tensor) -> Tensor:
    """``operand`` with +0 where ``mask`` is false, so that a pruned NaN or Inf is gone as well."""
    return torch.where(mask, operand, torch.zeros((), dtype=operand.dtype, device=operand.device))
