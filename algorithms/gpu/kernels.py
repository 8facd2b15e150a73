"""Triton kernels that select N of M; imported only where Triton is, through :mod:`.select`.

Numbers are handled as their bits. Rounding, ranking and the one NaN that a conversion makes are
therefore the same on every GPU and under Triton's interpreter.

Codes of types: 0 float16, 1 bfloat16, 2 float32. Tiles are (groups, M, columns) with the elements
of a group along axis 1; sizes are powers of two, and what reaches beyond the weights reads as zero.
"""
# A condition on capitals is decided when Triton compiles. Parameters have no types but `constexpr`:
# Triton would look any other name up.

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["prune_both_axes", "prune_one_axis"]


@triton.jit
def _to_float32(bits, CODE: tl.constexpr):
    """Bits of a type, in int32, as bits of float32; NaN is the canonical one with its sign."""
    if CODE == 0:
        half = bits.to(tl.int16).to(tl.float16, bitcast=True)
        wide = half.to(tl.float32).to(tl.int32, bitcast=True)
    elif CODE == 1:
        wide = bits << 16
    else:
        wide = bits
    magnitude = wide & 0x7FFFFFFF
    return tl.where(magnitude > 0x7F800000, (wide - magnitude) | 0x7FC00000, wide)


@triton.jit
def _from_float32(wide, CODE: tl.constexpr):
    """The way back, to nearest even; 16-bit types in the low half, the high half zero."""
    magnitude = wide & 0x7FFFFFFF
    sign = (wide >> 16) & 0x8000
    if CODE == 0:
        half = magnitude.to(tl.float32, bitcast=True).to(tl.float16)
        near = half.to(tl.int16, bitcast=True).to(tl.int32)
        bits = sign | tl.where(magnitude > 0x7F800000, 0x7E00, near)
    elif CODE == 1:
        near = (magnitude + (0x7FFF + ((magnitude >> 16) & 1))) >> 16
        bits = sign | tl.where(magnitude > 0x7F800000, 0x7FC0, near)
    else:
        bits = wide
    return bits


@triton.jit
def _convert(bits, SOURCE: tl.constexpr, TARGET: tl.constexpr):
    """Bits of one type as bits of another; untouched, NaN and all, where they are the same."""
    return bits if SOURCE == TARGET else _from_float32(_to_float32(bits, SOURCE), TARGET)


@triton.jit
def _largest(bits, CODE: tl.constexpr, N: tl.constexpr, M: tl.constexpr):
    """Which elements of a tile are among the N largest of their group, ties to the lowest index.

    The key ``magnitude * M + (M - 1 - index)`` is unique in its group. Whichever is fewer, the
    elements to keep or those to drop, are taken out one by one.
    """
    later = (M - 1) - tl.arange(0, M)[None, :, None]
    if CODE == 2:
        key = (bits & 0x7FFFFFFF).to(tl.int64) * M + later
        above = 1 << 40
    else:
        key = (bits & 0x7FFF) * M + later
        above = 1 << 30
    if 2 * N <= M:
        for _ in tl.static_range(N):
            key = tl.where(key == tl.max(key, axis=1, keep_dims=True), -1, key)
        kept = key < 0
    else:
        for _ in tl.static_range(M - N):
            key = tl.where(key == tl.min(key, axis=1, keep_dims=True), above, key)
        kept = key < above
    return kept


@triton.jit
def _pack(
    values, indices, bits, kept, start, valid, M: tl.constexpr
):
    """Write a tile's kept elements, in index order, from ``start`` (groups, 1, columns) on."""
    count = kept.to(tl.int32)
    place = start + (tl.cumsum(count, axis=1) - count)
    index = tl.zeros_like(count) + tl.arange(0, M)[None, :, None]
    tl.store(values + place, bits.to(values.dtype.element_ty), mask=kept & valid)
    tl.store(indices + place, index.to(tl.uint8), mask=kept & valid)


