"""Reading matrices that the user brings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from rtl.errors import ParameterError

__all__ = ["load_operands"]


def _load(parameter: str, path: Path) -> npt.NDArray[np.float16]:
    if not path.is_file():
        raise ParameterError(parameter, str(path), "no such file")
    try:
        matrix = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError):
        matrix = None
    if not isinstance(matrix, np.ndarray):
        raise ParameterError(parameter, str(path), "is not a .npy file that can be read")
    # A file from a machine of the other byte order holds the same numbers.
    if matrix.dtype.newbyteorder("=") != np.float16:
        rule = f"must hold float16; it holds {matrix.dtype}"
        raise ParameterError(parameter, str(path), rule, "array.astype(numpy.float16)")
    if matrix.ndim != 2:
        rule = f"must have two dimensions; it has shape {matrix.shape}"
        raise ParameterError(parameter, str(path), rule)
    if 0 in matrix.shape:
        rule = f"must have at least one row and one column; it has shape {matrix.shape}"
        raise ParameterError(parameter, str(path), rule)
    return np.ascontiguousarray(matrix, np.float16)


def load_operands(
    a: Path, b: Path
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """A (P, K) and B (K, Q) from ``.npy`` files; nothing in them is executed.

    Raises :class:`ParameterError` for a file that is missing or not a float16 matrix, and for
    matrices that cannot be multiplied.
    """
    left, right = _load("A", a), _load("B", b)
    if left.shape[1] != right.shape[0]:
        rule = f"must have K={left.shape[1]} rows, as A has columns; it has shape {right.shape}"
        raise ParameterError("B", str(b), rule, f"shape ({left.shape[1]}, {right.shape[1]})")
    return left, right
