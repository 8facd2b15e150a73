"""N:M masks against the shared pattern's own mask and against the rank rule written out."""

import re

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms import apply_mask, nm_mask
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

SPECIAL = np.array(
    [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF,
     0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFE00, 0xFFFF], np.uint16)
"""Zeros, subnormals, ones, largest finite, infinities and NaNs with several payloads."""


def by_rank(column: npt.NDArray[np.float16], pattern: NmPattern) -> list[bool]:
    """Keep i iff fewer than N of its group are larger, or equal and earlier."""
    bits = [int(b) & 0x7FFF for b in column.view(np.uint16)]
    kept = []
    for i, mine in enumerate(bits):
        start = i - i % pattern.m
        group = bits[start : start + pattern.m]
        ahead = sum(b > mine or (b == mine and start + j < i) for j, b in enumerate(group))
        kept.append(ahead < pattern.n)
    return kept


@st.composite
def operands(draw: st.DrawFn) -> tuple[npt.NDArray[np.float16], NmPattern]:
    m = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 16, 17]))
    pattern = NmPattern(draw(st.integers(1, m)), m)
    k, q = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    source = draw(st.sampled_from(["normal", "ties", "special", "bits"]))
    if source == "normal":
        return rng.standard_normal((k, q)).astype(np.float16), pattern
    if source == "ties":
        return rng.integers(-2, 3, (k, q)).astype(np.float16), pattern
    if source == "special":
        return rng.choice(SPECIAL, (k, q)).view(np.float16), pattern
    return rng.integers(0, 2**16, (k, q), np.uint16).view(np.float16), pattern


@settings(max_examples=300)
@given(operands())
def test_mask_equals_the_shared_pattern_and_the_rank_rule_on_both_axes(
    case: tuple[npt.NDArray[np.float16], NmPattern],
) -> None:
    operand, pattern = case
    expected = pattern.mask(operand)
    reference = np.array([by_rank(column.copy(), pattern) for column in operand.T]).T
    np.testing.assert_array_equal(expected, reference)
    tensor = torch.from_numpy(operand)
    np.testing.assert_array_equal(nm_mask(tensor, pattern, 0).numpy(), expected)
    np.testing.assert_array_equal(nm_mask(tensor.T, pattern, 1).numpy(), expected.T)
    np.testing.assert_array_equal(nm_mask(tensor.T.contiguous(), pattern, -1).numpy(), expected.T)


@pytest.mark.parametrize("shape", [(16, 24, 3, 3), (10, 12, 1, 5), (8, 8, 2, 2)])
@pytest.mark.parametrize("pattern", [NmPattern(2, 8), NmPattern(1, 4), NmPattern(3, 5)])
def test_convolution_groups_lie_along_channels_at_one_kernel_position(
    shape: tuple[int, int, int, int], pattern: NmPattern
) -> None:
    weight = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(1)).half()
    outputs, inputs, height, width = shape
    forward, backward = nm_mask(weight, pattern, 1), nm_mask(weight, pattern, 0)
    for y in range(height):
        for x in range(width):
            tap = weight[:, :, y, x].numpy()
            np.testing.assert_array_equal(forward[:, :, y, x].T, pattern.mask(tap.T))
            np.testing.assert_array_equal(backward[:, :, y, x], pattern.mask(tap))
    assert forward.shape == backward.shape == (outputs, inputs, height, width)


def test_wide_types_are_ranked_after_rounding_to_fp16() -> None:
    weight = torch.tensor([1.0, 1.0 + 2.0**-14, 0.5, 65519.0, 1e9, float("inf")])
    mask = nm_mask(weight, NmPattern(1, 3), 0)
    # The first two round to the same FP16, and 1e9 overflows to the Inf that follows it.
    assert mask.tolist() == [True, False, False, False, True, False]
    assert torch.equal(nm_mask(weight.double(), NmPattern(1, 3), 0), mask)


def test_every_full_group_keeps_exactly_n_even_when_all_elements_tie() -> None:
    mask = nm_mask(torch.zeros(4, 24), NmPattern(2, 8), 1)
    assert mask.view(4, 3, 8).sum(-1).eq(2).all()
    assert mask[0].nonzero().flatten().tolist() == [0, 1, 8, 9, 16, 17]


def test_a_short_last_group_is_padded_with_zeros() -> None:
    mask = nm_mask(torch.tensor([3.0, 1.0, 2.0, 4.0, 0.0, 0.0]), NmPattern(3, 4), 0)
    assert mask.tolist() == [True, False, True, True, True, True]


def test_groups_wider_than_a_32_bit_key_still_rank_exactly() -> None:
    weight = torch.zeros(70000)
    weight[[5, 69999]] = float("inf")
    mask = nm_mask(weight, NmPattern(3, 70000), 0)
    assert mask.nonzero().flatten().tolist() == [0, 5, 69999]


def test_dense_and_empty_operands_keep_everything() -> None:
    assert nm_mask(torch.zeros(3, 5), NmPattern(4, 4), 1).all()
    assert nm_mask(torch.zeros(0, 5), NmPattern(1, 4), 0).shape == (0, 5)


def test_apply_mask_removes_pruned_nan_and_inf() -> None:
    operand = torch.tensor([1.0, float("nan"), float("inf"), -2.0])
    kept = apply_mask(operand, torch.tensor([True, False, False, True]))
    assert kept.tolist() == [1.0, 0.0, 0.0, -2.0]


@pytest.mark.parametrize(
    ("operand", "dim", "message"),
    [
        (torch.zeros(4, dtype=torch.int32), 0,
         "operand='torch.int32': masks rank floating-point operands; "
         "nearest legal value: torch.float16"),
        (torch.zeros(4, 4), 2,
         "dim=2: must be an axis of an operand with 2 axes; nearest legal value: 1"),
        (torch.zeros(4, 4), -3,
         "dim=-3: must be an axis of an operand with 2 axes; nearest legal value: -2"),
    ],
)
def test_bad_input_is_named(operand: torch.Tensor, dim: int, message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        nm_mask(operand, NmPattern(2, 4), dim)
