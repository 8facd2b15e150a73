"""The FP32 divide and square root unit's RTL against numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rtl.fp import DivideRoot

Bits = npt.NDArray[np.uint32]
Triple = tuple[Bits, Bits, Bits]
Rng = np.random.Generator

KEEP = np.uint32(0x807FFFFF)
"""Sign and fraction."""
MAGNITUDE = np.uint32(0x7FFFFFFF)


def _mixed(rng: Rng, a: Bits, b: Bits) -> Triple:
    """Divisions with a square root now and then: neither may disturb the other."""
    root = (rng.integers(0, 4, len(a)) == 0).astype(np.uint32)
    positive = a & ~((root & rng.integers(0, 2, len(a), np.uint32)) << np.uint32(31))
    return positive, b, root


def uniform(rng: Rng, count: int) -> Triple:
    """Bit patterns drawn uniformly."""
    a, b = rng.integers(0, 1 << 32, (2, count), np.uint32)
    return _mixed(rng, a, b)


def _with_field(rng: Rng, count: int, low: int, high: int) -> tuple[Bits, Bits]:
    """Normal operands whose quotient has an exponent field near ``low`` to ``high``."""
    a, b = rng.integers(0, 1 << 32, (2, count), np.uint32)
    gap = rng.integers(low - 127, high - 126, count)
    field = rng.integers(np.maximum(1, 1 + gap), np.minimum(254, 254 + gap) + 1)
    return (a & KEEP) | (field.astype(np.uint32) << 23), (
        (b & KEEP) | ((field - gap).astype(np.uint32) << 23)
    )


def close(rng: Rng, count: int) -> Triple:
    """Exponents at most 8 apart: every quotient is normal."""
    return _mixed(rng, *_with_field(rng, count, 119, 135))


def boundary(rng: Rng, count: int) -> Triple:
    """Quotients around the smallest normal, all subnormals, and what rounds to zero."""
    return _mixed(rng, *_with_field(rng, count, -28, 2))


def smallest(rng: Rng, count: int) -> Triple:
    """Quotients within a few units in the last place of the smallest normal.

    Only a power of two as the divisor gives one below that rounds up to it.
    """
    _, b, _ = uniform(rng, count)
    b &= np.where(rng.integers(0, 2, count) == 0, KEEP, np.uint32(1 << 31))
    b |= (rng.integers(128, 254, count, np.uint32) << np.uint32(23))
    a = (b.view(np.float32).astype(np.float64) * 2.0**-126).astype(np.float32).view(np.uint32)
    return _mixed(rng, a + rng.integers(-2, 3, count, np.int64).astype(np.uint32), b)


def overflow(rng: Rng, count: int) -> Triple:
    """Quotients around the largest finite value."""
    return _mixed(rng, *_with_field(rng, count, 252, 256))


def tiny(rng: Rng, count: int) -> Triple:
    """A subnormal of any number of leading zeros on either side, or on both."""
    a, b, _ = uniform(rng, count)
    which = rng.integers(0, 3, count)

    def shrink(bits: Bits, where: npt.NDArray[np.bool_]) -> Bits:
        fraction = (bits & np.uint32(0x7FFFFF)) >> rng.integers(0, 23, count, np.uint32)
        return np.where(where, (bits & np.uint32(1 << 31)) | fraction, bits)

    return _mixed(rng, shrink(a, which != 1), shrink(b, which != 0))


def _odd(rng: Rng, width: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Odd numbers of ``width`` bits."""
    top = np.int64(1) << (width - 1)
    return top | rng.integers(0, top) | 1


def _put(frame: Bits, significand: npt.NDArray[np.int64]) -> Bits:
    """Sign and exponent of ``frame``, a significand of 24 bits."""
    return (frame & ~np.uint32(0x7FFFFF)) | (significand & 0x7FFFFF).astype(np.uint32)


def exact(rng: Rng, count: int) -> Triple:
    """Quotients of few bits: exact ones, and ties where they end below 2^-149. Squares."""
    a, b = _with_field(rng, count, -28, 40)
    width = rng.integers(1, 24, count)
    quotient, divisor = _odd(rng, width), _odd(rng, 24 - width)
    product = quotient * divisor
    while (short := product < 1 << 23).any():
        product = np.where(short, product << 1, product)
    a, b = _put(a, product), _put(b, divisor << width)
    square = _odd(rng, rng.integers(1, 13, count)).astype(np.float32) ** 2
    square *= np.exp2(2 * rng.integers(-50, 50, count)).astype(np.float32)
    near = square.view(np.uint32) + rng.integers(-1, 2, count, np.int64).astype(np.uint32)
    root = rng.integers(0, 2, count, np.uint32)
    return np.where(root != 0, near, a), b, root


def hard(rng: Rng, count: int) -> Triple:
    """Quotients as close to the middle between two neighbours as operands allow.

    With m the middle, 25 bits and odd, a * 2^k = m * b + r for a small odd r, k being 24 or 25.
    """
    a, b = _with_field(rng, count, 2, 250)
    divisor = _odd(rng, np.full(count, 24))
    inverse = divisor.copy()  # modulo 2^3; Newton doubles the bits
    for _ in range(4):
        inverse = inverse * (2 - divisor * inverse) & ((1 << 25) - 1)
    rest = 2 * rng.integers(-16, 16, count) + 1
    middle = -rest * inverse & ((1 << 25) - 1)
    low = middle | 1 << 24  # for k = 24
    dividend = np.where(low * divisor < 1 << 48, (low * divisor + rest) >> 24,
                        (middle * divisor + rest) >> 25)
    return _put(a, dividend), _put(b, divisor), np.zeros(count, np.uint32)


KINDS = (uniform, close, boundary, smallest, overflow, tiny, exact, hard)