@triton.jit
def prune_one_axis(
    source, out, values, indices, units, groups, length,
    inner, N: tl.constexpr, M: tl.constexpr, SOURCE: tl.constexpr, ROUNDING: tl.constexpr,
    OUT: tl.constexpr, MASKED: tl.constexpr, PACKED: tl.constexpr, UNITS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Weights (outer, length, inner) with groups along ``length``; ``units`` = outer x groups.

    MASKED writes ``out`` (outer, length, inner), PACKED ``values`` and ``indices``
    (outer, inner, groups, N). A program has UNITS groups of COLUMNS columns.
    """
    blocks = tl.cdiv(inner, COLUMNS)
    unit = (tl.program_id(0) // blocks * UNITS + tl.arange(0, UNITS))[:, None, None]
    column = (tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS))[None, None, :]
    outer, group = (unit // groups).to(tl.int64), unit % groups
    element = group * M + tl.arange(0, M)[None, :, None]
    valid = (unit < units) & (column < inner)
    within = valid & (element < length)
    offset = (outer * length + element) * inner + column
    bits = tl.load(source + offset, mask=within, other=0).to(tl.int32)
    bits = _convert(bits, SOURCE, ROUNDING)
    kept = _largest(bits, ROUNDING, N, M)
    if MASKED:
        result = tl.where(kept, _convert(bits, ROUNDING, OUT), 0)
        tl.store(out + offset, result.to(out.dtype.element_ty), mask=within)
    if PACKED:
        start = ((outer * inner + column) * groups + group) * N
        _pack(values, indices, bits, kept, start, valid, M)


@triton.jit
def prune_both_axes(
    source, forward, backward, forward_values, forward_indices,
    backward_values, backward_indices, outputs, inputs, taps,
    N: tl.constexpr, M: tl.constexpr, SOURCE: tl.constexpr, ROUNDING: tl.constexpr,
    OUT: tl.constexpr, MASKED: tl.constexpr, PACKED: tl.constexpr, ROWS: tl.constexpr,
    GROUPS: tl.constexpr, TAPS: tl.constexpr,
):
    """Weights (convolution groups, outputs, inputs, taps), read once for FF and for BP.

    A program has ROWS outputs, a multiple of M, times GROUPS x M inputs, times all taps; whole
    groups of either axis. What is written for FF is what :func:`prune_one_axis` writes for groups
    along ``inputs``, for BP along ``outputs``.
    """
    across = tl.cdiv(inputs, GROUPS * M)
    down = tl.cdiv(outputs, ROWS)
    program = tl.program_id(0)
    first_input = program % across * (GROUPS * M)
    first_output = program // across % down * ROWS
    conv_group = (program // across // down).to(tl.int64)

    row = (first_output + tl.arange(0, ROWS))[:, None, None]
    channel = (first_input + tl.arange(0, GROUPS * M))[None, :, None]
    tap = tl.arange(0, TAPS)[None, None, :]
    within = (row < outputs) & (channel < inputs) & (tap < taps)
    offset = ((conv_group * outputs + row) * inputs + channel) * taps + tap
    bits = tl.load(source + offset, mask=within, other=0).to(tl.int32)
    bits = _convert(bits, SOURCE, ROUNDING)

    along_inputs = tl.reshape(bits, (ROWS * GROUPS, M, TAPS))
    along_outputs = tl.reshape(bits, (ROWS // M, M, GROUPS * M * TAPS))
    in_forward = _largest(along_inputs, ROUNDING, N, M)
    in_backward = _largest(along_outputs, ROUNDING, N, M)
    if MASKED:
        result = _convert(bits, ROUNDING, OUT).to(forward.dtype.element_ty)
        zero = tl.zeros_like(result)
        kept = tl.reshape(in_forward, (ROWS, GROUPS * M, TAPS))
        tl.store(forward + offset, tl.where(kept, result, zero), mask=within)
        kept = tl.reshape(in_backward, (ROWS, GROUPS * M, TAPS))
        tl.store(backward + offset, tl.where(kept, result, zero), mask=within)
    if PACKED:
        line = tl.arange(0, ROWS * GROUPS)[:, None, None]
        row, group = first_output + line // GROUPS, first_input // M + line % GROUPS
        count = tl.cdiv(inputs, M)
        valid = (row < outputs) & (group < count) & (tap < taps)
        start = (((conv_group * outputs + row) * taps + tap) * count + group) * N
        _pack(forward_values, forward_indices, along_inputs, in_forward, start, valid, M)

        group = first_output // M + tl.arange(0, ROWS // M)[:, None, None]
        line = tl.arange(0, GROUPS * M * TAPS)[None, None, :]
        channel, tap = first_input + line // TAPS, line % TAPS
        count = tl.cdiv(outputs, M)
        valid = (group < count) & (channel < inputs) & (tap < taps)
        start = (((conv_group * inputs + channel) * taps + tap) * count + group) * N
        _pack(backward_values, backward_indices, along_outputs, in_backward, start, valid, M)
