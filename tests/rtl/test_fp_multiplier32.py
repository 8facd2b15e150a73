"""The FP32 multiplier's RTL against numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rtl.fp import Multiplier32

Bits = npt.NDArray[np.uint32]
Pair = tuple[Bits, Bits]
Rng = np.random.Generator

KEEP = np.uint32(0x807FFFFF)
"""Sign and fraction."""


def uniform(rng: Rng, count: int) -> Pair:
    """Bit patterns drawn uniformly: every class of operand, and half the products out of range."""
    a, b = rng.integers(0, 1 << 32, (2, count), np.uint32)
    return a, b


def _with_total(rng: Rng, count: int, low: int, high: int) -> Pair:
    """Normal operands whose product has an exponent field near ``low`` to ``high``."""
    a, b = uniform(rng, count)
    total = rng.integers(low + 127, high + 128, count)
    field = rng.integers(np.maximum(1, total - 254), np.minimum(254, total - 1) + 1)
    return (a & KEEP) | (field.astype(np.uint32) << np.uint32(23)), (
        (b & KEEP) | ((total - field).astype(np.uint32) << np.uint32(23))
    )


def close(rng: Rng, count: int) -> Pair:
    """Both operands within 8 binades of 1: every product is normal."""
    a, b = uniform(rng, count)
    field = rng.integers(119, 136, (2, count), np.uint32) << np.uint32(23)
    return (a & KEEP) | field[0], (b & KEEP) | field[1]


def boundary(rng: Rng, count: int) -> Pair:
    """Products around the smallest normal, all subnormals, and what rounds to zero."""
    return _with_total(rng, count, -28, 2)


def smallest(rng: Rng, count: int) -> Pair:
    """Products within a few units in the last place of the smallest normal."""
    a, _ = uniform(rng, count)
    a = (a & KEEP) | (rng.integers(1, 126, count, np.uint32) << np.uint32(23))
    b = (2.0**-126 / a.view(np.float32).astype(np.float64)).astype(np.float32).view(np.uint32)
    return a, b + rng.integers(-2, 3, count, np.int64).astype(np.uint32)


def overflow(rng: Rng, count: int) -> Pair:
    """Products around the largest finite value."""
    return _with_total(rng, count, 252, 256)


def tiny(rng: Rng, count: int) -> Pair:
    """A subnormal of any number of leading zeros times anything."""
    a, b = uniform(rng, count)
    fraction = (a & np.uint32(0x7FFFFF)) >> rng.integers(0, 23, count, np.uint32)
    return (a & np.uint32(1 << 31)) | fraction, b


def _odd(rng: Rng, width: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Odd numbers of ``width`` bits, moved up to 24."""
    top = np.int64(1) << (width - 1)
    return (top | rng.integers(0, top) | 1) << (24 - width)


def ties(rng: Rng, count: int) -> Pair:
    """Exact products of 25 bits and a one at the end, and short ones that end below 2^-149."""
    left = rng.integers(1, 25, count)
    right = np.where(rng.integers(0, 2, count) == 0, 25 - left, rng.integers(1, 26 - left))
    right = np.minimum(right, 24)

    def put(frame: Bits, significand: npt.NDArray[np.int64]) -> Bits:
        return (frame & ~np.uint32(0x7FFFFF)) | (significand & 0x7FFFFF).astype(np.uint32)

    a, b = _with_total(rng, count, -28, 40)
    return put(a, _odd(rng, left)), put(b, _odd(rng, right))


KINDS = (uniform, close, boundary, smallest, overflow, tiny, ties)


def test_directed(check: Callable[..., int], specials: Bits) -> None:
    """Every pair of the special values, in all four combinations of signs."""
    a, b = (grid.ravel() for grid in np.meshgrid(specials, specials, indexing="ij"))
    cases = check(Multiplier32(), a, b)
    print(f"multiplier32: {cases} directed pairs")
    assert cases == len(specials) ** 2 > 10_000


def test_random(check: Callable[..., int], rng: Rng, specials: Bits) -> None:
    """Millions of pairs, of all kinds, in both operand orders."""
    cases = 0
    for kind in KINDS:
        a, b = kind(rng, 400_000)
        half = len(a) // 2
        swapped = np.concatenate([a[:half], b[half:]]), np.concatenate([b[:half], a[half:]])
        cases += check(Multiplier32(), *swapped)
    cases += check(Multiplier32(), rng.choice(specials, 400_000), uniform(rng, 400_000)[1])
    print(f"multiplier32: {cases} random pairs")
    assert cases == 3_200_000


def test_latency(latencies: Callable[..., list[int]], rng: Rng) -> None:
    """The latency measured is the one that the spec object states."""
    assert latencies(Multiplier32(), *close(rng, 1000)) == [4] == [Multiplier32().latency]


def test_known_products() -> None:
    """The golden model itself, on products worked out by hand."""
    pairs = {
        (0x3F800001, 0x3F800001): 0x3F800002,  # (1 + u)^2 = 1 + 2u + u^2
        (0x3FC00000, 0x3F800001): 0x3FC00002,  # 1.5 + 1.5u: a tie, goes up to even
        (0x3FC00000, 0x3F800003): 0x3FC00004,  # 1.5 + 4.5u: a tie, goes down to even
        (0x00000001, 0x3F000000): 0x00000000,  # 2^-150: a tie, goes down to zero
        (0x00000003, 0x3F000000): 0x00000002,  # 1.5 * 2^-149: a tie, goes up
        (0x00FFFFFF, 0x3F000000): 0x00800000,  # the rounding makes it normal
        (0x7F7FFFFF, 0x3F800001): 0x7F800000,  # overflow is Inf
        (0xFF800000, 0x00000001): 0xFF800000,
        (0x7F800000, 0x80000000): 0x7FC00000,  # Inf * 0
        (0xFFC12345, 0x3F800000): 0x7FC00000,  # any NaN comes out canonical
        (0x80000000, 0x3F800000): 0x80000000,
    }
    a, b = np.array(list(pairs), np.uint32).T
    got = Multiplier32().compute(a.copy(), b.copy())
    assert [hex(bits) for bits in got] == [hex(bits) for bits in pairs.values()]


def test_kinds_reach_their_corners(rng: Rng) -> None:
    """The generators make what their names say; without that, the counts would mean little."""
    def fields(kind: Callable[[Rng, int], Pair]) -> tuple[Bits, npt.NDArray[np.float64]]:
        a, b = kind(rng, 100_000)
        x, y = a.view(np.float32).astype(np.float64), b.view(np.float32).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            exact = x * y  # 48 bits fit
        return Multiplier32().compute(a, b) & np.uint32(0x7FFFFFFF), exact

    bits, exact = fields(smallest)
    assert np.count_nonzero((bits == 0x800000) & (np.abs(exact) < 2.0**-126)) > 5_000
    bits, exact = fields(boundary)
    assert np.count_nonzero((bits > 0) & (bits < 0x800000)) > 50_000
    assert np.count_nonzero((bits == 0) & (exact != 0)) > 1_000
    bits, _ = fields(overflow)
    assert 20_000 < np.count_nonzero(bits == 0x7F800000) < 80_000
    bits, exact = fields(ties)
    error = np.abs(np.abs(exact) - bits.view(np.float32))
    half_ulp = np.spacing(bits.view(np.float32)).astype(np.float64) / 2
    assert np.count_nonzero((error == half_ulp) & (bits >= 0x800000)) > 10_000
    assert np.count_nonzero((error == half_ulp) & (bits < 0x800000)) > 500
