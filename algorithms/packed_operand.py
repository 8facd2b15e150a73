"""One weight operand in packed form: the values that N:M pruning keeps, and their places."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from algorithms.packed_form import OperandForm
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern, Packed

__all__ = ["PackedOperand"]

Half = npt.NDArray[np.float16]
Element = TypeVar("Element", bound=np.generic)


def _readonly(array: npt.NDArray[Element]) -> npt.NDArray[Element]:
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, eq=False)
class PackedOperand:
    """The weight operand of one pass of one layer.

    Parameters
    ----------
    form: shape, pattern and layout.
    arrays: what :attr:`algorithms.packed_form.OperandForm.arrays` names, as CPU tensors.

    Raises
    ------
    ParameterError: arrays of other types or shapes, or indices that no pruning gives.
    """

    form: OperandForm
    arrays: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrays", MappingProxyType(dict(self.arrays)))
        expected = self.form.arrays
        if set(self.arrays) != set(expected):
            raise ParameterError("arrays", sorted(self.arrays), "must be those of the pattern",
                                 sorted(expected))
        for name, (dtype, shape) in expected.items():
            array = self.arrays[name]
            if (array.dtype, tuple(array.shape)) != (dtype, shape):
                rule = f"must be {dtype} of the shape {shape}"
                raise ParameterError(name, f"{array.dtype} {tuple(array.shape)}", rule)
        if self.form.kind != "dense":
            self._whole()  # indices out of range are found now

    @property
    def pattern(self) -> NmPattern:
        """N:M of this operand; :data:`rtl.pattern.DENSE` for a dense pass."""
        return DENSE if self.form.pattern.is_dense else self.form.pattern

    @property
    def words(self) -> npt.NDArray[np.uint16] | None:
        """What the pruning engine writes: uint16 (groups, panels, chunks, words, 16), read-only.

        ``words[0]`` of a layer without convolution groups is what
        :meth:`rtl.packed_matrix.PackedMatrix.pack` returns. ``None`` for a dense pass and for a
        pattern that the chip does not run.
        """
        return _readonly(self.arrays["words"].numpy()) if self.form.kind == "words" else None

    @property
    def values(self) -> Half:
        """The kept values, float16 of the form's ``logical_shape``, read-only."""
        return _readonly(self._logical().values)

    @property
    def indices(self) -> npt.NDArray[np.uint8]:
        """Place of each value in its group of M, uint8 of the same shape, read-only."""
        return _readonly(self._logical().indices)

    def dense(self) -> Tensor:
        """A new float16 tensor of the weight's shape, +0 where pruned."""
        return torch.from_numpy(self._whole().copy())

    @property
    def nbytes(self) -> int:
        """Bytes that the operand takes in memory and in the file, padding included."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def compression(self) -> float:
        """How many times smaller than the dense FP16 weight; below 1 if padding outweighs it."""
        return 2 * math.prod(self.form.shape) / self.nbytes

    def _logical(self) -> Packed:
        form = self.form
        if form.kind == "indices":
            return Packed(self.arrays["values"].numpy(), self.arrays["indices"].numpy())
        if form.kind == "dense":
            return form.logical(form.grouped(form.split(self.arrays["dense"].numpy())))
        groups = [form.matrix.packed(words) for words in self.arrays["words"].numpy()]
        return form.logical(Packed(np.stack([group.values for group in groups]),
                                   np.stack([group.indices for group in groups])))

    def _whole(self) -> Half:
        form = self.form
        if form.kind == "dense":
            whole: Half = self.arrays["dense"].numpy()
            return whole
        if form.kind == "indices":
            return form.dense(self._logical())
        words = self.arrays["words"].numpy()
        return form.join(np.stack([form.matrix.unpack(group) for group in words]))
