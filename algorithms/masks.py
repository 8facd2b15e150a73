"""N:M masks in PyTorch, equal bit for bit to :meth:`rtl.pattern.NmPattern.mask`.

Numerics contract, rule 6: elements are ranked by the magnitude bits of their FP16 rounding (so NaN
ranks above Inf and -0 equals +0), ties go to the lowest index, and a last group that ``m`` does not
fill is padded with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rtl.errors import ParameterError
from rtl.pattern import NmPattern

__all__ = ["apply_mask", "nm_mask"]

_MAGNITUDE = 0x7FFF
_INT32_GROUP = 1 << 16
"""Largest group for which ``magnitude * m + (m - 1)`` still fits a signed 32-bit key."""


def _keys(operand: Tensor, m: int) -> Tensor:
    """Ranking keys of an operand whose groups run along axis 0: (m, groups, ...) integers.

    The key is ``magnitude * m + (m - 1 - index)``: no two elements of a group share one, so every
    later comparison is free of ties. Position is the outermost axis, which makes each step of the
    selection one vector operation over all groups.
    """
    magnitude = operand.to(torch.float16).view(torch.int16) & _MAGNITUDE
    short = -magnitude.shape[0] % m
    if short:
        magnitude = torch.cat([magnitude, magnitude.new_zeros(short, *magnitude.shape[1:])])
    planes = torch.unflatten(magnitude, 0, (-1, m)).transpose(0, 1)
    dtype = torch.int32 if m <= _INT32_GROUP else torch.int64
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


def nm_mask(operand: Tensor, pattern: NmPattern, dim: int) -> Tensor:
    """Which elements of ``operand`` the pattern keeps, with groups along ``dim``.

    Parameters
    ----------
    operand: floating point, any shape with at least one axis. Wider types are rounded to FP16
        before they are ranked, because that is what the GEMM reads.
    pattern: any N:M with N <= M.
    dim: the reduction axis. For a convolution weight (C_out, C_in, kh, kw) that is 1 in FF and 0 in
        BP, so that a group always lies at one kernel position.

    Returns
    -------
    Contiguous boolean tensor of the operand's shape. Every full group keeps exactly ``n`` elements.

    Raises
    ------
    ParameterError: operand not floating point, or ``dim`` out of range.
    """
    if not operand.is_floating_point():
        rule = "masks rank floating-point operands"
        raise ParameterError("operand", str(operand.dtype), rule, "torch.float16")
    if not -operand.dim() <= dim < operand.dim():
        rule = f"must be an axis of an operand with {operand.dim()} axes"
        nearest = max(operand.dim() - 1, 0) if dim > 0 else -operand.dim()
        raise ParameterError("dim", dim, rule, nearest)
    if pattern.is_dense or not operand.numel():
        return torch.ones_like(operand, dtype=torch.bool)
    grouped = operand.detach().movedim(dim, 0)
    keys = _keys(grouped, pattern.m)
    kept = keys >= _nth_largest(keys, pattern.n)
    mask = kept.transpose(0, 1).flatten(0, 1)[: grouped.shape[0]].movedim(0, dim)
    return mask.contiguous()


def apply_mask(operand: Tensor, mask: Tensor) -> Tensor:
    """``operand`` with +0 where ``mask`` is false, so that a pruned NaN or Inf is gone as well."""
    return torch.where(mask, operand, torch.zeros((), dtype=operand.dtype, device=operand.device))