def test_directed(check: Callable[..., int], specials: Bits) -> None:
    """Every pair of the special values, in all four combinations of signs, and every root."""
    a, b = (grid.ravel() for grid in np.meshgrid(specials, specials, indexing="ij"))
    root = np.zeros_like(a)
    cases = check(DivideRoot(), a, b, root) + check(DivideRoot(), a, b, root + np.uint32(1))
    print(f"divide and root: {cases} directed cases")
    assert cases == 2 * len(specials) ** 2 > 20_000


def test_random(check: Callable[..., int], rng: Rng, specials: Bits) -> None:
    """Millions of divisions and roots, of all kinds, mixed."""
    cases = 0
    for kind in KINDS:
        cases += check(DivideRoot(), *kind(rng, 300_000))
    for swap in (False, True):
        picked, other = rng.choice(specials, 150_000), uniform(rng, 150_000)[1]
        a, b = (other, picked) if swap else (picked, other)
        cases += check(DivideRoot(), *_mixed(rng, a, b))
    print(f"divide and root: {cases} random cases")
    assert cases == 2_700_000


def test_every_root(check: Callable[..., int]) -> None:
    """The roots of all numbers from 1 to 4: those of normal numbers differ in exponent only."""
    cases = 0
    for start in range(0x3F800000, 0x40800000, 1 << 20):
        a = np.arange(start, start + (1 << 20), dtype=np.uint32)
        cases += check(DivideRoot(), a, a, np.ones_like(a))
    assert cases == 1 << 24


def test_latency(latencies: Callable[..., list[int]], rng: Rng) -> None:
    """The latency measured is the one that the spec object states."""
    assert latencies(DivideRoot(), *close(rng, 1000)) == [17] == [DivideRoot().latency]


def test_known_results() -> None:
    """The golden model itself, on results worked out by hand."""
    cases = {
        (0x3F800000, 0x40400000, 0): 0x3EAAAAAB,  # 1/3: 1010...1010|10..., up
        (0x40000000, 0x40400000, 0): 0x3F2AAAAB,
        (0x00000001, 0x40000000, 0): 0x00000000,  # 2^-150: a tie, goes down to zero
        (0x00000003, 0x40000000, 0): 0x00000002,  # 1.5 * 2^-149: a tie, goes up
        (0x00FFFFFF, 0x40000000, 0): 0x00800000,  # the rounding makes it normal
        (0x7F7FFFFF, 0x3F7FFFFF, 0): 0x7F800000,  # overflow is Inf
        (0x00000001, 0x00000001, 0): 0x3F800000,
        (0xBF800000, 0x00000000, 0): 0xFF800000,
        (0x3F800000, 0x80000000, 0): 0xFF800000,
        (0xBF800000, 0x7F800000, 0): 0x80000000,
        (0x00000000, 0x80000000, 0): 0x7FC00000,
        (0x7F800000, 0xFF800000, 0): 0x7FC00000,
        (0xFFC12345, 0x3F800000, 0): 0x7FC00000,
        (0x40000000, 0x7FC00000, 1): 0x3FB504F3,  # 1.0110101000001001111|00110011...
        (0x40800000, 0x00000000, 1): 0x40000000,
        (0x00000001, 0x00000000, 1): 0x1A3504F3,  # sqrt(2^-149) = sqrt(2) * 2^-75
        (0x80000000, 0x00000000, 1): 0x80000000,
        (0x80000001, 0x00000000, 1): 0x7FC00000,
        (0xFF800000, 0x00000000, 1): 0x7FC00000,
        (0x7F800000, 0x00000000, 1): 0x7F800000,
    }
    a, b, root = np.array(list(cases), np.uint32).T
    got = DivideRoot().compute(a.copy(), b.copy(), root)
    assert [hex(bits) for bits in got] == [hex(bits) for bits in cases.values()]


def test_kinds_reach_their_corners(rng: Rng) -> None:
    """The generators make what their names say; without that, the counts would mean little."""
    def quotients(
        kind: Callable[[Rng, int], Triple],
    ) -> tuple[Bits, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Magnitudes of the results of divisions, and of their operands."""
        a, b, root = kind(rng, 200_000)
        bits = DivideRoot().compute(a, b, root) & MAGNITUDE
        x, y = (np.abs(v.view(np.float32)[root == 0].astype(np.float64)) for v in (a, b))
        return bits[root == 0], x, y

    bits, x, y = quotients(smallest)
    assert np.count_nonzero((bits == 0x800000) & (x < y * 2.0**-126)) > 5_000
    bits, x, _ = quotients(boundary)
    assert np.count_nonzero((bits > 0) & (bits < 0x800000)) > 50_000
    assert np.count_nonzero((bits == 0) & (x != 0)) > 1_000
    bits, _, _ = quotients(overflow)
    assert 20_000 < np.count_nonzero(bits == 0x7F800000) < 130_000
    bits, x, y = quotients(exact)
    result = bits.view(np.float32)
    error, half_ulp = np.abs(x / y - result), np.spacing(result).astype(np.float64) / 2
    assert np.count_nonzero((error == 0) & (bits >= 0x800000)) > 20_000
    assert np.count_nonzero((error == half_ulp) & (bits < 0x800000)) > 500
    bits, x, y = quotients(hard)
    result = bits.view(np.float32)
    error, half_ulp = np.abs(x / y - result), np.spacing(result).astype(np.float64) / 2
    assert np.count_nonzero(np.abs(error - half_ulp) < half_ulp * 2.0**-20) > 20_000

    a, _, root = exact(rng, 100_000)
    roots = np.sqrt(a[root != 0].view(np.float32).astype(np.float64))
    even = np.count_nonzero(roots == roots.astype(np.float32))
    assert 10_000 < even < len(roots) - 10_000
