"""Tilings: array cycles against the RTL's own rules, traffic and buffers against a block walk."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.array.mapping import GemmShape, Mapping
from compiler.ceiling import ceil_div
from compiler.schedule.mapper import tilings
from compiler.schedule.problem import Problem
from compiler.schedule.target import Target
from compiler.schedule.tiling import Tiling
from rtl.architecture import PRESETS, Architecture
from rtl.pattern import DENSE, NmPattern
from sim.cycles import Flow, Run

MACHINES = (
    PRESETS["tiny"], PRESETS["small"], PRESETS["paper"],
    Architecture(name="odd", rows=6, cols=3, block=3, adder_stages=5, w2e_words=64,
                 n2s_words=512, out_words=256),
)
PATTERNS = (DENSE, NmPattern(2, 8), NmPattern(1, 4), NmPattern(2, 16))

machines = st.sampled_from(MACHINES)
problems = st.builds(
    Problem, p=st.integers(1, 300), q=st.integers(1, 100), k=st.integers(1, 400),
    batch=st.sampled_from((1, 1, 2, 5)), pattern=st.sampled_from(PATTERNS),
)


def variants(target: Target, problem: Problem) -> list[Tiling]:
    """One small tiling of each dataflow and tile shape."""
    machine = target.architecture
    shapes = [rows for rows in range(1, machine.interleave + 1) if machine.interleave % rows == 0]
    made = [Tiling(target, problem, False, machine.rows * rows,
                   machine.cols * (machine.interleave // rows), problem.groups, rows)
            for rows in shapes]
    made.append(Tiling(target, problem, False, machine.rows, machine.cols, problem.groups,
                       paired=True))
    made.append(Tiling(target, problem, True, machine.interleave * ceil_div(
        min(problem.p, machine.out_words), machine.interleave), machine.cols, problem.groups))
    return made
@given(machines, problems)
def test_array_cycles_are_those_of_the_tiles_in_their_order(
    machine: Architecture, problem: Problem
) -> None:
    for variant in variants(Target.of(machine), problem):
        for tiling in itertools.islice(tilings(variant), 12):
            n, runs = problem.pattern.n, []
            if tiling.stationary:
                for _ in range(problem.batch):
                    for start in range(0, problem.p, tiling.p_block):
                        rows = min(tiling.p_block, problem.p - start)
                        tiles = (ceil_div(problem.q, machine.cols)
                                 * ceil_div(problem.groups, machine.rows))
                        runs.append(Run(True, n, ceil_div(rows, machine.interleave) * n, tiles))
            else:
                pieces = [min(tiling.group_block, problem.groups - start) * n
                          for start in range(0, problem.groups, tiling.group_block)]
                for _ in range(tiling.tiles):
                    runs += [Run(False, n, passes, 1, number == len(pieces) - 1)
                             for number, passes in enumerate(pieces)]
            assert tiling.array_cycles == Flow(tuple(runs)).cycles(machine)
@given(machines, problems)
def test_a_tiling_counts_the_tiles_that_the_array_mapping_has(
    machine: Architecture, problem: Problem
) -> None:
    shape = GemmShape(problem.p, problem.q, problem.k, problem.pattern, problem.batch)
    for variant in variants(Target.of(machine), problem):
        if variant.stationary or not variant.fits:
            continue
        mapping = Mapping(machine, shape, "os", variant.p_block, variant.q_block, problem.groups,
                          variant.interleave_rows, variant.paired,
                          machine.interleave if variant.paired else 1)
        assert variant.tiles == sum(mapping.run(piece).tiles for piece in mapping.pieces())
@given(machines, problems)
def test_blocks_fit_the_buffers_and_double_buffers_hold_two(
    machine: Architecture, problem: Problem
) -> None:
    found = 0
    for variant in variants(Target.of(machine), problem):
        for tiling in itertools.islice(tilings(variant), 12):
            found += 1
            depths = (machine.w2e_words, machine.n2s_words, machine.out_words)
            for words, slots, depth in zip(tiling.words, tiling.slots, depths, strict=True):
                assert words * slots <= depth
            assert tiling.fits
    assert found


def walked_trips(tiling: Tiling) -> tuple[float, float]:
    """How often A and B are read: a walk over blocks that keeps the last block of each."""
    rows, columns = tiling.row_blocks, tiling.column_blocks
    outer, inner = (rows, columns) if tiling.rows_outer else (columns, rows)
    loads = {"outer": 0, "inner": 0}
    held = {"outer": -1, "inner": -1}
    for first in range(outer):
        order = range(inner) if first % 2 == 0 else reversed(range(inner))
        for second in order:
            for name, block in (("outer", first), ("inner", second)):
                if held[name] != block:
                    loads[name] += 1
                    held[name] = block
    a, b = ("outer", "inner") if tiling.rows_outer else ("inner", "outer")
    return loads[a] / rows, loads[b] / columns
@given(machines, problems)
def test_traffic_is_what_a_walk_over_the_blocks_loads(
    machine: Architecture, problem: Problem
) -> None:
    for variant in variants(Target.of(machine), problem):
        for tiling in itertools.islice(tilings(variant), 12):
            if tiling.whole_k and not tiling.paired:
                assert tiling.trips == pytest.approx(walked_trips(tiling))


def test_without_interleaving_a_chain_of_additions_waits_for_each() -> None:
    """OS adds into one sum a step; WS does so only within a group."""
    target = Target.of(PRESETS["small"])
    alone = Target(**{**vars(target), "interleave": False})
    sparse = Problem(512, 512, 512, pattern=NmPattern(2, 8))
    for stationary, dense_ratio, sparse_ratio in ((False, 4, 4), (True, 1, 2.5)):
        for problem, ratio in ((Problem(512, 512, 512), dense_ratio), (sparse, sparse_ratio)):
            with_, without = (Tiling(t, problem, stationary, 512, 32, problem.groups, 1)
                              .array_cycles for t in (target, alone))
            assert without / with_ == pytest.approx(ratio, rel=1e-3)


def test_the_bound_is_the_busiest_resource_and_ports_as_built_bind_wide_arrays() -> None:
    thin = Problem(100_000, 64, 576, taps=9, pattern=NmPattern(2, 8))
    wide, built = (Tiling(Target.of(PRESETS["paper"], paths), thin, False, 128, 128,
                             thin.groups).cost for paths in ("wide", "built"))
    assert wide.bound == "array"
    assert built.bound in ("load port", "store port", "vector")
    assert built.cycles > wide.cycles
    assert built.dram_bytes == wide.dram_bytes
