"""A tiling: how one GEMM is cut into tiles, kept in the buffers and streamed past the array.

Space of choices for ``C = A @ B``: WS or OS; which operand plays the part of B, if neither is
pruned (``swapped`` computes ``C^T = B^T @ A^T``); the shape of an OS tile (``interleave_rows`` row
tiles by the rest column tiles, or ``paired`` independent pairs); the blocks of rows, columns and K
that lie in the buffers; the order of the loops; double buffers wherever one block follows another.

Cycles of the array are exact (:mod:`sim.cycles`): the tiles of a GEMM flow one behind the other,
through all of its blocks. Memory, ports and vector engine work beside it (:attr:`Tiling.cost`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from compiler.ceiling import ceil_div
from compiler.schedule.problem import Cost, Problem
from compiler.schedule.target import Target
from rtl.architecture import MAX_M, Architecture
from rtl.stce import StceTiming
from sim.cycles import Flow, Run

__all__ = ["Tiling"]


@dataclass(frozen=True)
class Tiling:
    """One way to run ``problem`` on ``target``.

    Parameters
    ----------
    problem: as it runs, already transposed if ``swapped``.
    stationary: WS if true, else OS.
    interleave_rows, paired: shape of an OS tile.
    p_block, q_block, group_block: rows, columns and groups of K of a block in the buffers. OS with
        less than all groups: a block is one tile, whose sums stay in the array meanwhile.
    rows_outer: a block of rows stays while all columns pass by, or the other way round.
    """

    target: Target
    problem: Problem
    stationary: bool
    p_block: int
    q_block: int
    group_block: int
    interleave_rows: int = 1
    paired: bool = False
    rows_outer: bool = True
    swapped: bool = False

    @property
    def architecture(self) -> Architecture:
        """The array."""
        return self.target.architecture

    @property
    def dataflow(self) -> Literal["ws", "os"]:
        """``ws`` or ``os``."""
        return "ws" if self.stationary else "os"

    def describe(self) -> str:
        """One line for reports: tile shape, blocks, order, what was transposed."""
        rows = self.interleave_rows
        shape = "pairs" if self.paired else f"{rows} row tile{'s' * (rows > 1)}"
        words = [f"{self.dataflow}" if self.stationary else f"{self.dataflow}, {shape}",
                 f"{min(self.p_block, self.problem.p)} x {min(self.q_block, self.problem.q)}"]
        if not self.whole_k:
            words.append(f"K by {self.group_block * self.problem.pattern.m}")
        if not self.rows_outer:
            words.append("columns outside")
        if self.swapped:
            words.append("transposed")
        return ", ".join(words)

    @property
    def whole_k(self) -> bool:
        """All of K of a block is in the buffers."""
        return self.group_block >= self.problem.groups

    @property
    def row_blocks(self) -> int:
        """Blocks of rows."""
        return ceil_div(self.problem.p, self.p_block)

    @property
    def column_blocks(self) -> int:
        """Blocks of columns."""
        return ceil_div(self.problem.q, self.q_block)

    # The array.

    @cached_property
    def tiles(self) -> int:
        """Tiles of the whole GEMM, all of its batch."""
        machine, problem = self.architecture, self.problem
        columns = ceil_div(problem.q, machine.cols)
        if self.stationary:
            slices = ceil_div(problem.groups, machine.rows)
            return problem.batch * self.row_blocks * columns * slices
        if self.paired:
            units = problem.batch * ceil_div(problem.p, machine.rows) * columns
            return ceil_div(units, machine.interleave)
        height = machine.rows * self.interleave_rows
        width = machine.cols * (machine.interleave // self.interleave_rows)
        return problem.batch * ceil_div(problem.p, height) * ceil_div(problem.q, width)

    @cached_property
    def array_cycles(self) -> int:
        """Cycles of the array, as the RTL counts them for the flow of all tiles."""
        machine, n = self.architecture, self.problem.pattern.n
        cycles = Flow(self._runs).cycles(machine)
        if self.target.interleave:
            return cycles
        # One sum in turn: an addition waits for the one before, in OS for every step, in WS for
        # the second and later weights of a group.
        return cycles * (((n - 1) * machine.interleave + 1) if self.stationary
                         else machine.interleave * n) // n

    @cached_property
    def _runs(self) -> tuple[Run, ...]:
        """The tiles of all blocks; the order of runs does not matter to their cycles."""
        n = self.problem.pattern.n
        if not self.stationary:
            return (Run(False, n, self.problem.groups * n, self.tiles),)
        last = self.problem.p - (self.row_blocks - 1) * self.p_block
        of_a_block = self.tiles // self.row_blocks
        full, rest = (ceil_div(rows, self.architecture.interleave) * n
                      for rows in (self.p_block, last))
        short = Run(True, n, rest, of_a_block)
        if self.row_blocks == 1:
            return (short,)
        return Run(True, n, full, of_a_block * (self.row_blocks - 1)), short

    @cached_property
    def pass_cycles(self) -> int:
        """Cycles in which tiles compute, whether all their rows and columns are in use or not."""
        return self.architecture.interleave * sum(run.passes * run.tiles for run in self._runs)

    @property
    def latency(self) -> int:
        """Cycles of the array before the first and after the last step."""
        timing = StceTiming(self.architecture)
        return timing.start(self.stationary) + timing.finish(
            self.stationary, self.problem.pattern.n)

    # The buffers.

    @cached_property
    def words(self) -> tuple[int, int, int]:
        """Words of one block in each row buffer, column buffer and result buffer."""
        machine, pattern = self.architecture, self.problem.pattern
        columns = ceil_div(self.q_block, machine.cols)
        per_word = MAX_M // pattern.m
        if self.stationary:
            slices = ceil_div(self.group_block, machine.rows)
            return (slices * ceil_div(self.p_block, per_word),
                    columns * slices * machine.rows * pattern.n, columns * self.p_block)
        pairs = machine.interleave if self.paired else 1
        rows = ceil_div(self.p_block, machine.rows)
        return (pairs * rows * ceil_div(self.group_block, per_word),
                pairs * columns * self.group_block * pattern.n,
                pairs * columns * rows * machine.rows)

    @cached_property
    def slots(self) -> tuple[int, int, int]:
        """Blocks in each buffer at a time: two where one follows another, if there is room."""
        machine = self.architecture
        depths = (machine.w2e_words, machine.n2s_words, machine.out_words)
        return tuple(  # type: ignore[return-value]
            min(depth // words, wanted)
            for depth, words, wanted in zip(depths, self.words, self._wanted, strict=True)
        )

    @property
    def _wanted(self) -> tuple[int, int, int]:
        pieces = ceil_div(self.problem.groups, self.group_block)
        batch = self.problem.batch
        rows, columns = self.row_blocks * batch, self.column_blocks * batch
        return (min(2, rows * pieces), min(2, columns * pieces), min(2, rows * self.column_blocks))

    @property
    def fits(self) -> bool:
        """Whether one block fits every buffer."""
        return min(self.slots) >= 1

    @property
    def overlaps(self) -> bool:
        """Whether blocks load, compute and drain at the same time."""
        return all(have >= want for have, want in zip(self.slots, self._wanted, strict=True))

    # Traffic.

    @cached_property
    def trips(self) -> tuple[float, float]:
        """How often A and B are read; the block at a turn of the inner loop stays."""
        rows, columns = self.row_blocks, self.column_blocks
        if self.paired:
            units = ceil_div(self.problem.p, self.architecture.rows), ceil_div(
                self.problem.q, self.architecture.cols)
            return float(units[1]), float(units[0])
        if not self.whole_k:
            return float(columns), float(rows)
        if self.rows_outer:
            return 1.0, 1.0 if columns == 1 else rows - (rows - 1) / columns
        return 1.0 if rows == 1 else columns - (columns - 1) / rows, 1.0

    @cached_property
    def cost(self) -> Cost:
        """Cycles and traffic."""
        target, problem = self.target, self.problem
        machine = self.architecture
        a_trips, b_trips = self.trips
        a_bytes, b_bytes = problem.a_bytes * a_trips, problem.b_bytes * b_trips
        read, written = a_bytes + b_bytes + problem.epilogue_bytes, float(problem.c_bytes)
        lines = problem.batch * problem.p * ceil_div(problem.q, target.vector_lanes)
        columns = problem.batch * ceil_div(problem.q, machine.cols)
        packed = problem.groups * problem.pattern.n
        column = b_trips * packed * columns
        share = problem.batch * self.row_blocks * self.column_blocks
        first = (problem.a_bytes / (problem.batch * self.row_blocks)
                 + problem.b_bytes / (problem.batch * self.column_blocks))
        if not self.whole_k:
            first *= self.group_block / problem.groups
        before = first / min(target.dram_bytes, target.load_bytes)
        if problem.inline:
            read, written = read + problem.dense_b_bytes, written + problem.b_bytes
            before += max(problem.dense_b_bytes / 2 / target.vector_lanes,
                          (problem.dense_b_bytes + problem.b_bytes) / target.dram_bytes)
        last = max(problem.c_bytes / share / min(target.dram_bytes, target.store_bytes),
                   lines / share * problem.vector_ops)
        return Cost(
            array=self.array_cycles,
            memory=round((read + written + problem.sampling_bytes) / target.dram_bytes),
            load=round(read / target.load_bytes),
            store=round(written / target.store_bytes),
            column=round(column),
            vector=lines * problem.vector_ops,
            before=round(before),
            after=round(last),
            overlaps=self.overlaps,
            read_bytes=round(read),
            written_bytes=round(written),
        )
