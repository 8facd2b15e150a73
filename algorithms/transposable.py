"""Masks that are N:M along both axes of a matrix at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rtl.pattern import NmPattern

__all__ = ["transposable_mask"]


def transposable_mask(
    operand: Tensor, pattern: NmPattern, rounding: torch.dtype = torch.float16
) -> Tensor:
    """A mask with at most N of M along axis 0 and along axis 1 of (rows, columns, ...).

    In each M x M block the elements are visited from the largest magnitude down, ties in row-major
    order, and kept while their row and their column have room. The result carries at least half of
    the magnitude of the best such mask (Hubara et al., arXiv:2102.08124); a row or column can end
    with fewer than N. Blocks at the edges are padded with zeros, which are never kept in place of
    an element.

    Returns a boolean tensor of the operand's shape. Masks are chosen on ``rounding`` values.
    """
    rows, columns = operand.shape[:2]
    if pattern.is_dense:
        return torch.ones_like(operand, dtype=torch.bool)
    n, m = pattern.n, pattern.m
    bits = _bits(operand.detach(), rounding).reshape(rows, columns, -1)
    # -1 marks padding: below every magnitude.
    padded = F.pad(bits, (0, 0, 0, -columns % m, 0, -rows % m), value=-1)
    high, wide, deep = padded.shape[0] // m, padded.shape[1] // m, padded.shape[2]
    blocks = padded.view(high, m, wide, m, deep).permute(0, 2, 4, 1, 3).reshape(-1, m * m)
    order = blocks.argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros_like(blocks, dtype=torch.bool)
    row_room = torch.full((len(blocks), m), n, device=operand.device)
    column_room = row_room.clone()
    for at in order.T.unsqueeze(2):
        row, column = at // m, at % m
        fits = (row_room.gather(1, row) > 0) & (column_room.gather(1, column) > 0)
        kept.scatter_(1, at, fits)
        row_room.scatter_add_(1, row, -fits.long())
        column_room.scatter_add_(1, column, -fits.long())
    whole = kept.view(high, wide, deep, m, m).permute(0, 3, 1, 4, 2).reshape(padded.shape)
    return whole[:rows, :columns].reshape(operand.shape).contiguous()


def _bits(operand: Tensor, rounding: torch.dtype) -> Tensor:
    """Magnitudes as int64 that rank as the bits do; NaN above infinity."""
    value = operand.to(rounding).abs().double()
    finite_order = torch.where(value.isnan(), float("inf"), value)
    bits = finite_order.view(torch.int64)
    return torch.where(value.isnan(), bits + 1, bits)
