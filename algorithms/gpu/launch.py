"""How the kernels are launched: the size of their tiles, and weights as bits."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from rtl.pattern import NmPattern

__all__ = ["CODES", "PackedTensors", "View", "both_axes", "fuses", "one_axis"]

CODES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
"""Types that weights may have, as the kernels know them."""
_BITS = {2: torch.int16, 4: torch.int32}
"""Integers of a type's width, by its bytes."""

_WARP_TILE = 1024
"""Elements that a warp of a program holds."""
_WARPS = 4
"""Of a program that prunes one axis. Where groups lie in two directions, or elements move, one warp
alone needs neither barriers nor shared memory, so that is all a program has where it can choose."""
_LARGEST_TILE = 8192
_WIDTH = 128
"""Neighbours in memory that a tile holds of each row, as far as there are so many."""
_PACKED_WIDTH = 32
"""The same where groups are packed, which then lie next to each other: less wide, more of them."""


class View(NamedTuple):
    """Axes before, along and after the groups; their product is the number of elements.

    A convolution weight (g * C_o, C_i, kh, kw) is (g * C_o, C_i, kh * kw) in FF and
    (g, C_o, C_i * kh * kw) in BP.
    """

    outer: int
    length: int
    inner: int


class PackedTensors(NamedTuple):
    """Pruned weights in packed form, contiguous, of the shape (outer, inner, groups, N).

    values: the rounding's dtype. indices: uint8, place of each value in its group of M, increasing
    along the last axis. For FF the shape is (C_out, taps, groups, N), for BP
    (g, C_i * taps, groups, N): a row for each result of a sum.
    """

    values: Tensor
    indices: Tensor


def _power(size: int) -> int:
    """The least power of two that reaches ``size``."""
    return 1 << max(size - 1, 0).bit_length()


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(_BITS[tensor.element_size()])


def _on(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def fuses(shape: tuple[int, ...], pattern: NmPattern) -> bool:
    """Whether whole groups of both axes, at all taps, fit one tile: all but very large kernels."""
    return bool(pattern.m**2 * _power(math.prod(shape[2:])) <= _LARGEST_TILE)


def one_axis(
    kernels: ModuleType, source: Tensor, pattern: NmPattern, view: View, rounding: torch.dtype,
    out: Tensor | None, packed: PackedTensors | None,
) -> None:
    """Fill ``out``, ``packed`` or both for groups along ``view.length``."""
    if not source.numel():
        return
    groups = pattern.groups(view.length)
    units = view.outer * groups
    warps, width = (_WARPS, _WIDTH) if packed is None else (1, _PACKED_WIDTH)
    columns = min(_power(view.inner), width)
    rows = min(_power(units), max(1, warps * _WARP_TILE // (columns * pattern.m)))
    nothing = _bits(source)
    values, indices = (nothing, nothing) if packed is None else packed
    grid = (-(-units // rows) * -(-view.inner // columns),)
    with _on(source):
        kernels.prune_one_axis[grid](
            _bits(source), nothing if out is None else _bits(out),
            values if packed is None else _bits(values), indices, units, groups, view.length,
            view.inner, N=pattern.n, M=pattern.m, SOURCE=CODES[source.dtype],
            ROUNDING=CODES[rounding], OUT=CODES[rounding if out is None else out.dtype],
            MASKED=out is not None, PACKED=packed is not None, UNITS=rows, COLUMNS=columns,
            num_warps=warps, enable_fp_fusion=False,
        )


def both_axes(
    kernels: ModuleType, weight: Tensor, pattern: NmPattern, groups: int, rounding: torch.dtype,
    out: tuple[Tensor, Tensor] | None, packed: tuple[PackedTensors, PackedTensors] | None,
) -> None:
    """The same for FF and BP at once, of a weight that :func:`fuses`."""
    if not weight.numel():
        return
    m, taps = pattern.m, math.prod(weight.shape[2:])
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    across = min(_power(pattern.groups(inputs)), max(1, _WIDTH // (m * _power(taps))))
    columns = across * m * _power(taps)
    rows = max(m, min(_power(outputs), _WARP_TILE // columns))
    nothing = _bits(weight)
    masked = (nothing, nothing) if out is None else tuple(map(_bits, out))
    arrays = [nothing] * 4 if packed is None else [
        array if array.dtype == torch.uint8 else _bits(array) for one in packed for array in one]
    grid = (groups * -(-outputs // rows) * -(-inputs // (across * m)),)
    with _on(weight):
        kernels.prune_both_axes[grid](
            nothing, *masked, *arrays, outputs, inputs, taps, N=pattern.n, M=m,
            SOURCE=CODES[weight.dtype], ROUNDING=CODES[rounding],
            OUT=CODES[rounding if out is None else out[0].dtype], MASKED=out is not None,
            PACKED=packed is not None, ROWS=rows, GROUPS=across, TAPS=_power(taps),
            num_warps=max(1, rows * columns // _WARP_TILE), enable_fp_fusion=False,
        )
