"""The selector's RTL against its golden model, and the golden model's own form."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from stream_model import StreamModel, Words

from rtl.errors import ParameterError
from rtl.pattern import DENSE, HARDWARE_M, NmPattern
from rtl.selector import Selector

Entries = tuple[Words, npt.NDArray[np.uint8]]
Build = Callable[[int], StreamModel]

PATTERNS = [NmPattern(n, m) for m in HARDWARE_M for n in range(1, m // 2 + 1)]
PARTS = 5  # 8 entries of 20 bits
MAGNITUDES = (0x0000, 0x0001, 0x3C00)
SPECIAL = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF,
                    0x7C00, 0xFC00, 0x7C01, 0xFC01, 0x7E00, 0xFFFF], np.uint16)


@pytest.fixture(scope="module")
def build() -> Build:
    """A model of each pipeline depth."""
    models: dict[int, StreamModel] = {}

    def model(stages: int) -> StreamModel:
        if stages not in models:
            models[stages] = StreamModel.build(
                Selector(stages).create(), parts=PARTS, A_WORD="entries", PATTERN=1, FREE=1,
                LATENCY=stages,
            )
        return models[stages]

    return model


def entries(ports: npt.NDArray[np.uint32]) -> Entries:
    """Values and indices out of the output port's bits."""
    bits = np.unpackbits(np.ascontiguousarray(ports).view(np.uint8), axis=1, bitorder="little")
    fields = bits.reshape(len(ports), 8, 20)
    values = np.packbits(fields[..., :16], axis=-1, bitorder="little").view(np.uint16)[..., 0]
    return values, np.packbits(fields[..., 16:], axis=-1, bitorder="little")[..., 0]


def compare(model: StreamModel, stages: int, words: Words, patterns: list[NmPattern]) -> int:
    """One pattern a word; returns how many words agree with the golden model: all of them."""
    settings = np.array([p.n | (p.m.bit_length() - 1) << 8 for p in patterns], np.uint32)
    values, indices = entries(model.free(words, settings)[stages:])
    assert len(values) == len(words)
    for pattern in set(patterns):
        mine = np.array([p == pattern for p in patterns])
        expected = Selector(stages).compute(words[mine], pattern)
        wrong = np.flatnonzero(
            (values[mine] != expected[0]).any(1) | (indices[mine] != expected[1]).any(1)
        )
        assert not len(wrong), (
            f"{len(wrong)} of {mine.sum()} words differ at {pattern}; the first:"
            f" {words[mine][wrong[0]]} gave {values[mine][wrong[0]]}, {indices[mine][wrong[0]]}"
        )
    return len(words)


def hard_words(rng: np.random.Generator, count: int) -> Words:
    """Random bits, few distinct values, special values, and one value everywhere."""
    quarter = (count // 4, 16)
    return np.concatenate([
        rng.integers(0, 1 << 16, quarter, np.uint16),
        rng.integers(-2, 3, quarter).astype(np.float16).view(np.uint16),
        rng.choice(SPECIAL, quarter),
        np.repeat(rng.choice(SPECIAL, (count // 4, 1)), 16, axis=1),
    ])


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_random(build: Build, stages: int, rng: np.random.Generator) -> None:
    """Another pattern every cycle, ties and special values: each word by its own pattern."""
    words = rng.permutation(hard_words(rng, 1000 * len(PATTERNS)))
    patterns = [PATTERNS[n] for n in rng.integers(0, len(PATTERNS), len(words))]
    cases = compare(build(stages), stages, words, patterns)
    print(f"selector of {stages} stages: {cases} words")
    assert cases == 1000 * len(PATTERNS)


@pytest.mark.parametrize("m", [2, 4, 8])
def test_exhaustive_orders(build: Build, m: int) -> None:
    """All groups of three magnitudes, so every pattern of ties, in each place of the word."""
    groups = np.array(list(itertools.product(MAGNITUDES, repeat=m)), np.uint16)
    # Alternating signs must not matter.
    groups[:, ::2] |= 0x8000
    lanes = 16 // m
    words = np.stack([np.roll(groups, place, axis=0) for place in range(lanes)], axis=1)
    cases = 0
    for n in range(1, m // 2 + 1):
        cases += compare(build(3), 3, words.reshape(-1, 16), [NmPattern(n, m)] * len(words))
    print(f"selector: {cases * lanes} groups of {m}")
    assert cases == 3**m * (m // 2)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_latency(build: Build, stages: int, rng: np.random.Generator) -> None:
    """Exactly one delay fits the outputs: that of the spec object."""
    words = rng.integers(0, 1 << 16, (200, 16), np.uint16)
    raw = build(stages).free(np.concatenate([words, words[:8]]), np.full(208, 2 | 3 << 8))
    values, _ = entries(raw)
    expected, _ = Selector(stages).compute(words, NmPattern(2, 8))
    fits = [delay for delay in range(8) if np.array_equal(values[delay : delay + 200], expected)]
    assert fits == [stages] == [Selector(stages).latency]


def test_golden_by_hand() -> None:
    """2:8 of one word: largest first place, ties low, index order, zeros behind."""
    word = np.array([[1, 5, 0x8005, 2, 5, 0, 0, 0] + [0] * 6 + [0x8000, 7]], np.uint16)
    values, indices = Selector().compute(word, NmPattern(2, 8))
    assert values.tolist() == [[5, 0x8005, 0, 7, 0, 0, 0, 0]]
    assert indices.tolist() == [[1, 2, 0, 7, 0, 0, 0, 0]]


@pytest.mark.parametrize("pattern", [DENSE, NmPattern(3, 5), NmPattern(3, 4)])
def test_not_a_selection(pattern: NmPattern) -> None:
    with pytest.raises(ParameterError, match=r"^pattern="):
        Selector().compute(np.zeros((1, 16), np.uint16), pattern)


def test_impossible_depth() -> None:
    message = "selector_stages=5: must be 1 to 4; nearest legal value: 4"
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        Selector(5)
