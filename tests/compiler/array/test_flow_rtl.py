"""Unequal tiles in one flow: bits of every GEMM, and the cycles that the model says."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from compiler.array.layout import assemble, build
from compiler.array.mapping import Dataflow, GemmShape, Mapping
from rtl.architecture import MAX_M, PRESETS, Architecture
from rtl.pattern import DENSE, NmPattern
from rtl.tile import Tile
from sim import golden
from sim.cycles import Flow, Run
from sim.engine import RtlEngine
from sim.worklist import Segment, WorkList

Half = npt.NDArray[np.float16]

# Many rows and few columns, and the other way round; five-stage and three-stage adders.
ARCHITECTURES = {
    "tiny": PRESETS["tiny"],
    "tall": Architecture(name="tall", rows=7, cols=2, adder_stages=5),
    "wide": Architecture(name="wide", rows=3, cols=11, block=11, adder_stages=3),
}
PATTERNS = [DENSE, NmPattern(2, 8), NmPattern(1, 4)]


@cache
def engine(name: str) -> RtlEngine:
    return RtlEngine(ARCHITECTURES[name])


@st.composite
def cut(draw: st.DrawFn, architecture: Architecture, dataflow: Dataflow, pattern: NmPattern
        ) -> Mapping:
    """A small GEMM or a few, in blocks and pieces of K of any size: tiles of many lengths."""
    groups = draw(st.integers(1, 24))
    shape = GemmShape(draw(st.integers(1, 20)), draw(st.integers(1, 16)), groups * pattern.m,
                      pattern, draw(st.integers(1, 2)))
    g_block = draw(st.integers(1, groups))
    rows, cols, interleave = architecture.rows, architecture.cols, architecture.interleave
    if dataflow == "ws":
        return Mapping(architecture, shape, "ws", draw(st.integers(1, shape.p)),
                       cols * draw(st.integers(1, 2)), g_block)
    row_tiles = draw(st.sampled_from([r for r in range(interleave + 1) if not r or
                                      interleave % r == 0]))
    if not row_tiles:
        return Mapping(architecture, shape, "os", rows, cols, g_block, paired=True,
                       resident=interleave)
    return Mapping(architecture, shape, "os", rows * row_tiles, cols * (interleave // row_tiles),
                   g_block, row_tiles)


def joined(works: list[WorkList]) -> Segment:
    """All segments as one, side by side in the buffers; pieces of K share their results."""
    tiles: list[Tile] = []
    rows = columns = results = 0
    segments = [segment for work in works for segment in work.segments]
    for segment in segments:
        tiles += (replace(tile, a_base=tile.a_base + rows * (MAX_M >> tile.m_log2),
                          b_base=tile.b_base + columns, c_base=tile.c_base + results)
                  for tile in segment.tiles)
        rows += len(segment.w2e)
        columns += len(segment.n2s_values)
        results += segment.read_words
    return Segment(
        np.concatenate([segment.w2e for segment in segments]),
        np.concatenate([segment.n2s_values for segment in segments]),
        np.concatenate([segment.n2s_indices for segment in segments]),
        tuple(tiles), results,
    )


def flow(tiles: tuple[Tile, ...]) -> Flow:
    """Each tile as a run of its own."""
    return Flow(tuple(
        Run(bool(tile.stationary), tile.n, tile.passes, 1, bool(tile.stationary or tile.last))
        for tile in tiles
    ))


@settings(max_examples=60)
@given(
    data=st.data(), name=st.sampled_from(sorted(ARCHITECTURES)),
    dataflow=st.sampled_from(["ws", "os"]), pattern=st.sampled_from(PATTERNS),
    stall_seed=st.one_of(st.just(0), st.integers(1, 2**32 - 1)), seed=st.integers(0, 2**32 - 1),
)
def test_unequal_tiles(
    data: st.DataObject, name: str, dataflow: Dataflow, pattern: NmPattern, stall_seed: int,
    seed: int,
) -> None:
    """One flow, or two where the sums of a tile may stay in the array between them."""
    arch, rng = ARCHITECTURES[name], np.random.default_rng(seed)
    plans = data.draw(st.lists(cut(arch, dataflow, pattern), min_size=1, max_size=4))
    operands = [
        tuple(rng.standard_normal((plan.shape.batch, *size)).astype(np.float16)
              for size in ((plan.shape.p, plan.shape.k), (plan.shape.k, plan.shape.q)))
        for plan in plans
    ]
    whole = joined([build(plan, a, b) for plan, (a, b) in zip(plans, operands, strict=True)])
    end = data.draw(st.integers(0, len(whole.tiles) - 1))
    parts = [whole.tiles[:end], whole.tiles[end:]] if end else [whole.tiles]
    empty = replace(whole, w2e=whole.w2e[:0], n2s_values=whole.n2s_values[:0],
                    n2s_indices=whole.n2s_indices[:0])
    segments = [replace(whole if not number else empty, tiles=tiles,
                        read_words=whole.read_words if tiles is parts[-1] else 0)
                for number, tiles in enumerate(parts)]
    note(f"{[(tile.passes, tile.last) for tile in whole.tiles]}, cut at {end}")
    run = engine(name).run(WorkList(tuple(segments)), stall_seed=stall_seed)

    start = 0
    for plan, (a, b) in zip(plans, operands, strict=True):
        words = sum(plan.sizes(plan.block(number), 1)[2] for number in range(plan.blocks))
        want = np.stack([golden.gemm(*entry, pattern) for entry in zip(a, b, strict=True)])
        got = assemble(plan, run.words[start : start + words])
        assert got.tobytes() == want.tobytes(), plan
        start += words
    assert start == len(run.words)
    if not stall_seed:
        assert run.cycles == sum(flow(part).cycles(arch) for part in parts)


@given(
    name=st.sampled_from(sorted(ARCHITECTURES)), n=st.integers(1, 8), stationary=st.booleans(),
    runs=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5), st.booleans()), min_size=1),
)
def test_a_run_is_its_tiles(
    name: str, n: int, stationary: bool, runs: list[tuple[int, int, bool]]
) -> None:
    arch = ARCHITECTURES[name]
    whole = [Run(stationary, n, passes, tiles, stationary or emits)
             for passes, tiles, emits in runs]
    single = [replace(run, tiles=1) for run in whole for _ in range(run.tiles)]
    assert Flow(tuple(whole)).cycles(arch) == Flow(tuple(single)).cycles(arch)


def test_millions_of_tiles_take_no_time() -> None:
    tiny = ARCHITECTURES["tiny"]
    assert Run(False, 1, 100, 10**12).cycles(tiny) == (
        Run(False, 1, 100, 1).cycles(tiny) + 100 * tiny.interleave * (10**12 - 1)
    )


def test_an_emission_that_outlasts_the_tile_behind_it() -> None:
    """A short tile that leaves its sums in the array ends before the results have left."""
    tiny = ARCHITECTURES["tiny"]
    emits, stays = Run(False, 1, 50, 1), Run(False, 1, 1, 1, emits=False)
    assert Flow((emits, stays)).cycles(tiny) == emits.cycles(tiny)
    assert Flow((stays, emits)).cycles(tiny) > emits.cycles(tiny)


@pytest.mark.parametrize("other", [Run(True, 1, 5, 1), Run(False, 2, 5, 1)])
def test_a_flow_has_one_configuration(other: Run) -> None:
    with pytest.raises(ValueError, match=r"^the runs of a flow have one dataflow and one pattern$"):
        Flow((Run(False, 1, 5, 1), other))
