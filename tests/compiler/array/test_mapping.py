"""Mappings: they cover the GEMM once and fit the buffers, and utilisation is as promised."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.array.layout import build
from compiler.array.mapping import GemmShape, best_mapping, mappings
from rtl.architecture import PRESETS, Architecture
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern

SMALL_BUFFERS = Architecture(name="blocks", rows=4, cols=4, w2e_words=16, n2s_words=64,
                             out_words=64)


@settings(max_examples=150)
@given(p=st.integers(1, 300), q=st.integers(1, 90), k=st.integers(1, 700),
       pattern=st.sampled_from(["dense", "2:4", "2:8", "8:16", "1:16"]), batch=st.integers(1, 5))
def test_pieces_cover_every_result_and_every_group_once(
    p: int, q: int, k: int, pattern: str, batch: int
) -> None:
    shape = GemmShape(p, q, k, NmPattern.parse(pattern), batch)
    for mapping in mappings(SMALL_BUFFERS, shape):
        seen = np.zeros((batch, p, q), int)
        for piece in mapping.pieces():
            for block in map(mapping.block, piece.blocks):
                seen[block.entry, block.p.start : block.p.stop,
                     block.q.start : block.q.stop] += len(piece.g)
        assert (seen == shape.groups).all()


@settings(max_examples=25)
@given(p=st.integers(1, 200), q=st.integers(1, 60), k=st.integers(1, 300),
       pattern=st.sampled_from(["dense", "2:4", "2:8", "8:16", "1:16"]), batch=st.integers(1, 5))
def test_segments_fit_the_buffers(p: int, q: int, k: int, pattern: str, batch: int) -> None:
    shape = GemmShape(p, q, k, NmPattern.parse(pattern), batch)
    a, b = np.ones((batch, p, k), np.float16), np.ones((batch, k, q), np.float16)
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


@pytest.mark.parametrize("pattern", ["dense", "2:8"])
def test_a_batch_multiplies_the_work(pattern: str) -> None:
    one = GemmShape(9, 5, 30, NmPattern.parse(pattern))
    many = replace(one, batch=7)
    tiny = PRESETS["tiny"]
    assert (many.macs, many.dense_macs) == (7 * one.macs, 7 * one.dense_macs)
    assert many.ideal_cycles(tiny) == -(-7 * one.macs // tiny.pes)
    for alone, mapping in zip(mappings(tiny, one), mappings(tiny, many), strict=True):
        assert (alone.dataflow, alone.interleave_rows, alone.paired) == (
            mapping.dataflow, mapping.interleave_rows, mapping.paired)
        assert mapping.cycles() < 7 * alone.cycles()


@pytest.mark.parametrize(("p", "k", "q"), [(65, 64, 65), (65, 65, 64)])
def test_attention_on_32x32(p: int, k: int, q: int) -> None:
    """Eight heads of 64 and 65 tokens: pairs leave only the padding of P and Q."""
    paper = PRESETS["paper"]
    shape = GemmShape(p, q, k, DENSE, batch=64 * 8)
    padded = (-(-size // 32) * 32 for size in (p, q))
    best = best_mapping(paper, shape)
    assert best.paired
    assert best.utilisation(best.cycles()) > 0.98 * (p * q / math.prod(padded))
    others = (mapping for mapping in mappings(paper, shape) if mapping.dataflow == "os")
    assert max(mapping.cycles() for mapping in others) > 1.3 * best.cycles()


def test_bad_shapes_and_options_are_named() -> None:
    with pytest.raises(ParameterError, match=r"^K=0: must be at least 1; nearest legal value: 1$"):
        GemmShape(1, 1, 0, DENSE)
    with pytest.raises(ParameterError, match=r"^batch=-1: must be at least 1; nearest legal"):
        GemmShape(1, 1, 1, DENSE, -1)
    with pytest.raises(ParameterError, match=r"^pattern='3:5': the array runs dense, or N:M with "):
        GemmShape(1, 1, 1, NmPattern(3, 5))
    with pytest.raises(ParameterError, match=r"^--dataflow='is': must be auto, ws or os; nearest"):
        best_mapping(PRESETS["tiny"], GemmShape(1, 1, 1, DENSE), "is")  # type: ignore[arg-type]
