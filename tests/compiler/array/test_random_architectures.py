"""Random arrays, buffers, shapes, patterns and mappings: bits and cycles, for minutes."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.array.gemm import run_mapping
from compiler.array.mapping import GemmShape, mappings
from rtl.architecture import Architecture
from rtl.errors import ParameterError
from rtl.pattern import DENSE, HARDWARE_M, NmPattern
from sim import golden
from sim.engine import RtlEngine

PATTERNS = [DENSE, *(NmPattern(n, m) for m in HARDWARE_M for n in range(1, m // 2 + 1))]
CASES = 150


def random_architecture(rng: np.random.Generator) -> Architecture:
    """Sides, blocks, adders and buffers that divide nothing; drawn until they are legal."""
    while True:
        try:
            return Architecture.make(
                rows=int(rng.choice([1, 2, 3, 5, 6, 8, 9])),
                cols=int(rng.choice([1, 2, 3, 5, 7, 8, 9])),
                block=int(rng.choice([1, 3, 8])),
                adder_stages=int(rng.integers(2, 6)),
                w2e_words=int(rng.integers(16, 60)),
                n2s_words=int(rng.integers(64, 300)),
                out_words=int(rng.integers(64, 300)),
            )
        except ParameterError:
            continue


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_random_architecture(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arch = random_architecture(rng)
    engine = RtlEngine(arch)
    for case in range(CASES):
        p, q, k = (int(rng.integers(1, high)) for high in (90, 50, 200))
        pattern = PATTERNS[rng.integers(len(PATTERNS))]
        choices = list(mappings(arch, GemmShape(p, q, k, pattern)))
        mapping = choices[rng.integers(len(choices))]
        if rng.random() < 0.2:  # any FP16 at all, NaN and Inf included
            a = rng.integers(0, 1 << 16, (p, k), dtype=np.uint16).view(np.float16)
        else:
            a = rng.standard_normal((p, k)).astype(np.float16)
        b = rng.standard_normal((k, q)).astype(np.float16)
        stall = int(rng.integers(1, 1 << 30)) if rng.random() < 0.3 else 0
        c, cycles, nonfinite = run_mapping(mapping, a, b, engine, stall_seed=stall)
        want = golden.gemm(a, b, pattern)
        where = f"seed {seed}, case {case}, stall {stall}: {mapping}"
        np.testing.assert_array_equal(c.view(np.uint32), want.view(np.uint32), err_msg=where)
        assert nonfinite == (not np.isfinite(want).all()), where
        if not stall:
            assert cycles == mapping.cycles(), where
