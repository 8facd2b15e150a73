"""The FP32 adder's RTL against numpy, for every pipeline depth."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from rtl.architecture import Architecture
from rtl.errors import ParameterError
from rtl.fp import Adder

Bits = npt.NDArray[np.uint32]
Pair = tuple[Bits, Bits]
Rng = np.random.Generator

DEPTHS = (2, 3, 4, 5)
SIGN = np.uint32(1 << 31)

DIRECTED = np.array(
    [0x00000000, 0x00000001, 0x00000002, 0x00000003, 0x003FFFFF, 0x00400000, 0x007FFFFE,
     0x007FFFFF, 0x00800000, 0x00800001, 0x00FFFFFF, 0x01000000, 0x01000001, 0x33800000,
     0x33800001, 0x33FFFFFF, 0x34000000, 0x34000001, 0x3F7FFFFF, 0x3F800000, 0x3F800001,
     0x3F800002, 0x3FFFFFFF, 0x40000000, 0x4B000000, 0x4B7FFFFF, 0x4B800000, 0x72FFFFFF,
     0x73000000, 0x73000001, 0x7E800000, 0x7F000000, 0x7F7FFFFE, 0x7F7FFFFF, 0x7F800000,
     0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FC12345, 0x7FFFFFFF], np.uint32)
"""Zero, both ends of the subnormals, ulps and half ulps of 1, overflow's edge, Inf, NaNs."""


def uniform(rng: Rng, count: int) -> Pair:
    """Bit patterns drawn uniformly: mostly far-apart exponents."""
    a, b = rng.integers(0, 1 << 32, (2, count), np.uint32)
    return a, b


def close(rng: Rng, count: int) -> Pair:
    """Exponents at most 27 apart: the smaller operand still reaches the rounding."""
    a, b = uniform(rng, count)
    exponent = (a >> 23 & 0xFF).astype(np.int32) + rng.integers(-27, 28, count, np.int32)
    field = np.clip(exponent, 0, 254).astype(np.uint32) << np.uint32(23)
    return a, (b & np.uint32(0x807FFFFF)) | field


def cancelling(rng: Rng, count: int) -> Pair:
    """x + (-x + a few units in the last place): long normalising shifts, and exact zeros."""
    a, _ = uniform(rng, count)
    b = (a ^ SIGN) + rng.integers(-4, 5, count, np.int64).astype(np.uint32)
    return a, b


def tiny(rng: Rng, count: int) -> Pair:
    """Subnormals and the smallest normals: exponent fields 0 to 3."""
    a, b = uniform(rng, count)
    field = rng.integers(0, 4, (2, count), np.uint32) << np.uint32(23)
    return (a & np.uint32(0x807FFFFF)) | field[0], (b & np.uint32(0x807FFFFF)) | field[1]


def ties(rng: Rng, count: int) -> Pair:
    """Sparse fractions: sums that lie halfway, and fractions of ones that carry all the way."""
    ends = np.array([0, 1, 2, 3, 0x400000, 0x7FFFFC, 0x7FFFFD, 0x7FFFFE, 0x7FFFFF], np.uint32)
    a, b = close(rng, count)
    fractions = rng.choice(ends, (2, count)) ^ (
        np.uint32(1) << rng.integers(0, 23, (2, count), np.uint32)
    ) * rng.integers(0, 2, (2, count), np.uint32)
    return (a & np.uint32(0xFF800000)) | fractions[0], (b & np.uint32(0xFF800000)) | fractions[1]


def special(rng: Rng, count: int) -> Pair:
    """One operand from the directed list."""
    a, b = uniform(rng, count)
    return rng.choice(DIRECTED, count) | (a & SIGN), b


def sums(rng: Rng, count: int) -> Pair:
    """What the array adds: a running sum and an exact product of two binary16."""
    halves = rng.standard_normal((3, count)).astype(np.float16).astype(np.float32)
    total = (halves[2] * rng.choice(np.array([1, 30, 1000], np.float32), count))
    return (halves[0] * halves[1]).view(np.uint32), total.astype(np.float32).view(np.uint32)


KINDS = (uniform, close, cancelling, tiny, ties, special, sums)


@pytest.mark.parametrize("stages", DEPTHS)
def test_directed(check: Callable[..., int], stages: int) -> None:
    """Every pair of the special values, in all four combinations of signs."""
    values = np.concatenate([DIRECTED, DIRECTED | SIGN])
    a, b = (grid.ravel() for grid in np.meshgrid(values, values, indexing="ij"))
    cases = check(Adder(stages), a, b)
    print(f"adder of {stages} stages: {cases} directed pairs")
    assert cases == (2 * len(DIRECTED)) ** 2


@pytest.mark.parametrize("stages", DEPTHS)
def test_random(check: Callable[..., int], rng: Rng, stages: int) -> None:
    """Over a million pairs, of all kinds, in both operand orders."""
    cases = 0
    for kind in KINDS:
        a, b = kind(rng, 150_000)
        half = len(a) // 2
        swapped = np.concatenate([a[:half], b[half:]]), np.concatenate([b[:half], a[half:]])
        cases += check(Adder(stages), *swapped)
    print(f"adder of {stages} stages: {cases} random pairs")
    assert cases >= 1_000_000


def test_default_depth_on_ten_million(check: Callable[..., int], rng: Rng) -> None:
    """The depth that every preset uses, on 10^7 pairs and more, of all kinds."""
    adder = Adder(Architecture.make().adder_stages)
    cases = sum(check(adder, *kind(rng, 1_500_000)) for kind in KINDS)
    print(f"adder of {adder.stages} stages: {cases} pairs")
    assert cases >= 10_000_000


@pytest.mark.parametrize("stages", DEPTHS)
def test_latency(latencies: Callable[..., list[int]], rng: Rng, stages: int) -> None:
    """The latency measured is the one that the spec object states."""
    assert latencies(Adder(stages), *close(rng, 1000)) == [stages] == [Adder(stages).latency]


def test_kinds_reach_their_corners(rng: Rng) -> None:
    """The generators make what their names say; without that, the counts would mean little."""
    def fields(kind: Callable[[Rng, int], Pair]) -> tuple[Bits, Bits, Bits]:
        a, b = kind(rng, 100_000)
        return a, b, Adder().compute(a, b)

    magnitude = np.uint32(0x7FFFFFFF)
    assert np.count_nonzero((fields(cancelling)[2] & magnitude) == 0) > 5_000
    assert np.count_nonzero((fields(tiny)[2] & magnitude) < 0x800000) > 5_000
    a, b, total = (bits.view(np.float32) for bits in fields(ties))
    safe = np.abs(total) < 1e38  # the largest binade has no ulp in numpy's terms
    exact = a[safe].astype(np.float64) + b[safe].astype(np.float64)
    error = np.abs(exact - total[safe])
    half_ulp = np.spacing(np.abs(total[safe])).astype(np.float64) / 2
    assert np.count_nonzero(error == half_ulp) > 1_000


def test_illegal_depth() -> None:
    """A pipeline depth without a design is refused with the nearest legal one."""
    rule = "adder_stages=7: must be 2 to 5; nearest legal value: 5"
    with pytest.raises(ParameterError, match=f"^{re.escape(rule)}$"):
        Adder(7)
