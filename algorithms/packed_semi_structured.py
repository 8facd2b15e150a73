"""2:4 operands in the form that torch multiplies on a GPU: semi-structured sparse tensors.

The kept values are the same; what differs is where their places are noted. torch stores, in the
layout of CUTLASS, 16 bits for each 4 groups: two bits for the place of the first kept value of a
group, two for the second. Those words are swizzled for the tensor cores. Both arrays follow from
values and indices by index arithmetic alone, on any device, without going through a dense matrix,
which would lose the place of a kept zero.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensor, SparseSemiStructuredTensorCUTLASS

from algorithms.layers import NmLayer
from algorithms.packed_form import OperandForm
from algorithms.packed_operand import PackedOperand
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

__all__ = ["semi_structured_arrays", "to_semi_structured"]

_PATTERN = NmPattern(2, 4)
_ROWS, _COLUMNS = 32, 64
"""Both sizes of the matrix must be multiples of these."""

_GROUPS = 4
"""Groups whose places share one int16 of metadata."""


def to_semi_structured(
    source: NmLayer | PackedOperand, device: torch.device | str = "cuda", *, backward: bool = False
) -> SparseSemiStructuredTensor:
    """A 2:4 operand as torch's semi-structured tensor, for ``F.linear`` and ``torch.mm``.

    Parameters
    ----------
    source: a packed operand, or a sparse layer, whose operand is then packed.
    device: a CUDA device.
    backward: of a layer, take the operand of BP instead of FF's.

    Returns
    -------
    float16 (rows, columns) of the CUTLASS backend; which GPUs multiply it is up to torch. FF gives
    (C_out, taps x C_in), for a linear layer the weight itself. BP gives (C_in, taps x C_out), for a
    linear layer the weight transposed. Channels are innermost in the columns.

    Raises
    ------
    ParameterError: a device other than CUDA, and what :func:`semi_structured_arrays` refuses.
    """
    place = torch.device(device)
    if place.type != "cuda" or not torch.cuda.is_available():
        rule = "torch multiplies semi-structured tensors on CUDA devices only"
        if place.type == "cuda":
            rule += ", and this machine has none"
        raise ParameterError("device", str(device), rule, None if place.type == "cuda" else "cuda")
    return _tensor(*(array.to(place) for array in semi_structured_arrays(source, backward)))


def semi_structured_arrays(
    source: NmLayer | PackedOperand, backward: bool = False
) -> tuple[Tensor, Tensor]:
    """The two arrays of :func:`to_semi_structured`, on the CPU.

    Returns
    -------
    values: float16 (rows, columns / 2), the kept values in order.
    metadata: int16 (rows, columns / 16), their places in the layout of CUTLASS.

    Raises
    ------
    ParameterError: a pattern other than 2:4, a convolution with groups, or a matrix that the
        tensor cores' tiles do not divide.
    """
    operand = source if isinstance(source, PackedOperand) else _operand(source, backward)
    if operand.pattern != _PATTERN:
        rule = "torch's semi-structured tensors are 2:4"
        raise ParameterError("pattern", str(operand.pattern), rule, _PATTERN)
    if operand.form.groups != 1:
        rule = "must be 1: a semi-structured tensor is one matrix"
        raise ParameterError("groups", operand.form.groups, rule, 1)
    values, indices = operand.values, operand.indices
    rows, groups = values.shape[0], values[0].size // _PATTERN.n
    columns = groups * _PATTERN.m
    if operand.form.depth % _PATTERN.m or rows % _ROWS or columns % _COLUMNS:
        rule = (f"must be whole groups of 4 channels, rows a multiple of {_ROWS} and columns "
                f"(taps x channels) of {_COLUMNS}")
        nearest = -(-rows // _ROWS) * _ROWS, -(-columns // _COLUMNS) * _COLUMNS
        shape = rows, operand.form.taps * operand.form.depth
        raise ParameterError("matrix", shape, rule, nearest)
    places = indices.reshape(rows, -1, _GROUPS, _PATTERN.n).astype(np.uint16)
    nibbles = places[..., 0] | places[..., 1] << 2
    words = np.bitwise_or.reduce(nibbles << np.arange(0, 16, 4, dtype=np.uint16), axis=-1)
    metadata = np.empty(words.size, np.uint16)
    metadata[_swizzled(*words.shape)] = words
    return (torch.from_numpy(values.reshape(rows, -1).copy()),
            torch.from_numpy(metadata.view(np.int16).reshape(words.shape)))


def _operand(layer: NmLayer, backward: bool) -> PackedOperand:
    weight = layer.backward_weight() if backward else layer.forward_weight()
    pattern = layer.pass_patterns()["BP" if backward else "FF"]
    form = OperandForm(tuple(weight.shape), layer.conv_groups, pattern, backward)
    return PackedOperand(form, form.pack(weight))


def _swizzled(rows: int, columns: int) -> np.ndarray[tuple[int, int], np.dtype[np.intp]]:
    """Where each word of the metadata goes, (rows, columns) offsets into the flat result.

    Of every 32 rows, the four that are 8 apart come together. In each 2 x 2 block the two words off
    the diagonal change places. Pairs of columns then lie one after another, all rows of each.
    """
    row, column = np.indices((rows, columns))
    row = row // 32 * 32 + row % 8 * 4 + row % 32 // 8
    moved = column % 2 - row % 2  # 1 up right of the diagonal, -1 down left
    row, column = row + moved, column - moved
    offsets: np.ndarray[tuple[int, int], np.dtype[np.intp]] = (
        column // 2 * (2 * rows) + row * 2 + column % 2)
    return offsets


def _tensor(values: Tensor, metadata: Tensor) -> SparseSemiStructuredTensor:
    shape = torch.Size((values.shape[0], 2 * values.shape[1]))
    tensor: SparseSemiStructuredTensor = SparseSemiStructuredTensorCUTLASS(
        shape, values, metadata, None, None, None)
    return tensor
