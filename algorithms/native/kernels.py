"""The compiled CPU kernel: N:M masks and pruned weights, each in one pass over memory.

Results equal those of :func:`algorithms.masks.nm_mask_eager` bit for bit, whatever the number of
threads (at most ``torch.get_num_threads()``; they are PyTorch's, and like its own operators do not
outlive a fork). Where no library was built, :func:`available` is false and every other function
raises :class:`RuntimeError`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern

__all__ = ["MAX_M", "available", "mask_into", "prune_into", "supports"]

MAX_M = 255
"""The largest group that the kernel ranks."""

_ABI = 2
_CODES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
_PER_THREAD = 1 << 15
"""Elements below which another thread costs more than it saves."""

_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_SELECT: list[type[Any]] = [_POINTER, _POINTER, *[_SIZE] * 3, *[_INT] * 6]


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library beside this file; ``None`` if there is none that fits."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_select{suffix}")
        if not path.exists():
            continue
        try:
            library = ctypes.CDLL(str(path))
            if library.nm_abi() != _ABI:
                continue
        except (OSError, AttributeError):
            continue
        library.nm_select.argtypes, library.nm_select.restype = _SELECT, None
        return library
    return None


def _loaded() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise RuntimeError("the N:M kernel is not built; 'pip install -e .' needs a C++ compiler")
    return library


def available() -> bool:
    """Whether the kernel was built and can be called on this machine."""
    return _library() is not None


def supports(source: Tensor, pattern: NmPattern, rounding: torch.dtype) -> bool:
    """Whether the kernel is available and ranks ``source`` (once it is contiguous) like this."""
    return (
        type(source) in (Tensor, torch.nn.Parameter)  # a subclass may have no memory of its own
        and source.device.type == "cpu"
        and source.layout is torch.strided
        and not source.is_neg()
        and source.dtype in _CODES
        and rounding in _CODES
        and (pattern.m <= MAX_M or pattern.is_dense)
        and available()
    )


def _threads(units: int, elements: int) -> int:
    """Threads to use: PyTorch's, if there is enough to do."""
    return max(1, min(torch.get_num_threads(), units, elements // _PER_THREAD))


def _check_memory(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        rule = "must have a dtype of " + ", ".join(map(str, dtypes))
        raise ParameterError(f"{name}.dtype", str(tensor.dtype), rule, str(dtypes[-1]))
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        where = f"{tensor.device.type}, {tensor.layout}"
        raise ParameterError(name, where, "must be a strided tensor in CPU memory")
    if tensor.is_neg() or not tensor.is_contiguous():
        raise ParameterError(f"{name}.stride()", tensor.stride(), "must be contiguous")


def _check(source: Tensor, out: Tensor, out_name: str, out_dtype: torch.dtype) -> None:
    """Source and destination that a pointer may be taken of, and that do not half overlap."""
    _check_memory("source", source, tuple(_CODES))
    _check_memory(out_name, out, (out_dtype,))
    if out.numel() != source.numel():
        rule = "must have as many elements as the source"
        raise ParameterError(f"{out_name}.numel()", out.numel(), rule, source.numel())
    start, out_start = source.data_ptr(), out.data_ptr()
    apart = out_start >= start + source.nbytes or start >= out_start + out.nbytes
    if not (apart or (start == out_start and source.dtype == out.dtype)):
        raise ParameterError(out_name, hex(out_start), "must not overlap the source in memory")


def _check_rounding(rounding: torch.dtype) -> None:
    if rounding not in _CODES:
        rule = "must be one of " + ", ".join(map(str, _CODES))
        raise ParameterError("rounding", str(rounding), rule, str(torch.float32))


def _written(out: Tensor) -> None:
    """Tell autograd what it cannot see: memory of ``out`` has changed."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


def _select(
    source: Tensor, out: Tensor, pattern: NmPattern, outer: int, length: int, inner: int,
    rounding: torch.dtype,
) -> None:
    shape = (outer, length, inner)
    if min(shape) < 0 or math.prod(shape) != source.numel():
        rule = f"(outer, length, inner) must hold the source's {source.numel()} elements"
        raise ParameterError("shape", shape, rule)
    if pattern.is_dense:
        pattern = DENSE
    if pattern.m > MAX_M:
        rule = f"the kernel ranks groups of at most {MAX_M}"
        raise ParameterError("pattern", str(pattern), rule, f"{min(pattern.n, MAX_M)}:{MAX_M}")
    library = _loaded()
    if not source.numel():
        return
    library.nm_select(
        source.data_ptr(), out.data_ptr(), *shape, pattern.n, pattern.m, _CODES[source.dtype],
        _CODES[rounding], out.dtype == torch.bool,
        _threads(outer * pattern.groups(length), source.numel()),
    )
    _written(out)


def mask_into(
    source: Tensor, mask: Tensor, pattern: NmPattern, outer: int, length: int, inner: int,
    rounding: torch.dtype,
) -> None:
    """Write to ``mask`` which elements of ``source`` the pattern keeps.

    Parameters are those of :func:`prune_into`, except for ``mask``: bool, contiguous, as many
    elements as the source. Errors are the same as well.
    """
    _check(source, mask, "mask", torch.bool)
    _check_rounding(rounding)
    _select(source, mask, pattern, outer, length, inner, rounding)


def prune_into(
    source: Tensor, out: Tensor, pattern: NmPattern, outer: int, length: int, inner: int,
    rounding: torch.dtype,
) -> None:
    """Write to ``out`` the rounded ``source`` where the pattern keeps it, and +0 elsewhere.

    Parameters
    ----------
    source: float32, float16 or bfloat16 on the CPU, contiguous, read as (outer, length, inner).
    out: float32 on the CPU, contiguous, as many elements; it may be a float32 source itself.
    pattern: dense, or any N:M with M <= 255. Groups run along ``length``; a short last group is
        padded with zeros.
    outer, length, inner: axes before, along and after the groups. A convolution weight
        (g * C_o, C_i, kh, kw) is (g * C_o, C_i, kh * kw) in FF and (g, C_o, C_i * kh * kw) in BP.
    rounding: float16, bfloat16 or float32, to nearest even. Elements are ranked by the magnitude
        bits of their rounding, ties go to the lowest index. A pruned NaN or Inf is gone; a kept NaN
        is the canonical one with its sign if rounding or widening the source changed its type.

    Raises
    ------
    ParameterError: wrong dtype, device, memory order, number of elements, axes, pattern or
        rounding, or memory that partly overlaps.
    TypeError: not a tensor.
    RuntimeError: the kernel is not :func:`available`.
    """
    _check(source, out, "out", torch.float32)
    _check_rounding(rounding)
    _select(source, out, pattern, outer, length, inner, rounding)
