"""A whole weight tensor in packed chunks: sizes, places and the exact way back."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtl.chunk import LANES, ChunkFormat
from rtl.errors import ParameterError
from rtl.packed_matrix import PackedMatrix
from rtl.pattern import DENSE, NmPattern, Packed

PATTERNS = [DENSE, *(NmPattern(*nm) for nm in ((1, 2), (1, 4), (2, 4), (1, 8), (2, 8), (2, 16)))]
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40))


def weights(sizes: tuple[int, int, int], seed: int) -> np.ndarray[
    tuple[int, int, int], np.dtype[np.float16]
]:
    """Any bits, NaN included, half of the elements from a few values that tie."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 1 << 16, sizes, np.uint16)
    few = rng.choice(np.array([0, 0x8000, 1, 0x3C00, 0xBC00], np.uint16), sizes)
    return np.where(rng.random(sizes) < 0.5, bits, few).view(np.float16)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@settings(max_examples=15)
@given(SIZES, st.integers(0, 2**32 - 1))
def test_unpacked_is_the_masked_tensor(
    pattern: NmPattern, backward: bool, sizes: tuple[int, int, int], seed: int
) -> None:
    """Bit for bit, and packing it again gives the same words."""
    matrix, array = PackedMatrix(*sizes, pattern, backward), weights(sizes, seed)
    words = matrix.pack(array)
    assert words.dtype == np.uint16
    assert words.shape == matrix.shape
    assert words.size == matrix.words * LANES
    taps = [tap.T if backward else tap for tap in array]
    kept = [np.where(pattern.mask(tap), tap.view(np.uint16), np.uint16(0)) for tap in taps]
    expected = np.stack([tap.T if backward else tap for tap in kept])
    got = matrix.unpack(words)
    assert got.shape == sizes
    np.testing.assert_array_equal(np.ascontiguousarray(got).view(np.uint16), expected)
    np.testing.assert_array_equal(matrix.pack(got), words)


@pytest.mark.parametrize("backward", [False, True])
def test_every_chunk_is_where_it_says(backward: bool) -> None:
    """A chunk is that of 16 x 16 weights of one tap, and BP packs their transpose."""
    pattern, array = NmPattern(2, 8), weights((4, 40, 24), 1)
    matrix = PackedMatrix(4, 40, 24, pattern, backward)
    lines = matrix.pack(array).reshape(-1, LANES)
    full = np.zeros((4, 48, 32), np.float16)
    full[:, :40, :24] = array
    for tap in range(4):
        rows = full[tap].T if backward else full[tap]
        for chunk in range(matrix.tap_chunks):
            for panel in range(matrix.panels):
                block = rows[16 * chunk : 16 * chunk + 16, 16 * panel : 16 * panel + 16]
                expected = ChunkFormat(pattern).pack(np.ascontiguousarray(block))[0, 0]
                first = matrix.chunk_word(panel, tap, chunk)
                np.testing.assert_array_equal(lines[first : first + len(expected)], expected)


def test_logical_form_leaves_out_what_only_pads() -> None:
    matrix = PackedMatrix(2, 20, 5, NmPattern(2, 8))
    array = weights((2, 20, 5), 3)
    packed = matrix.packed(matrix.pack(array))
    assert packed.values.shape == packed.indices.shape == (2, 3, 2, 5)
    for tap in range(2):
        expected = matrix.pattern.pack(array[tap])
        np.testing.assert_array_equal(packed.indices[tap], expected.indices)
        np.testing.assert_array_equal(np.ascontiguousarray(packed.values[tap]).view(np.uint16),
                                      expected.values.view(np.uint16))


@pytest.mark.parametrize("pattern", [NmPattern(3, 5), NmPattern(4, 4), NmPattern(7, 32)], ids=str)
def test_any_pattern_unpacks_what_it_packed(pattern: NmPattern) -> None:
    operand = weights((1, 43, 7), 4)[0]
    kept = np.where(pattern.mask(operand), operand.view(np.uint16), np.uint16(0))
    got = pattern.unpack(pattern.pack(operand), 43)
    np.testing.assert_array_equal(np.ascontiguousarray(got).view(np.uint16), kept)


@pytest.mark.parametrize(("indices", "value"), [([3, 4], 4), ([2, 2], 2), ([2, 1], 1)])
def test_indices_that_no_pruning_gives(indices: list[int], value: int) -> None:
    packed = Packed(np.ones((1, 2, 1), np.float16), np.array(indices, np.uint8).reshape(1, 2, 1))
    message = f"indices={value}: must increase along the kept elements of a group and stay below M"
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}=4$"):
        NmPattern(2, 4).unpack(packed, 4)


def test_bad_input_is_named() -> None:
    with pytest.raises(ParameterError, match=r"^pattern='3:5': .*; nearest legal value: 2:4$"):
        PackedMatrix(1, 16, 16, NmPattern(3, 5))
    matrix = PackedMatrix(1, 16, 16, NmPattern(2, 8))
    message = (r"^words=\(1, 2, 5, 16\): must be the shape of packed words "
               r"\(panels, chunks, words, 16\); nearest legal value: \(1, 1, 5, 16\)$")
    with pytest.raises(ParameterError, match=message):
        matrix.unpack(np.zeros((1, 2, 5, 16), np.uint16))
