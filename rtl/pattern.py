"""N:M fine-grained sparsity: the pattern, its selection rule and the packed form.

Numerics contract, rule 6: of every ``m`` consecutive elements along the reduction dimension the
``n`` with the largest FP16 magnitude bits stay; equal magnitudes go to the lowest index; kept
elements stay in index order. Dense is the pattern 1:1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rtl.errors import ParameterError

__all__ = ["DENSE", "HARDWARE_M", "NmPattern", "Packed"]

HARDWARE_M = (2, 4, 8, 16)
"""Group sizes that the array can select from (its activation bus is as wide as the largest)."""


class Packed(NamedTuple):
    """An N:M operand in packed form.

    values: float16, shape (groups, n, columns).
    indices: uint8, same shape; position of each value inside its group, strictly increasing
        along axis 1.
    """

    values: npt.NDArray[np.float16]
    indices: npt.NDArray[np.uint8]


@dataclass(frozen=True, order=True)
class NmPattern:
    """Keep ``n`` of every ``m`` consecutive elements.

    Raises :class:`ParameterError` unless ``1 <= n <= m``.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            nearest = f"{min(max(self.n, 1), max(self.m, 1))}:{max(self.m, 1)}"
            raise ParameterError("pattern", str(self), "N:M needs 1 <= N <= M", nearest)

    @classmethod
    def parse(cls, text: str, parameter: str = "pattern") -> NmPattern:
        """Read ``"dense"`` or ``"N:M"``; raises :class:`ParameterError` naming ``parameter``."""
        if text == "dense":
            return DENSE
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if match is None:
            raise ParameterError(parameter, text, "must be 'dense' or 'N:M', two integers", "2:8")
        n, m = int(match[1]), int(match[2])
        if not 1 <= n <= m:
            nearest = f"{min(max(n, 1), max(m, 1))}:{max(m, 1)}"
            raise ParameterError(parameter, text, "N:M needs 1 <= N <= M", nearest)
        return cls(n, m)

    def __str__(self) -> str:
        return "dense" if self.n == self.m == 1 else f"{self.n}:{self.m}"

    @property
    def is_dense(self) -> bool:
        """True when nothing is pruned."""
        return self.n == self.m

    @property
    def density(self) -> float:
        """Share of elements kept, ``n / m``."""
        return self.n / self.m

    def require_hardware(self, parameter: str = "pattern") -> NmPattern:
        """Return ``self`` if the array can run it (dense, or M in 2, 4, 8, 16 and N <= M/2)."""
        if self == DENSE or (self.m in HARDWARE_M and 2 * self.n <= self.m):
            return self
        m = min(HARDWARE_M, key=lambda legal: abs(legal - self.m))
        nearest = NmPattern(min(self.n, m // 2), m)
        rule = "the array runs dense, or N:M with M in {2, 4, 8, 16} and 1 <= N <= M/2"
        raise ParameterError(parameter, str(self), rule, nearest)

    def groups(self, length: int) -> int:
        """Number of groups that cover ``length`` elements; the last may be padded with zeros."""
        return -(-length // self.m)

    def kept(self, length: int) -> int:
        """Elements that a sum over ``length`` multiplies, zero padding included."""
        return length if self.is_dense else self.groups(length) * self.n

    def _grouped(self, operand: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]:
        """(K, Q) -> (groups, m, Q), zero-padded."""
        k, q = operand.shape
        padded = np.zeros((self.groups(k) * self.m, q), np.float16)
        padded[:k] = operand
        return padded.reshape(self.groups(k), self.m, q)

    def _kept(self, grouped: npt.NDArray[np.float16]) -> npt.NDArray[np.uint8]:
        """Indices of the kept elements, shape (groups, n, Q), increasing along axis 1."""
        magnitude = grouped.view(np.uint16) & np.uint16(0x7FFF)
        # A stable sort of the negated magnitude ranks equal magnitudes by index.
        order = np.argsort(-magnitude.astype(np.int32), axis=1, kind="stable")[:, : self.n]
        return np.sort(order, axis=1).astype(np.uint8)

    def pack(self, operand: npt.NDArray[np.float16]) -> Packed:
        """Prune and pack a (K, Q) float16 operand whose groups run along axis 0."""
        grouped = self._grouped(operand)
        if self == DENSE:
            return Packed(grouped, np.zeros(grouped.shape, np.uint8))
        indices = self._kept(grouped)
        return Packed(np.take_along_axis(grouped, indices.astype(np.intp), axis=1), indices)

    def unpack(self, packed: Packed, length: int) -> npt.NDArray[np.float16]:
        """The way back: (..., groups, n, columns) to (..., length, columns), +0 where pruned.

        What :meth:`pack` returned gives its operand pruned; leading axes are operands of their own.
        Raises :class:`ParameterError` for indices that do not increase along axis -2 or reach
        beyond the group.
        """
        values, indices = packed
        wrong = indices >= self.m
        wrong[..., 1:, :] |= indices[..., 1:, :] <= indices[..., :-1, :]
        if wrong.any():
            rule = f"must increase along the kept elements of a group and stay below M={self.m}"
            raise ParameterError("indices", int(indices[wrong][0]), rule)
        *lead, groups, _, columns = values.shape
        full = np.zeros((*lead, groups, self.m, columns), np.float16)
        np.put_along_axis(full, indices.astype(np.intp), values, axis=-2)
        return full.reshape(*lead, groups * self.m, columns)[..., :length, :]

    def mask(self, operand: npt.NDArray[np.float16]) -> npt.NDArray[np.bool_]:
        """Boolean (K, Q): which elements of a (K, Q) float16 operand stay."""
        k, q = operand.shape
        grouped = self._grouped(operand)
        kept = np.zeros(grouped.shape, bool)
        np.put_along_axis(kept, self._kept(grouped).astype(np.intp), True, axis=1)
        return kept.reshape(-1, q)[:k]


DENSE = NmPattern(1, 1)
"""The dense pattern: every group is one element, and it is kept."""
