"""Arithmetic of the vector engine, operation by operation in numpy float32.

Numerics contract, rule 7: every operation is rounded once, to nearest even, subnormals honoured,
NaN canonical. numpy's float32 add, subtract, multiply, divide and square root are just that.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rtl.fp.format import BINARY32
from rtl.isa import VectorOp

__all__ = ["REDUCTIONS", "apply", "reduce", "relu"]

Single = npt.NDArray[np.float32]

REDUCTIONS = (VectorOp.SUM, VectorOp.PEAK)
"""Operations that fold lines onto each other."""


def _canonical(value: Single) -> Single:
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    return BINARY32.canonical(bits).astype(np.uint32).view(np.float32)


def apply(op: VectorOp, a: Single, b: Single) -> Single:
    """``op`` of two float32 arrays that broadcast against each other; not a reduction."""
    zero, one = np.float32(0), np.float32(1)
    with np.errstate(all="ignore"):
        if op is VectorOp.COPY:
            result = a
        elif op is VectorOp.ADD:
            result = a + b
        elif op is VectorOp.SUB:
            result = a - b
        elif op is VectorOp.MUL:
            result = a * b
        elif op is VectorOp.DIV:
            result = a / b
        elif op is VectorOp.SQRT:
            result = np.sqrt(a)
        elif op is VectorOp.MAX:
            result = np.where(a == b, a, np.maximum(a, b))
        elif op is VectorOp.MIN:
            result = np.where(a == b, a, np.minimum(a, b))
        elif op is VectorOp.GATE:
            result = np.where(b > zero, a, zero)
        elif op is VectorOp.GREATER:
            result = np.where(a > b, one, zero)
        else:
            raise ValueError(f"{op.name} is a reduction")
    return _canonical(np.broadcast_to(result, a.shape))


def relu(value: Single) -> Single:
    """``value`` where it is above zero or NaN, +0 elsewhere."""
    return np.where((value > 0) | np.isnan(value), value, np.float32(0))


def reduce(op: VectorOp, lines: Single, start: Single | None, period: int) -> Single:
    """Fold ``lines`` (count, lanes) onto ``period`` lines, in order of the line number.

    ``start`` (period, lanes) is what the result begins with; +0 or -Inf if it is None. Returns
    as many lines as take part, at most ``period``.
    """
    begin = np.float32(0) if op is VectorOp.SUM else np.float32(-np.inf)
    count = min(period, len(lines))
    result = np.full((count, lines.shape[1]), begin) if start is None else start[:count].copy()
    step = VectorOp.ADD if op is VectorOp.SUM else VectorOp.MAX
    for first in range(0, len(lines), period):
        block = lines[first : first + period]
        result[: len(block)] = apply(step, result[: len(block)], block)
    return result
