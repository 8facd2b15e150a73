"""Random operands for the cocotb benches; cocotb seeds ``random`` and prints the seed."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

from rtl.pattern import DENSE, HARDWARE_M, NmPattern

Half = npt.NDArray[np.float16]

SPECIALS = np.array([0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7D01],
                    np.uint16).view(np.float16)
"""Zeros, subnormals, the largest finite values, infinities, a signalling NaN."""

PATTERNS = [DENSE, *(NmPattern(n, m) for m in HARDWARE_M for n in range(1, m // 2 + 1))]
"""All that the array runs."""


def operand(shape: tuple[int, ...], special: float) -> Half:
    """Normally distributed binary16; each element is a special one with probability ``special``."""
    rng = np.random.default_rng(random.getrandbits(32))
    values = rng.standard_normal(shape).astype(np.float16)
    return np.where(rng.random(shape) < special, rng.choice(SPECIALS, shape), values)
