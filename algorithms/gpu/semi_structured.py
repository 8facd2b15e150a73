"""Products with the weight of a linear layer, on sparse tensor cores where it is 2:4.

GPUs from compute capability 8.0 on multiply a matrix that is 2:4 along the axis of the sum at up to
twice the dense rate, in float16 and bfloat16: operands of precision ``native``. torch does it
through cuSPARSELt, or through CUTLASS on GPUs of capability 8.x. All other products are dense ones
of the masked operand. Both sum in float32 and round once, in their own order; what a sparse product
leaves out are terms of a pruned weight, which only an Inf or NaN of the other operand could show.

The compressed operand lives as long as the operand that it was made of, and is made anew when that
one changes.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import MutableMapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
)
from torch.utils.weak import WeakTensorKeyDictionary

from rtl.pattern import NmPattern

__all__ = ["Backend", "Product", "backend_of", "input_gradient", "linear", "route"]

Backend = Literal["cusparselt", "cutlass"]

_PATTERN = NmPattern(2, 4)
_DTYPES = (torch.float16, torch.bfloat16)
_LEAST_CAPABILITY = (8, 0)
_CUTLASS_MAJOR = 8
"""torch compiles its CUTLASS kernels for GPUs of this generation only."""

_ALIGNMENT: dict[Backend, tuple[int, int]] = {"cusparselt": (16, 16), "cutlass": (32, 64)}
"""What the rows and columns of the sparse matrix must be multiples of; torch pads the other."""

_PROTOTYPE = "The PyTorch API of SparseSemiStructuredTensor is in prototype stage"


class Product(NamedTuple):
    """A product with a matrix that is N:M along the axis of the sum.

    pattern: of the matrix. dtype: of both operands. rows, depth: of the matrix, ``depth`` is summed
    over: (C_out, C_in) in FF, (C_in, C_out) in BP. vectors: rows of the other operand.
    """

    pattern: NmPattern
    dtype: torch.dtype
    rows: int
    depth: int
    vectors: int


def backend_of(capability: tuple[int, int], cusparselt: bool) -> Backend | None:
    """What multiplies 2:4 matrices on a GPU, given whether torch has cuSPARSELt."""
    if capability < _LEAST_CAPABILITY:
        return None
    if cusparselt:
        return "cusparselt"
    return "cutlass" if capability[0] == _CUTLASS_MAJOR else None


def route(product: Product, backend: Backend | None) -> Backend | None:
    """What runs the product; ``None`` for a dense one."""
    if backend is None or product.pattern != _PATTERN or product.dtype not in _DTYPES:
        return None
    rows, depth = _ALIGNMENT[backend]
    whole = product.rows % rows == 0 and product.depth % depth == 0
    return backend if whole and min(product[2:]) > 0 else None


def linear(x: Tensor, weight: Tensor, pattern: NmPattern, bias: Tensor | None) -> Tensor:
    """``F.linear(x, weight, bias)`` in FF, for a weight that is ``pattern`` along C_in.

    x: (..., C_in). weight: (C_out, C_in), +0 where pruned. bias: (C_out,) or none. All of one
    dtype, which the result (..., C_out) has as well.
    """
    outputs, inputs = weight.shape
    product = Product(pattern, weight.dtype, outputs, inputs, x.numel() // max(inputs, 1))
    sparse = _sparse(weight, product, x, transposed=False)
    if sparse is None:
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = (torch.mm(rows, sparse.t()) if bias is None
           else torch.addmm(bias, rows, sparse.t()))
    return out.reshape(*x.shape[:-1], -1).contiguous()


def input_gradient(dy: Tensor, weight: Tensor, pattern: NmPattern) -> Tensor:
    """``dy @ weight`` in BP, for a weight that is ``pattern`` along C_out.

    dy: (rows, C_out). weight: (C_out, C_in), +0 where pruned. Both of one dtype, which the result
    (rows, C_in) has as well.
    """
    outputs, inputs = weight.shape
    product = Product(pattern, weight.dtype, inputs, outputs, dy.shape[0])
    sparse = _sparse(weight, product, dy, transposed=True)
    return dy @ weight if sparse is None else torch.mm(dy.contiguous(), sparse.t()).contiguous()


class _Compressed(NamedTuple):
    """A compressed operand, and the version of the operand that it holds."""

    version: int
    tensor: Tensor


_compressed: MutableMapping[Tensor, dict[bool, _Compressed]] = WeakTensorKeyDictionary()


def _sparse(weight: Tensor, product: Product, other: Tensor, transposed: bool) -> Tensor | None:
    """The compressed weight, or its transpose; ``None`` if the product is to be dense."""
    if product.pattern != _PATTERN or other.dtype != weight.dtype or weight.is_inference():
        return None
    backend = route(product, _backend(weight.device))
    if backend is None or not _works(backend, weight.device, weight.dtype):
        return None
    held = _compressed.setdefault(weight, {})
    if transposed not in held or held[transposed].version != weight._version:
        matrix = weight.t() if transposed else weight
        held[transposed] = _Compressed(weight._version, _compress(matrix.contiguous(), backend))
    return held[transposed].tensor


@functools.cache
def _backend(device: torch.device) -> Backend | None:
    """What multiplies 2:4 matrices on ``device``."""
    if device.type != "cuda" or torch.version.cuda is None:  # ROCm calls its devices cuda
        return None
    return backend_of(torch.cuda.get_device_capability(device),
                      torch.backends.cusparselt.is_available())


@functools.cache
def _works(backend: Backend, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a small product is right: a library may be older than the GPU."""
    one = torch.eye(64, dtype=dtype, device=device)
    try:
        return torch.equal(torch.mm(one, _compress(one, backend).t()), one)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        warnings.warn(f"2:4 products on {device} are dense ones, since {backend} failed: {error}",
                      stacklevel=2)
        return False


def _compress(matrix: Tensor, backend: Backend) -> Tensor:
    """A contiguous (rows, depth) matrix that is 2:4 along its rows, as torch multiplies it."""
    # Left to inference mode, the copy could not serve a later training step.
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", _PROTOTYPE, UserWarning)
        made: SparseSemiStructuredTensor
        if backend == "cusparselt":
            made = SparseSemiStructuredTensorCUSPARSELT.from_dense(matrix)
        else:
            made = SparseSemiStructuredTensorCUTLASS.from_dense(matrix)
    return made
