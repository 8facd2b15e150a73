"""Mappings: they cover the GEMM once and fit the buffers, and utilisation is as promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.layout import build
from compiler.mapping import GemmShape, best_mapping, mappings
from rtl.architecture import PRESETS, Architecture
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern

SMALL_BUFFERS = Architecture(name="blocks", rows=4, cols=4, w2e_words=16, n2s_words=64,
                             out_words=64)


@settings(max_examples=150, deadline=None)
@given(p=st.integers(1, 300), q=st.integers(1, 90), k=st.integers(1, 700),
       pattern=st.sampled_from(["dense", "2:4", "2:8", "8:16", "1:16"]))
def test_pieces_cover_every_result_and_every_group_once(p: int, q: int, k: int, pattern: str
                                                        ) -> None:
    shape = GemmShape(p, q, k, NmPattern.parse(pattern))
    for mapping in mappings(SMALL_BUFFERS, shape):
        seen = np.zeros((p, q), int)
        for piece in mapping.pieces():
            seen[piece.p.start : piece.p.stop, piece.q.start : piece.q.stop] += len(piece.g)
        assert (seen == shape.groups).all()


@settings(max_examples=60, deadline=None)
@given(p=st.integers(1, 200), q=st.integers(1, 60), k=st.integers(1, 300),
       pattern=st.sampled_from(["dense", "2:4", "2:8", "8:16", "1:16"]))
def test_segments_fit_the_buffers(p: int, q: int, k: int, pattern: str) -> None:
    shape = GemmShape(p, q, k, NmPattern.parse(pattern))
    a, b = np.ones((p, k), np.float16), np.ones((k, q), np.float16)
    for mapping in mappings(SMALL_BUFFERS, shape):
        work = build(mapping, a, b)
        pieces = list(mapping.pieces())
        assert len(work.segments) == len(pieces)
        for segment, piece in zip(work.segments, pieces, strict=True):
            assert len(segment.w2e) <= SMALL_BUFFERS.w2e_words
            assert len(segment.n2s_values) <= SMALL_BUFFERS.n2s_words
            assert segment.read_words <= SMALL_BUFFERS.out_words
            run = mapping.run(piece)
            assert run.tiles == len(segment.tiles)
            assert {run.passes} == {tile.passes for tile in segment.tiles}


@pytest.mark.parametrize(("pattern", "least"), [("dense", 0.97), ("2:8", 0.95)])
@pytest.mark.parametrize("dataflow", ["ws", "os"])
def test_utilisation_of_512_cubed_on_8x8(pattern: str, least: float, dataflow: str) -> None:
    """By the cycle model, which the RTL equals; ``benchmarks.utilisation`` runs it on the RTL."""
    shape = GemmShape(512, 512, 512, NmPattern.parse(pattern))
    mapping = best_mapping(PRESETS["small"], shape, dataflow)  # type: ignore[arg-type]
    assert mapping.utilisation(mapping.cycles()) >= least


def test_the_best_mapping_is_the_best() -> None:
    shape = GemmShape(8, 512, 64, NmPattern(2, 8))
    best = best_mapping(PRESETS["small"], shape)
    assert best.cycles() == min(m.cycles() for m in mappings(PRESETS["small"], shape))
    assert best.dataflow == "os"
    assert best.interleave_rows == 1


def test_bad_shapes_and_options_are_named() -> None:
    with pytest.raises(ParameterError, match=r"^K=0: must be at least 1; nearest legal value: 1$"):
        GemmShape(1, 1, 0, DENSE)
    with pytest.raises(ParameterError, match=r"^pattern='3:5': the array runs dense, or N:M with "):
        GemmShape(1, 1, 1, NmPattern(3, 5))
    with pytest.raises(ParameterError, match=r"^--dataflow='is': must be auto, ws or os; nearest"):
        best_mapping(PRESETS["tiny"], GemmShape(1, 1, 1, DENSE), "is")  # type: ignore[arg-type]
