"""The golden model against a scalar reference that spells the contract out."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern
from sim import golden

Half = npt.NDArray[np.float16]


def scalar_gemm(a: Half, b: Half, pattern: NmPattern) -> npt.NDArray[np.uint32]:
    """One element, one product, one addition at a time; pruned positions are skipped."""
    mask = pattern.mask(b)
    c = np.zeros((a.shape[0], b.shape[1]), np.float32)
    with np.errstate(all="ignore"):
        for p, q in np.ndindex(c.shape):
            total = np.float32(0)
            for k in range(a.shape[1]):
                if mask[k, q]:
                    total = total + np.float32(a[p, k]) * np.float32(b[k, q])
            c[p, q] = total
    return np.where(np.isnan(c), np.uint32(0x7FC00000), c.view(np.uint32))


def halves(rows: st.SearchStrategy[int], cols: st.SearchStrategy[int]) -> st.SearchStrategy[Half]:
    """Any FP16 bits at all."""
    shapes = st.tuples(rows, cols)
    return hnp.arrays(np.uint16, shapes).map(lambda bits: bits.view(np.float16))


@settings(max_examples=150)
@given(data=st.data(), k=st.integers(1, 20),
       pattern=st.sampled_from(["dense", "1:2", "2:4", "2:8", "3:8", "1:16"]))
def test_equals_the_scalar_reference_on_any_bits(data: st.DataObject, k: int, pattern: str) -> None:
    a = data.draw(halves(st.integers(1, 4), st.just(k)))
    b = data.draw(halves(st.just(k), st.integers(1, 4)))
    chosen = NmPattern.parse(pattern)
    got = golden.gemm(a, b, chosen).view(np.uint32)
    np.testing.assert_array_equal(got, scalar_gemm(a, b, chosen))


def test_blocks_do_not_change_a_bit() -> None:
    """A result larger than one cache block equals its corner computed alone."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((300, 40)).astype(np.float16)
    b = rng.standard_normal((40, 260)).astype(np.float16)
    for pattern in (DENSE, NmPattern(2, 8)):
        whole = golden.gemm(a, b, pattern)
        corner = golden.gemm(a[-7:], b[:, -5:], pattern)
        np.testing.assert_array_equal(whole[-7:, -5:].view(np.uint32), corner.view(np.uint32))


def test_products_are_exact_and_sums_stay_clear_of_fp32_subnormals() -> None:
    """Contract, rules 1 and 2: every partial sum from +0 is a multiple of 2^-48."""
    rng = np.random.default_rng(1)
    a = rng.integers(0, 0x7C00, (40, 1), np.uint16).view(np.float16)
    b = rng.integers(0, 0x7C00, (1, 40), np.uint16).view(np.float16)
    c = golden.gemm(a, b)
    for p, q in np.ndindex(c.shape):
        exact = Fraction(float(a[p, 0])) * Fraction(float(b[0, q]))
        assert Fraction(float(c[p, q])) == exact
        assert (exact * 2**48).denominator == 1


def test_order_is_increasing_k() -> None:
    """2^24 + 1 - 2^24 is 0 in order, 1 in any order that cancels first."""
    a = np.array([[4096.0, 1.0, -4096.0]], np.float16)
    b = np.array([[4096.0], [1.0], [4096.0]], np.float16)
    assert golden.gemm(a, b)[0, 0] == 0.0
    assert golden.gemm(a[:, [0, 2, 1]], b[[0, 2, 1]])[0, 0] == 1.0


def test_nothing_leaks_from_pruned_positions() -> None:
    a = np.array([[1.0, np.nan, np.inf, 2.0]], np.float16)
    b = np.array([[3.0], [0.5], [-0.25], [4.0]], np.float16)
    assert golden.gemm(a, b, NmPattern(2, 4))[0, 0] == 11.0


@pytest.mark.parametrize(("pattern", "index", "most"), [("2:8", 8, 7), ("dense", 1, 0)])
def test_an_index_outside_its_group_is_refused(pattern: str, index: int, most: int) -> None:
    chosen = NmPattern.parse(pattern)
    packed = chosen.pack(np.ones((16, 3), np.float16))
    packed.indices[1, 0, 2] = index
    with pytest.raises(ParameterError, match=f"^indices={index}: must be below the M of {pattern}; "
                                             f"nearest legal value: {most}$"):
        golden.accumulate(np.ones((2, 16), np.float16), packed, chosen)


def test_nan_is_canonical() -> None:
    a = np.array([[0xFE01, 0x3C00]], np.uint16).view(np.float16)
    b = np.array([[0x3C00], [0x3C00]], np.uint16).view(np.float16)
    assert golden.gemm(a, b).view(np.uint32)[0, 0] == 0x7FC00000


@pytest.mark.parametrize("pattern", [DENSE, NmPattern(2, 8)], ids=str)
def test_error_against_fp64_is_that_of_fp32_accumulation(pattern: NmPattern) -> None:
    rng = np.random.default_rng(2)
    a = rng.standard_normal((30, 512)).astype(np.float16)
    b = rng.standard_normal((512, 20)).astype(np.float16)
    yardstick = golden.Yardstick.of(a, b, pattern)
    error = yardstick.error(golden.gemm(a, b, pattern))
    assert 0 < error < 512 * 2.0**-24
    assert yardstick.error(yardstick.exact) == 0.0
