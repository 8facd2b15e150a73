"""N:M selection and packing against the rule written out, and the messages for bad patterns."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtl.errors import ParameterError
from rtl.pattern import DENSE, HARDWARE_M, NmPattern

Half = npt.NDArray[np.float16]

SPECIAL = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x3C00, 0xBC00, 0x7BFF, 0x7C00, 0xFC00,
                    0x7C01, 0x7E00, 0xFFFF], np.uint16)


@st.composite
def operands(draw: st.DrawFn) -> tuple[Half, NmPattern]:
    """A (K, Q) operand with a legal pattern; often with ties, zeros, Inf and NaN."""
    m = draw(st.integers(1, 17))
    pattern = NmPattern(draw(st.integers(1, m)), m)
    k, q = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    source = draw(st.sampled_from(["normal", "ties", "special", "bits"]))
    if source == "normal":
        return rng.standard_normal((k, q)).astype(np.float16), pattern
    if source == "ties":
        return rng.integers(-2, 3, (k, q)).astype(np.float16), pattern
    if source == "special":
        return rng.choice(SPECIAL, (k, q)).view(np.float16), pattern
    return rng.integers(0, 2**16, (k, q), np.uint16).view(np.float16), pattern


def selected(group: list[int], n: int) -> list[int]:
    """Indices kept of a group of FP16 bits: rule 6 of the numerics contract, literally."""
    kept: list[int] = []
    for _ in range(n):
        left = [i for i in range(len(group)) if i not in kept]
        largest = max(group[i] & 0x7FFF for i in left)
        kept.append(min(i for i in left if group[i] & 0x7FFF == largest))
    return sorted(kept)


@settings(max_examples=400)
@given(operands())
def test_pack_and_mask(case: tuple[Half, NmPattern]) -> None:
    """Values, indices and mask of every group, padding included."""
    operand, pattern = case
    bits = operand.view(np.uint16)
    k, q = operand.shape
    packed, mask = pattern.pack(operand), pattern.mask(operand)
    assert packed.values.dtype == np.float16
    assert packed.indices.dtype == np.uint8
    assert packed.values.shape == packed.indices.shape == (pattern.groups(k), pattern.n, q)
    assert mask.shape == operand.shape
    for column in range(q):
        for g in range(pattern.groups(k)):
            here = range(g * pattern.m, (g + 1) * pattern.m)
            group = [int(bits[i, column]) if i < k else 0 for i in here]
            kept = selected(group, pattern.n)
            assert packed.indices[g, :, column].tolist() == kept
            values = packed.values[g, :, column].view(np.uint16).tolist()
            assert values == [group[i] for i in kept]
            expected = [i in kept for i in range(pattern.m)][: k - here.start]
            assert mask[here.start : here.stop, column].tolist() == expected


@given(st.integers(1, 64), st.data())
def test_text_round_trip(m: int, data: st.DataObject) -> None:
    """``str`` and ``parse`` are inverse, density and groups follow."""
    pattern = NmPattern(data.draw(st.integers(1, m)), m)
    assert NmPattern.parse(str(pattern)) == pattern
    assert pattern.density == pattern.n / m
    assert pattern.is_dense == (pattern.n == m)
    length = data.draw(st.integers(0, 1000))
    assert (pattern.groups(length) - 1) * m < length <= pattern.groups(length) * m


def test_dense() -> None:
    """Dense is 1:1, has a name, and keeps everything."""
    assert NmPattern.parse("dense") == DENSE == NmPattern(1, 1)
    assert str(DENSE) == "dense"
    operand = np.arange(6, dtype=np.float16).reshape(3, 2)
    assert DENSE.pack(operand).values.reshape(3, 2).tolist() == operand.tolist()
    assert DENSE.mask(operand).all()


def test_hardware_patterns() -> None:
    """Exactly dense and N <= M/2 with M in 2, 4, 8, 16 run on the array."""
    for m in range(1, 20):
        for n in range(1, m + 1):
            pattern = NmPattern(n, m)
            if pattern == DENSE or (m in HARDWARE_M and n <= m // 2):
                assert pattern.require_hardware() is pattern
            else:
                with pytest.raises(ParameterError) as failure:
                    pattern.require_hardware("--pattern")
                assert failure.value.parameter == "--pattern"
                nearest = failure.value.nearest
                assert isinstance(nearest, NmPattern)
                nearest.require_hardware()  # the suggestion is itself legal


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2-8", "--pattern='2-8': must be 'dense' or 'N:M', two integers; "
                "nearest legal value: 2:8"),
        ("", "--pattern='': must be 'dense' or 'N:M', two integers; nearest legal value: 2:8"),
        ("-1:4", "--pattern='-1:4': must be 'dense' or 'N:M', two integers; "
                 "nearest legal value: 2:8"),
        ("9:8", "--pattern='9:8': N:M needs 1 <= N <= M; nearest legal value: 8:8"),
        ("0:8", "--pattern='0:8': N:M needs 1 <= N <= M; nearest legal value: 1:8"),
        ("0:0", "--pattern='0:0': N:M needs 1 <= N <= M; nearest legal value: 1:1"),
    ],
)
def test_unreadable(text: str, message: str) -> None:
    """One line with parameter, value, rule and the nearest legal value."""
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        NmPattern.parse(text, "--pattern")


@pytest.mark.parametrize(
    ("n", "m", "message"),
    [
        (3, 2, "pattern='3:2': N:M needs 1 <= N <= M; nearest legal value: 2:2"),
        (0, 4, "pattern='0:4': N:M needs 1 <= N <= M; nearest legal value: 1:4"),
    ],
)
def test_impossible(n: int, m: int, message: str) -> None:
    """The constructor refuses what ``parse`` refuses."""
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        NmPattern(n, m)


def test_not_for_this_array() -> None:
    """A legal pattern that the array cannot run."""
    message = ("pattern='3:5': the array runs dense, or N:M with M in {2, 4, 8, 16} and "
               "1 <= N <= M/2; nearest legal value: 2:4")
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        NmPattern(3, 5).require_hardware()
