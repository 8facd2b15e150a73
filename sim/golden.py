"""The golden model: what every engine must return, bit for bit.

Numerics contract, rules 1 to 4: FP16 products are exact in FP32, sums are FP32 with round to
nearest even, added strictly in increasing k from +0, and NaN is canonical. numpy's float32 does
just that, one product and one addition at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rtl.errors import ParameterError
from rtl.fp.format import BINARY32
from rtl.pattern import DENSE, NmPattern, Packed

__all__ = ["Yardstick", "accumulate", "gemm"]

Half = npt.NDArray[np.float16]
Single = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]

# Sums that are kept in cache while K passes by.
_BLOCK = 32768


def gemm(a: Half, b: Half, pattern: NmPattern = DENSE) -> Single:
    """C = A @ B, bit-exact, with B pruned to ``pattern`` along K first.

    Parameters
    ----------
    a: float16, shape (P, K).
    b: float16, shape (K, Q).

    Returns float32, shape (P, Q). A pruned position takes no part: an Inf or NaN opposite to it
    does not show. Speed is some 10^9 MACs a second for dense operands.
    """
    return accumulate(a, pattern.pack(b), pattern)


def accumulate(
    a: Half, packed: Packed, pattern: NmPattern, start: Single | None = None
) -> Single:
    """:func:`gemm` with B already packed; sums go on from ``start``, float32 (P, Q), or from +0.

    ``packed`` holds values and indices of shape (groups, n, Q) for ``a`` of shape (P, K). Raises
    :class:`ParameterError` for an index outside its group: what the array then selects depends on
    when it does.
    """
    if (most := int(packed.indices.max(initial=0))) >= pattern.m:
        raise ParameterError("indices", most, f"must be below the M of {pattern}", pattern.m - 1)
    p, k = a.shape
    values = packed.values.astype(np.float32)
    q = values.shape[2]
    padded = np.zeros((len(values) * pattern.m, p), np.float32)
    padded[:k] = a.T
    base = pattern.m * np.arange(len(values), dtype=np.intp)[:, None, None]
    rows = base + packed.indices
    result = np.zeros((q, p), np.float32) if start is None else start.T.copy()
    columns = max(1, min(q, _BLOCK // min(p, _BLOCK)))
    width = max(1, min(p, _BLOCK // columns))
    with np.errstate(invalid="ignore", over="ignore"):
        for left in range(0, p, width):
            moving = np.ascontiguousarray(padded[:, left : left + width])
            for top in range(0, q, columns):
                here = slice(top, top + columns)
                block = result[here, left : left + width]
                _accumulate(block, moving, values[:, :, here], rows[:, :, here], pattern)
    bits = np.ascontiguousarray(result.T).view(np.uint32)
    return BINARY32.canonical(bits).astype(np.uint32).view(np.float32)


def _accumulate(
    block: Single, moving: Single, values: Single, rows: npt.NDArray[np.intp], pattern: NmPattern
) -> None:
    """Add to the sums of one block, shape (columns, width): one product, one addition per k."""
    sums = block.copy()
    product = np.empty_like(sums)
    gathered = np.empty_like(sums)
    for group in range(values.shape[0]):
        for slot in range(values.shape[1]):
            value = values[group, slot, :, None]
            if pattern == DENSE:
                np.multiply(moving[group], value, out=product)
            else:
                np.take(moving, rows[group, slot], axis=0, out=gathered, mode="clip")
                np.multiply(gathered, value, out=product)
            np.add(sums, product, out=sums)
    block[:] = sums


@dataclass(frozen=True)
class Yardstick:
    """The same GEMM in float64, to measure rounding errors with.

    exact: A @ B. scale: |A| @ |B|, the quantity that error bounds of a dot product speak of.
    Unlike an error relative to the result, one relative to ``scale`` does not blow up where terms
    cancel.
    """

    exact: Double
    scale: Double

    @classmethod
    def of(cls, a: Half, b: Half, pattern: NmPattern = DENSE) -> Yardstick:
        """For float16 ``a`` (P, K) and ``b`` (K, Q), with ``b`` pruned along K first."""
        kept = b if pattern == DENSE else np.where(pattern.mask(b), b, np.float16(0))
        left, right = a.astype(np.float64), kept.astype(np.float64)
        return cls(left @ right, np.abs(left) @ np.abs(right))

    def error(self, c: npt.NDArray[np.floating]) -> float:
        """Largest |c - exact| / scale over all elements; where scale is 0, c must be too."""
        error = np.abs(c.astype(np.float64) - self.exact)
        safe = np.where(self.scale > 0, self.scale, 1.0)
        return float(np.max(error / safe))
