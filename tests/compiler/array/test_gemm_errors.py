"""What :func:`compiler.array.gemm.run_gemm` says to operands and options outside its rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.array.gemm import run_gemm
from rtl.architecture import PRESETS
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern

A, B = np.ones((3, 8), np.float16), np.ones((8, 2), np.float16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": A.astype(np.float32)},
         "A.dtype='float32': must be float16; nearest legal value: float16"),
        ({"b": B[0]}, "B.shape=(2,): must have two dimensions"),
        ({"b": B[:5]}, "B.shape=(5, 2): must have K=8 rows, as A has columns; "
                       "nearest legal value: (8, 2)"),
        ({"a": A[:0]}, "P=0: must be at least 1; nearest legal value: 1"),
        ({"engine": "rlt"}, "--engine='rlt': must be golden or rtl; nearest legal value: rtl"),
        ({"trace": Path("wave.fst")}, "--trace='wave.fst': needs --engine rtl"),
        ({"dataflow": "is"}, "--dataflow='is': must be auto, ws or os; nearest legal value: auto"),
        ({"pattern": NmPattern(3, 4)},
         "pattern='3:4': the array runs dense, or N:M with M in {2, 4, 8, 16} and "
         "1 <= N <= M/2; nearest legal value: 2:4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    arguments = {"a": A, "b": B, "pattern": DENSE, "arch": PRESETS["tiny"], **changes}
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        run_gemm(**arguments)
