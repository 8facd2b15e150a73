"""A 1 x 32 array of two-stage adders: tiles come faster than their results can be stored."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.array.gemm import run_mapping
from compiler.array.mapping import GemmShape, mappings
from rtl.architecture import Architecture
from rtl.pattern import DENSE, NmPattern
from sim import golden
from sim.engine import RtlEngine

FLAT = Architecture.make(name="flat", rows=1, cols=32, block=16, adder_stages=2)


@pytest.fixture(scope="module")
def engine() -> RtlEngine:
    """The native engine of this array."""
    return RtlEngine(FLAT)


@pytest.mark.parametrize("pattern", [DENSE, NmPattern(1, 4), NmPattern(8, 16)], ids=str)
@pytest.mark.parametrize(("p", "q", "k"), [(40, 70, 1), (100, 33, 4), (3, 300, 2), (9, 64, 40)])
def test_many_tiles_in_flight(
    engine: RtlEngine, pattern: NmPattern, p: int, q: int, k: int, rng: np.random.Generator
) -> None:
    """Bits and cycles of every mapping, although more tiles are under way than rows."""
    a, b = (rng.standard_normal(shape).astype(np.float16) for shape in ((p, k), (k, q)))
    for mapping in mappings(FLAT, GemmShape(p, q, k, pattern)):
        c, cycles, _ = run_mapping(mapping, a, b, engine)
        assert c.tobytes() == golden.gemm(a, b, pattern).tobytes(), mapping
        assert cycles == mapping.cycles(), mapping
