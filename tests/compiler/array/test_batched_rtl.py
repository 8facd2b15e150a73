"""Batches of GEMMs and paired tiles on the RTL: bits against golden, cycles against the model."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from compiler.array.gemm import run_mapping
from compiler.array.layout import build
from compiler.array.mapping import GemmShape, Mapping, best_mapping, mappings
from rtl.architecture import MAX_M, PRESETS, Architecture
from rtl.pattern import DENSE, NmPattern, Packed
from rtl.tile import Tile
from sim import golden
from sim.cycles import Run
from sim.engine import RtlEngine
from sim.worklist import Segment, WorkList

Half = npt.NDArray[np.float16]
Single = npt.NDArray[np.float32]

PATTERNS = [DENSE, NmPattern(2, 8), NmPattern(1, 4)]
# Buffers of the second hold a few blocks only and cut K now and then.
ARCHITECTURES = {
    "tiny": PRESETS["tiny"],
    "odd": Architecture(name="odd", rows=3, cols=5, adder_stages=5, w2e_words=16, n2s_words=160,
                        out_words=64),
}


@cache
def engine(name: str) -> RtlEngine:
    return RtlEngine(ARCHITECTURES[name])


def normal(seed: int, *shape: int) -> Half:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def batched_golden(a: Half, b: Half, pattern: NmPattern) -> Single:
    return np.stack([golden.gemm(*entry, pattern) for entry in zip(a, b, strict=True)])


def check(name: str, mapping: Mapping, seed: int, stall_seed: int = 0) -> None:
    """Bits equal golden, GEMM by GEMM; without stalls also cycles equal the model."""
    shape = mapping.shape
    a = normal(seed, shape.batch, shape.p, shape.k)
    b = normal(seed + 1, shape.batch, shape.k, shape.q)
    c, cycles, nonfinite = run_mapping(mapping, a, b, engine(name), stall_seed=stall_seed)
    want = batched_golden(a, b, shape.pattern)
    assert c.shape == want.shape == (shape.batch, shape.p, shape.q)
    np.testing.assert_array_equal(c.view(np.uint32), want.view(np.uint32))
    assert not nonfinite
    if not stall_seed:
        assert cycles == mapping.cycles()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("size", [(5, 9, 7, 21), (1, 1, 1, 1), (3, 1, 6, 90), (9, 4, 4, 8),
                                  (2, 17, 17, 16)], ids=str)
def test_every_mapping(size: tuple[int, int, int, int], name: str, pattern: NmPattern) -> None:
    batch, p, q, k = size
    shape = GemmShape(p, q, k, pattern, batch)
    for seed, mapping in enumerate(mappings(ARCHITECTURES[name], shape)):
        check(name, mapping, seed)


@settings(max_examples=120)
@given(
    name=st.sampled_from(sorted(ARCHITECTURES)), batch=st.integers(1, 9), p=st.integers(1, 20),
    q=st.integers(1, 20), k=st.integers(1, 80), pattern=st.sampled_from(PATTERNS),
    choice=st.integers(0, 3), stall_seed=st.one_of(st.just(0), st.integers(1, 2**32 - 1)),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_batches(
    name: str, batch: int, p: int, q: int, k: int, pattern: NmPattern, choice: int,
    stall_seed: int, seed: int,
) -> None:
    options = list(mappings(ARCHITECTURES[name], GemmShape(p, q, k, pattern, batch)))
    # Paired half the time.
    mapping = options[-1] if choice >= 2 else options[seed % (len(options) - 1)]
    note(f"{mapping}")
    check(name, mapping, seed, stall_seed)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_small_gemms_leave_no_sum_idle(pattern: NmPattern) -> None:
    """3 x 3 tiles of each GEMM: nine in the time of nine, not of twelve."""
    tiny = ARCHITECTURES["tiny"]
    shape = GemmShape(9, 9, 16, pattern, batch=4)
    passes = shape.groups * pattern.n
    best = best_mapping(tiny, shape)
    assert best.paired
    assert best.cycles() == Run(False, pattern.n, passes, 9).cycles(tiny)
    assert min(
        mapping.cycles() for mapping in mappings(tiny, shape)
        if mapping.dataflow == "os" and not mapping.paired
    ) == Run(False, pattern.n, passes, 12).cycles(tiny)
    check("tiny", best, seed=0)


@settings(max_examples=60)
@given(name=st.sampled_from(sorted(ARCHITECTURES)), seed=st.integers(0, 2**32 - 1),
       pattern=st.sampled_from(PATTERNS))
def test_any_strides(name: str, seed: int, pattern: NmPattern) -> None:
    """Pairs that share operands or lie apart, of any number of rows, and fewer than L of them."""
    arch, rng = ARCHITECTURES[name], np.random.default_rng(seed)
    groups = int(rng.integers(1, 4))
    pairs, p_count = (int(rng.integers(1, most + 1)) for most in (arch.interleave, arch.rows))
    tile = Tile(
        paired=1, n=pattern.n, m_log2=pattern.m.bit_length() - 1, groups=groups, rows=arch.rows,
        a_base=int(rng.integers(4)), a_stride=int(rng.integers(5)),
        b_base=int(rng.integers(4)), b_stride=int(rng.integers(12)),
        c_base=int(rng.integers(4)), c_stride=int(rng.integers(p_count, 9)),
        p_count=p_count, q_count=pairs * arch.cols,
    )
    lanes = rng.standard_normal((arch.rows, 16 * MAX_M)).astype(np.float16)
    weights = rng.standard_normal((64, arch.cols)).astype(np.float16)
    indices = rng.integers(0, pattern.m, weights.shape, dtype=np.uint8)
    run = engine(name).run(WorkList((Segment(
        lanes.reshape(arch.rows, -1, MAX_M).swapaxes(0, 1), weights, indices, (tile,), 64,
    ),)))
    want = np.zeros_like(run.words)
    for pair in range(pairs):
        a, b, c = (base + pair * stride for base, stride in (
            (tile.a_base, tile.a_stride), (tile.b_base, tile.b_stride),
            (tile.c_base, tile.c_stride)))
        here, size = slice(b, b + groups * pattern.n), (groups, pattern.n, arch.cols)
        packed = Packed(weights[here].reshape(size), indices[here].reshape(size))
        moving = lanes[:p_count, a * pattern.m : (a + groups) * pattern.m]
        want[c : c + p_count] = golden.accumulate(moving, packed, pattern)
    assert run.words.tobytes() == want.tobytes()


def test_what_fits_is_one_flow() -> None:
    """The array does not run empty between the GEMMs of a batch."""
    shape = GemmShape(9, 7, 40, NmPattern(2, 8), batch=6)
    a, b = normal(0, 6, 9, 40), normal(1, 6, 40, 7)
    for mapping in mappings(ARCHITECTURES["tiny"], shape):
        assert len(build(mapping, a, b).segments) == 1, mapping


def test_operands_without_a_batch() -> None:
    """A batch of one and no batch are the same, but for the axis."""
    a, b = normal(0, 9, 40), normal(1, 40, 7)
    for mapping in mappings(ARCHITECTURES["tiny"], GemmShape(9, 7, 40, DENSE)):
        alone, *_ = run_mapping(mapping, a, b, engine("tiny"))
        batch, *_ = run_mapping(mapping, a[None], b[None], engine("tiny"))
        assert alone.shape == (9, 7)
        assert batch.shape == (1, 9, 7)
        assert alone.tobytes() == batch.tobytes()
