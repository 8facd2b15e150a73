"""What a layer computes in: FP16 operands as the accelerator has, or whatever the model uses."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rtl.errors import ParameterError, closest

__all__ = [
    "PRECISIONS",
    "Precision",
    "check_precision",
    "compute_dtype",
    "held",
    "rounded",
    "rounding",
]

Precision = Literal["fp16", "native"]

PRECISIONS: tuple[Precision, ...] = ("fp16", "native")
"""``"fp16"``: operands are rounded to FP16, products and sums are FP32, results are float32: the
accelerator's numerics, on any device. ``"native"``: operands, sums and results are what the plain
layer would have, the type of its input or of autocast."""


def check_precision(precision: str) -> Precision:
    """``precision`` if it is one; raises :class:`ParameterError` otherwise."""
    for legal in PRECISIONS:
        if precision == legal:
            return legal
    rule = f"must be one of {', '.join(PRECISIONS)}"
    raise ParameterError("precision", precision, rule, closest(str(precision), PRECISIONS))


def compute_dtype(dtype: torch.dtype, precision: Precision) -> torch.dtype:
    """Dtype of operands and result for an input of ``dtype``."""
    return torch.float32 if precision == "fp16" else dtype


def rounding(dtype: torch.dtype, precision: Precision) -> torch.dtype:
    """Dtype to whose values the operands are rounded, for an input of ``dtype``."""
    return torch.float16 if precision == "fp16" else dtype


def held(tensor: Tensor, precision: Precision) -> Tensor:
    """What of an operand outlasts the pass: its FP16 values, in half the memory of float32."""
    return tensor if precision == "native" else tensor.to(torch.float16)


def rounded(tensor: Tensor, precision: Precision) -> Tensor:
    """An activation or gradient as a GEMM reads it: rounded, in the compute dtype."""
    return tensor if precision == "native" else held(tensor, precision).float()
