"""The packed chunk format: sizes, the layout word by word, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtl.chunk import LANES, WORD_BYTES, ChunkFormat
from rtl.errors import ParameterError
from rtl.pattern import DENSE, HARDWARE_M, NmPattern

SPARSE = [NmPattern(n, m) for m in HARDWARE_M for n in range(1, m // 2 + 1)]
PATTERNS = [DENSE, *SPARSE]

WORDS = {"dense": 16, "1:2": 10, "1:4": 5, "2:4": 10, "1:8": 3, "2:8": 5, "3:8": 8, "4:8": 10,
         "1:16": 2, "2:16": 3, "3:16": 4, "4:16": 5, "5:16": 7, "6:16": 8, "7:16": 9, "8:16": 10}
"""Index words, four packed rows each, and value words of a chunk."""


def random_bits(rng: np.random.Generator, k: int, q: int) -> np.ndarray[
    tuple[int, int], np.dtype[np.float16]
]:
    """A (K, Q) operand of any bits, NaN included, half of the elements from a few values."""
    bits = rng.integers(0, 1 << 16, (k, q), np.uint16)
    few = rng.choice(np.array([0, 0x8000, 1, 0x3C00, 0xBC00], np.uint16), (k, q))
    return np.where(rng.random((k, q)) < 0.5, bits, few).view(np.float16)


def test_sizes() -> None:
    """Every pattern of the array, counted by hand."""
    assert {str(p): ChunkFormat(p).words for p in PATTERNS} == WORDS
    for pattern in PATTERNS:
        layout = ChunkFormat(pattern)
        assert layout.bytes == layout.words * WORD_BYTES == layout.words * 32
        assert layout.words == layout.index_words + layout.rows
        assert layout.rows == 16 * pattern.density


@pytest.mark.parametrize(("columns", "panels"), [(1, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_panels(columns: int, panels: int) -> None:
    assert ChunkFormat(DENSE).panels(columns) == panels


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@settings(max_examples=25)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_round_trip(pattern: NmPattern, k: int, q: int, seed: int) -> None:
    """Unpacked is what the pattern packs, for whole chunks and for sizes that leave some over."""
    layout = ChunkFormat(pattern)
    operand = random_bits(np.random.default_rng(seed), k, q)
    words = layout.pack(operand)
    chunks, panels = -(-k // LANES), layout.panels(q)
    assert words.dtype == np.uint16
    assert words.shape == (panels, chunks, layout.words, LANES)
    padded = np.zeros((chunks * LANES, panels * LANES), np.float16)
    padded[:k, :q] = operand
    packed, got = pattern.pack(padded), layout.unpack(words)
    shape = (chunks * layout.rows, 1, panels * LANES)
    assert got.values.dtype == np.float16
    assert got.indices.dtype == np.uint8
    assert np.array_equal(got.values.view(np.uint16), packed.values.view(np.uint16).reshape(shape))
    assert np.array_equal(got.indices, packed.indices.reshape(shape))


@pytest.mark.parametrize("pattern", SPARSE, ids=str)
def test_layout(pattern: NmPattern, rng: np.random.Generator) -> None:
    """Where each value and each index bit of one chunk lies, read one by one."""
    layout = ChunkFormat(pattern)
    operand = random_bits(rng, LANES, LANES)
    words = layout.pack(operand)[0, 0]
    packed = pattern.pack(operand)
    numbers = [int.from_bytes(word.astype("<u2").tobytes(), "little") for word in words]
    indices, values = numbers[: layout.index_words], numbers[layout.index_words :]
    expected = packed.values.view(np.uint16).reshape(layout.rows, LANES)
    for row, number in enumerate(values):
        assert [number >> 16 * lane & 0xFFFF for lane in range(LANES)] == expected[row].tolist()
    read = [[indices[row // 4] >> 64 * (row % 4) + 4 * lane & 0xF for lane in range(LANES)]
            for row in range(4 * layout.index_words)]
    assert read[: layout.rows] == packed.indices.reshape(layout.rows, LANES).tolist()
    assert not any(map(any, read[layout.rows :])), "rows that are not there have index 0"


def test_dense_is_plain(rng: np.random.Generator) -> None:
    """A dense panel is the matrix's own rows."""
    operand = random_bits(rng, 32, 16)
    words = ChunkFormat(DENSE).pack(operand)
    assert np.array_equal(words.reshape(32, 16), operand.view(np.uint16))


@pytest.mark.parametrize("pattern", [NmPattern(3, 4), NmPattern(2, 6), NmPattern(2, 2)], ids=str)
def test_pattern_for_other_hardware(pattern: NmPattern) -> None:
    with pytest.raises(ParameterError, match="the array runs dense, or N:M"):
        ChunkFormat(pattern)
