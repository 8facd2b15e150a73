"""The converters' RTL against numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rtl.fp import Narrow, Widen

Rng = np.random.Generator


def neighbourhoods() -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """Binary32 bits around every binary16 value and around every midpoint of two, both signs."""
    values = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    overflow = 65536.0  # the value that +Inf's bits would have
    midpoints = (values + np.append(values[1:], overflow)) / 2
    centres = np.concatenate([values, midpoints]).astype(np.float32).view(np.uint32)
    steps = np.arange(-3, 4, dtype=np.int64)
    near = np.maximum(centres.astype(np.int64)[:, None] + steps, 0).ravel().astype(np.uint32)
    return np.concatenate([near, near | np.uint32(1 << 31)])


def test_narrow_rounding(check: Callable[..., int]) -> None:
    """What FP16 rounding must decide about: values, midpoints, and the neighbours of both."""
    cases = check(Narrow(), neighbourhoods())
    print(f"narrow: {cases} values at rounding boundaries")
    assert cases == 2 * 2 * 0x7C00 * 7


def test_narrow_random(check: Callable[..., int], rng: Rng) -> None:
    """A million random bit patterns, a million within FP16's range, and the special ones."""
    anything = rng.integers(0, 1 << 32, 1_000_000, np.uint32)
    exponents = rng.integers(127 - 27, 127 + 18, 1_000_000, np.uint32) << np.uint32(23)
    inside = (rng.integers(0, 1 << 32, 1_000_000, np.uint32) & np.uint32(0x807FFFFF)) | exponents
    special = np.array([0x0, 0x1, 0x7FFFFF, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000,
                        0x7FFFFFFF], np.uint32)
    cases = check(Narrow(), np.concatenate([anything, inside, special, special | (1 << 31)]))
    print(f"narrow: {cases} random and special values")
    assert cases == 2_000_016


def test_widen_exhaustive(check: Callable[..., int]) -> None:
    """All binary16 bit patterns."""
    cases = check(Widen(), np.arange(1 << 16, dtype=np.uint16))
    print(f"widen: {cases} values")
    assert cases == 1 << 16


def test_latencies(latencies: Callable[..., list[int]], rng: Rng) -> None:
    """The latencies measured are those that the spec objects state."""
    words = rng.integers(0, 1 << 32, 1000, np.uint32)
    assert latencies(Narrow(), words) == [Narrow().latency]
    assert latencies(Widen(), words.astype(np.uint16)) == [Widen().latency]
