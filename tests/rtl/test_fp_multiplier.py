"""The FP16 multiplier's RTL against its golden model; slow: all pairs of finite values."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from rtl.fp import Multiplier

FINITE = 0x7C00
"""Finite non-negative binary16 values: the bit patterns below +Inf."""

DIRECTED = np.array(
    [0x0000, 0x0001, 0x0002, 0x0003, 0x01FF, 0x0200, 0x03FE, 0x03FF,  # zero and subnormals
     0x0400, 0x0401, 0x07FF, 0x0800, 0x3BFF, 0x3C00, 0x3C01, 0x7BFE, 0x7BFF,  # up to 65504
     0x7C00, 0x7C01, 0x7D55, 0x7DFF, 0x7E00, 0x7E01, 0x7FFF],  # Inf, NaN with payloads
    np.uint16)


def test_directed(check: Callable[..., int]) -> None:
    """Every pair of the special values, in all four combinations of signs."""
    values = np.concatenate([DIRECTED, DIRECTED | 0x8000])
    a, b = (grid.ravel() for grid in np.meshgrid(values, values, indexing="ij"))
    cases = check(Multiplier(), a, b)
    print(f"multiplier: {cases} directed pairs")
    assert cases == (2 * len(DIRECTED)) ** 2


def test_known_products() -> None:
    """The golden model itself, on products worked out by hand."""
    pairs = {
        (0x0001, 0x0001): 0x27800000,  # (2^-24)^2 = 2^-48
        (0x7BFF, 0x7BFF): 0x4F7FC004,  # 65504^2 = 4290774016
        (0x8000, 0x3C00): 0x80000000,  # -0 * 1 = -0
        (0x8000, 0x8000): 0x00000000,
        (0x7C00, 0x8000): 0x7FC00000,  # Inf * 0
        (0xFC00, 0x0001): 0xFF800000,
        (0xFD55, 0x3C00): 0x7FC00000,  # any NaN comes out canonical
    }
    a, b = np.array(list(pairs), np.uint16).T
    got = Multiplier().compute(a.copy(), b.copy())
    assert [hex(bits) for bits in got] == [hex(bits) for bits in pairs.values()]


def test_random(check: Callable[..., int], rng: np.random.Generator) -> None:
    """A million pairs of random bits, and as many with one subnormal or special operand."""
    a, b = rng.integers(0, 1 << 16, (2, 1_000_000), np.uint16)
    few = np.concatenate([DIRECTED, np.arange(0x0400, dtype=np.uint16)])
    special = rng.choice(few, 1_000_000) | rng.choice(np.array([0, 0x8000], np.uint16), 1_000_000)
    cases = check(Multiplier(), a, b) + check(Multiplier(), special, b)
    print(f"multiplier: {cases} random pairs")
    assert cases == 2_000_000


def test_latency(latencies: Callable[..., list[int]], rng: np.random.Generator) -> None:
    """The latency measured is the one that the spec object states."""
    a, b = rng.integers(0, 1 << 16, (2, 1000), np.uint16)
    assert latencies(Multiplier(), a, b) == [Multiplier().latency]


@pytest.mark.slow
def test_all_finite_pairs(native: Callable[..., Any]) -> None:
    """Every pair of finite values up to sign, against float multiplication in C++."""
    unit = native(Multiplier())
    jobs = len(os.sched_getaffinity(0))
    edges = np.linspace(0, FINITE, jobs + 1).astype(int)
    pairs, mismatches = unit.products(list(pairwise(edges)))
    print(f"multiplier: {pairs} pairs compared, {mismatches} mismatches")
    assert (pairs, mismatches) == (FINITE**2, 0)
