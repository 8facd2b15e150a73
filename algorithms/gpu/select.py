"""N:M selection on a GPU: weights pruned and packed in one read of memory, along one axis or both.

Masks equal those of :func:`algorithms.masks.nm_mask_eager` and values those of
:func:`algorithms.native.kernels.prune_into`, bit for bit. The kernels are in Triton, which is
imported when the first GPU tensor asks for it; :func:`available` says whether that works. Under
Triton's interpreter (``TRITON_INTERPRET=1`` in the environment) the same kernels take CPU tensors.
"""

from __future__ import annotations

import functools
import math
import os
from types import ModuleType

import torch
from torch import Tensor

from algorithms.gpu.launch import CODES, PackedTensors, View, both_axes, fuses, one_axis
from rtl.errors import ParameterError
from rtl.pattern import HARDWARE_M, NmPattern

__all__ = ["PackedTensors", "View", "available", "both_views", "pack", "pack_both", "prune",
           "prune_both", "supports"]


@functools.cache
def _kernels() -> ModuleType | None:
    """The Triton kernels; ``None`` where Triton cannot be imported."""
    try:
        from algorithms.gpu import kernels
    except ImportError:
        return None
    return kernels


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def available(tensor: Tensor) -> bool:
    """Whether kernels can be launched on the tensor: it is on a GPU, and Triton is installed."""
    return tensor.is_cuda and _kernels() is not None


def supports(
    source: Tensor, pattern: NmPattern, rounding: torch.dtype, dtype: torch.dtype
) -> bool:
    """Whether :func:`prune` and :func:`pack` are available for ``source`` and take it as it is."""
    return (
        type(source) in (Tensor, torch.nn.Parameter)  # a subclass may have no memory of its own
        and available(source)
        and not _refusal(source, pattern, rounding, dtype)
    )


def _refusal(
    source: Tensor, pattern: NmPattern, rounding: torch.dtype, dtype: torch.dtype
) -> tuple[str, object, str] | None:
    """Parameter, value and rule of what the kernels do not take."""
    types = "must be one of " + ", ".join(map(str, CODES))
    if source.dtype not in CODES:
        return "source.dtype", str(source.dtype), types
    if source.layout is not torch.strided or source.is_neg() or not source.is_contiguous():
        return "source", str(source.layout), "must be a contiguous tensor"
    if pattern.m not in HARDWARE_M or pattern.is_dense:
        return "pattern", str(pattern), f"must prune, and M be one of {HARDWARE_M}"
    if rounding not in CODES:
        return "rounding", str(rounding), types
    if dtype not in CODES:
        return "dtype", str(dtype), types
    return None


def _launcher(
    source: Tensor, pattern: NmPattern, sizes: tuple[int, ...], rounding: torch.dtype,
    dtype: torch.dtype,
) -> ModuleType:
    """The kernels, once it is sure that they take all this."""
    refusal = _refusal(source, pattern, rounding, dtype)
    if refusal is not None:
        raise ParameterError(*refusal)
    if min(sizes) < 0 or math.prod(sizes) != source.numel():
        rule = f"must hold the source's {source.numel()} elements"
        raise ParameterError("sizes", sizes, rule)
    kernels = _kernels()
    if kernels is None:
        raise RuntimeError("N:M selection on a GPU needs the package 'triton'")
    if not (source.is_cuda or _interpreted()):
        raise ParameterError("source", str(source.device), "must be on a GPU", "cuda")
    return kernels


def _empty_packed(
    source: Tensor, pattern: NmPattern, view: View, rounding: torch.dtype
) -> PackedTensors:
    shape = view.outer, view.inner, pattern.groups(view.length), pattern.n
    return PackedTensors(source.new_empty(shape, dtype=rounding),
                         source.new_empty(shape, dtype=torch.uint8))


def prune(
    source: Tensor, pattern: NmPattern, view: View, rounding: torch.dtype, dtype: torch.dtype
) -> Tensor:
    """The rounded ``source`` where the pattern keeps it, +0 elsewhere; one read of memory.

    Parameters
    ----------
    source: float16, bfloat16 or float32 on a GPU, contiguous.
    pattern: N:M with M of 2, 4, 8 or 16. Groups run along ``view.length``; a short last group is
        padded with zeros.
    view: how ``source`` is read.
    rounding, dtype: float16, bfloat16 or float32. Elements are rounded to ``rounding``, ranked by
        the magnitude bits of that (ties to the lowest index, NaN above Inf), and written as
        ``dtype``. A kept NaN is the canonical one with its sign if either step changed its type.

    Returns
    -------
    ``dtype``, the source's shape, contiguous.

    Raises
    ------
    ParameterError: a source, pattern, view or type that is none of these.
    RuntimeError: Triton cannot be imported.
    """
    kernels = _launcher(source, pattern, view, rounding, dtype)
    out = torch.empty_like(source, dtype=dtype)
    one_axis(kernels, source, pattern, view, rounding, out, None)
    return out


def pack(
    source: Tensor, pattern: NmPattern, view: View, rounding: torch.dtype
) -> PackedTensors:
    """``source`` pruned and packed; parameters and errors are those of :func:`prune`."""
    kernels = _launcher(source, pattern, view, rounding, rounding)
    packed = _empty_packed(source, pattern, view, rounding)
    one_axis(kernels, source, pattern, view, rounding, None, packed)
    return packed


def both_views(shape: tuple[int, ...], groups: int) -> tuple[View, View]:
    """How FF and BP read a weight (C_out, C_in / groups, *kernel) of so many convolution groups."""
    outputs, inputs, *kernel = shape
    taps = math.prod(kernel)
    return (View(outputs, inputs, taps),
            View(groups, outputs // groups, inputs * taps))


def prune_both(
    weight: Tensor, pattern: NmPattern, groups: int, rounding: torch.dtype, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The operands of FF (groups along C_in) and BP (along C_out) from one read of the weight.

    ``weight`` is (C_out, C_in / groups, *kernel) with ``groups`` convolution groups, between which
    no N:M group reaches. The rest, and what is raised, is as in :func:`prune`. Weights whose
    kernels do not fit a tile are read twice.
    """
    views = both_views(weight.shape, groups)
    kernels = _launcher(weight, pattern, views[1], rounding, dtype)
    if not fuses(weight.shape, pattern):
        return (prune(weight, pattern, views[0], rounding, dtype),
                prune(weight, pattern, views[1], rounding, dtype))
    out = torch.empty_like(weight, dtype=dtype), torch.empty_like(weight, dtype=dtype)
    both_axes(kernels, weight, pattern, groups, rounding, out, None)
    return out


def pack_both(
    weight: Tensor, pattern: NmPattern, groups: int, rounding: torch.dtype
) -> tuple[PackedTensors, PackedTensors]:
    """Both operands of :func:`prune_both` in packed form."""
    views = both_views(weight.shape, groups)
    kernels = _launcher(weight, pattern, views[1], rounding, rounding)
    if not fuses(weight.shape, pattern):
        return pack(weight, pattern, views[0], rounding), pack(weight, pattern, views[1], rounding)
    packed = (_empty_packed(weight, pattern, views[0], rounding),
              _empty_packed(weight, pattern, views[1], rounding))
    both_axes(kernels, weight, pattern, groups, rounding, None, packed)
    return packed
