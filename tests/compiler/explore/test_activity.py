"""Counts of what a schedule does, by hand for small GEMMs."""

from __future__ import annotations

import pytest

from compiler.explore.activity import buffer_words, step_counts
from compiler.ir import Forward, Gemm, Step, Update
from compiler.schedule.problem import Problem
from compiler.schedule.scheduler import schedule
from compiler.schedule.target import Target
from compiler.schedule.tiling import Tiling
from rtl.architecture import PRESETS
from rtl.pattern import DENSE, NmPattern

TARGET = Target.of(PRESETS["tiny"])  # 4 x 4, four sums in turn


@pytest.mark.parametrize(("stationary", "pattern", "rows", "weights", "sums"), [
    # One tile of 2 x 2 row and column tiles, 16 steps of four cycles.
    (False, DENSE, 4 * 64 + 8, 4 * 64 + 128, 64 + 64),
    # Four slices of K by two column tiles, two passes each.
    (True, DENSE, 4 * 64 + 8, 8 * 16 + 128, 64 + 2 * 4 * 64),
    # Two groups of two weights; the buffers of the rows are read as often as there are steps.
    (False, NmPattern(2, 8), 4 * 16 + 8, 4 * 16 + 32, 64 + 64),
    # One slice, half of it empty: 16 weights a column are fed, eight of them are zero.
    (True, NmPattern(2, 8), 4 * 32 + 8, 2 * 16 * 2 + 32, 64 + 2 * 4 * 16),
])
def test_buffer_words_by_hand(
    stationary: bool, pattern: NmPattern, rows: int, weights: int, sums: int
) -> None:
    """8 x 16 @ 16 x 8: accesses of W2E in words, of N2S in weights, of the results in FP32."""
    problem = Problem(8, 8, 16, pattern=pattern)
    tiling = Tiling(TARGET, problem, stationary, 8, 8, problem.groups,
                    interleave_rows=1 if stationary else 2)
    assert buffer_words(tiling) == rows + weights * 2.5 / 32 + sums * 4 / 32


def test_step_counts_are_the_schedules() -> None:
    tasks = (
        Gemm("fc", "FF", 8, 8, 16, "x", "w", "y", weight="w", vector_ops=3),
        Update("w", 128, needs=(0,)),
    )
    found = schedule(TARGET, Step(Forward("Line", {}, (), (), (), {"w": 128}), tasks))
    counts = step_counts(found)
    assert (counts.macs, counts.dram_bytes) == (8 * 8 * 16, found.dram_bytes)
    assert counts.seconds == found.cycles / 200e6
    operations = found.options.optimiser.vector_ops
    # Lines of 16 lanes: 8 of the results, half of each empty, and 8 of weights.
    assert counts.vector_ops == 16 * (8 * 3 + 8 * operations)
