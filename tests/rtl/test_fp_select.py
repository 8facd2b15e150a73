"""The FP32 comparison's RTL against its golden model, and that against plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from amaranth.lib.wiring import Component

from rtl.fp import Compare

Bits = npt.NDArray[np.uint32]
Rng = np.random.Generator

OUTPUTS = ("greater", "maximum", "minimum")


@dataclass(frozen=True)
class OneOutput:
    """The comparison, seen through one of its outputs."""

    output: str

    @property
    def latency(self) -> int:
        return Compare().latency

    def compute(self, a: Bits, b: Bits) -> Bits:
        return np.asarray(getattr(Compare().compute(a, b), self.output), np.uint32)

    def create(self) -> Component:
        return Compare().create()


@pytest.mark.parametrize("output", OUTPUTS)
def test_directed(check: Callable[..., int], specials: Bits, output: str) -> None:
    """Every pair of the special values, in all four combinations of signs."""
    a, b = (grid.ravel() for grid in np.meshgrid(specials, specials, indexing="ij"))
    cases = check(OneOutput(output), a, b)
    print(f"{output}: {cases} directed pairs")
    assert cases == len(specials) ** 2 > 10_000


@pytest.mark.parametrize("output", OUTPUTS)
def test_random(check: Callable[..., int], rng: Rng, specials: Bits, output: str) -> None:
    """Random pairs, pairs a few units apart with either sign, and special values."""
    a, b = rng.integers(0, 1 << 32, (2, 400_000), np.uint32)
    near = a + rng.integers(-2, 3, len(a), np.int64).astype(np.uint32)
    near ^= rng.integers(0, 2, len(a), np.uint32) << np.uint32(31)
    picked = rng.choice(specials, len(a))
    pairs = ((a, b), (a, near), (picked, b), (a, picked))
    cases = sum(check(OneOutput(output), *pair) for pair in pairs)
    print(f"{output}: {cases} random pairs")
    assert cases == 1_600_000


@pytest.mark.parametrize("output", OUTPUTS)
def test_latency(latencies: Callable[..., list[int]], rng: Rng, output: str) -> None:
    """The latency measured is the one that the spec object states."""
    a, b = rng.integers(0, 1 << 32, (2, 1000), np.uint32)
    assert latencies(OneOutput(output), a, b) == [1] == [Compare().latency]


def test_golden_model(specials: Bits) -> None:
    """Against Python's own comparison, where NaN and equal operands follow the stated rule."""
    a, b = (grid.ravel() for grid in np.meshgrid(specials, specials, indexing="ij"))
    greater, maximum, minimum = Compare().compute(a, b)
    x, y = (bits.view(np.float32).astype(object) for bits in (a, b))
    nan = 0x7FC00000
    kinds = set()
    for n in range(len(a)):
        unordered = math.isnan(x[n]) or math.isnan(y[n])
        kinds.add((unordered, x[n] == y[n], a[n] == b[n]))
        assert greater[n] == (x[n] > y[n])
        assert maximum[n] == (nan if unordered else b[n] if x[n] < y[n] else a[n])
        assert minimum[n] == (nan if unordered else b[n] if x[n] > y[n] else a[n])
    assert (False, True, False) in kinds  # the zeros of different sign


def test_golden_model_is_numpys(rng: Rng) -> None:
    """numpy.maximum and numpy.minimum say the same wherever the operands differ in value."""
    a, b = rng.integers(0, 1 << 32, (2, 100_000), np.uint32)
    x, y = a.view(np.float32), b.view(np.float32)
    _, maximum, minimum = Compare().compute(a, b)
    differ = ~(x == y)
    assert np.array_equal(np.maximum(x, y)[differ], maximum.view(np.float32)[differ],
                          equal_nan=True)
    assert np.array_equal(np.minimum(x, y)[differ], minimum.view(np.float32)[differ],
                          equal_nan=True)
