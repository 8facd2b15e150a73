"""What a schedule does, counted: multiply-accumulates, buffer accesses, traffic, vector results.

The counts that :mod:`compiler.explore.energy` puts a price on. Buffers as the RTL uses them, in
words of 32 bytes: in every cycle in which tiles compute, each row reads one word of W2E, whatever
the pattern, and in OS each column reads one weight of N2S. In WS a weight is read once a tile, and
each pass of a group reads and writes one partial sum of each column.
"""

from __future__ import annotations

from compiler.explore.energy import Counts
from compiler.schedule.scheduler import Schedule
from compiler.schedule.tiling import Tiling
from rtl.chunk import WORD_BYTES

__all__ = ["buffer_words", "step_counts"]

_WEIGHT_BYTES = 2.5
"""A packed weight in N2S: an FP16 and the four bits of its index."""
_RESULT_BYTES = 4


def step_counts(schedule: Schedule) -> Counts:
    """Counts of the whole step."""
    target = schedule.target
    return Counts(
        macs=schedule.macs,
        buffer_words=sum(buffer_words(one.mapped.tiling) for one in schedule.gemms if one.mapped),
        dram_bytes=schedule.dram_bytes,
        vector_ops=target.vector_lanes * sum(one.use.vector for one in schedule.placed),
        cycles=schedule.cycles,
        clock_mhz=target.architecture.clock_mhz,
    )


def buffer_words(tiling: Tiling) -> float:
    """Reads and writes of all buffers for one GEMM, fills and drains included, as 32-byte words."""
    machine, problem = tiling.architecture, tiling.problem
    n, results = problem.pattern.n, problem.batch * problem.p * problem.q
    a_trips, b_trips = tiling.trips
    rows = tiling.pass_cycles * machine.rows + problem.a_bytes * a_trips / WORD_BYTES
    weights = b_trips * problem.batch * problem.groups * n * problem.q  # written
    sums = results  # read by the vector engine
    if tiling.stationary:
        weights += tiling.tiles * machine.rows * machine.cols * n
        sums += 2 * machine.cols * tiling.pass_cycles // n
    else:
        weights += tiling.pass_cycles * machine.cols
        sums += results
    return rows + (weights * _WEIGHT_BYTES + sums * _RESULT_BYTES) / WORD_BYTES
