"""GEMMs on the RTL: every result bit against golden, every cycle against the model."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from compiler.array.gemm import run_gemm, run_mapping
from compiler.array.mapping import GemmShape, Mapping, mappings
from rtl.architecture import PRESETS, Architecture
from rtl.pattern import DENSE, HARDWARE_M, NmPattern
from sim import golden
from sim.engine import RtlEngine

Half = npt.NDArray[np.float16]

TINY = PRESETS["tiny"]
PATTERNS = [DENSE, *(NmPattern(n, m) for m in HARDWARE_M for n in range(1, m // 2 + 1))]
# Small buffers force every kind of block; odd sizes are no power of two anywhere.
ARCHITECTURES = {
    "tiny": TINY,
    "blocks": Architecture(name="blocks", rows=4, cols=4, w2e_words=16, n2s_words=64, out_words=64),
    "odd": Architecture(name="odd", rows=3, cols=5, adder_stages=3, w2e_words=100, n2s_words=300),
}


@cache
def engine(name: str) -> RtlEngine:
    return RtlEngine(ARCHITECTURES[name])


def bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    return values.view(np.uint32)


def check(name: str, mapping: Mapping, a: Half, b: Half, stall_seed: int = 0) -> None:
    """Bits equal golden; without stalls also cycles equal the model."""
    c, cycles, nonfinite = run_mapping(mapping, a, b, engine(name), stall_seed=stall_seed)
    want = golden.gemm(a, b, mapping.shape.pattern)
    assert c.size > 0
    np.testing.assert_array_equal(bits(c), bits(want))
    assert nonfinite == (not np.isfinite(want).all())
    if not stall_seed:
        assert cycles == mapping.cycles()


def normal(seed: int, *shape: int) -> Half:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("size", [(9, 7, 21), (1, 1, 1), (5, 6, 1), (18, 4, 33)], ids=str)
def test_every_pattern_and_mapping(pattern: NmPattern, size: tuple[int, int, int]) -> None:
    p, q, k = size
    for seed, mapping in enumerate(mappings(TINY, GemmShape(p, q, k, pattern))):
        check("tiny", mapping, normal(seed, p, k), normal(seed + 100, k, q))


@settings(max_examples=200)
@given(
    name=st.sampled_from(sorted(ARCHITECTURES)), p=st.integers(1, 70), q=st.integers(1, 40),
    k=st.integers(1, 150), pattern=st.sampled_from(PATTERNS), choice=st.integers(0, 4),
    stall_seed=st.one_of(st.just(0), st.integers(1, 2**32 - 1)), seed=st.integers(0, 2**32 - 1),
)
def test_random_shapes_stalls_and_architectures(
    name: str, p: int, q: int, k: int, pattern: NmPattern, choice: int, stall_seed: int, seed: int
) -> None:
    options = list(mappings(ARCHITECTURES[name], GemmShape(p, q, k, pattern)))
    mapping = options[choice % len(options)]
    note(f"{mapping}")
    check(name, mapping, normal(seed, p, k), normal(seed + 1, k, q), stall_seed)


SPECIAL = np.array(
    [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00,
     0xFC00, 0x7E00, 0xFE01, 0x3555, 0xB555],
    np.uint16,
).view(np.float16)


@pytest.mark.parametrize("pattern", ["dense", "2:4", "2:8", "8:16"])
def test_special_values(pattern: str) -> None:
    """Subnormals, signed zeros, infinities, NaN and the largest values, drawn at random."""
    rng = np.random.default_rng(7)
    shape = GemmShape(40, 12, 19, NmPattern.parse(pattern))
    for mapping in mappings(TINY, shape):
        for _ in range(4):
            a, b = (rng.choice(SPECIAL, size) for size in ((shape.p, shape.k), (shape.k, shape.q)))
            check("tiny", mapping, a, b)


def test_cancellation_and_overflow() -> None:
    """Large terms that cancel leave the small ones, in order; 65504^2 sums stay finite in FP32."""
    largest, least = np.float16(65504), np.float16(2.0**-24)
    rows = [[largest, largest, -largest, least], [least, least, least, least],
            [largest] * 4, [-largest, least, largest, least]]
    a = np.array(rows, np.float16)
    b = np.array([[largest, least], [least, largest], [largest, largest], [least, -least]],
                 np.float16)
    for mapping in mappings(TINY, GemmShape(4, 2, 4, DENSE)):
        check("tiny", mapping, a, b)


@pytest.mark.parametrize("lane", [0, 3])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_pruned_positions_do_not_leak(poison: float, lane: int) -> None:
    """A NaN or Inf of A opposite to pruned weights of every column must not show."""
    pattern = NmPattern(2, 8)
    a, b = normal(1, 11, 32), normal(2, 32, 6)
    b[lane::8] = 0.0  # the smallest magnitude of its group: pruned everywhere
    a[:, lane::8] = poison
    clean = np.where(np.isfinite(a), a, np.float16(0))
    want = golden.gemm(clean, b, pattern)
    for mapping in mappings(TINY, GemmShape(11, 6, 32, pattern)):
        c, _, nonfinite = run_mapping(mapping, a, b, engine("tiny"))
        np.testing.assert_array_equal(bits(c), bits(want))
        assert not nonfinite


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_sparse_equals_dense_on_the_masked_operand(pattern: NmPattern) -> None:
    a, b = normal(3, 13, 37), normal(4, 37, 9)
    masked = np.where(pattern.mask(b), b, np.float16(0))
    sparse, _ = run_gemm(a, b, pattern, arch=TINY, engine="rtl")
    dense, _ = run_gemm(a, masked, DENSE, arch=TINY, engine="rtl")
    np.testing.assert_array_equal(bits(sparse), bits(dense))


def test_both_dataflows_give_the_same_bits() -> None:
    a, b = normal(5, 50, 60), normal(6, 60, 30)
    results = [
        run_gemm(a, b, NmPattern(2, 8), arch=TINY, dataflow=dataflow, engine="rtl")[0]
        for dataflow in ("ws", "os")
    ]
    np.testing.assert_array_equal(bits(results[0]), bits(results[1]))
