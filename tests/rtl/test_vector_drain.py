"""Drains of the vector engine for every kind of width, in Amaranth's simulator: no lanes needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.sim import Simulator
from vector_reference import Reference, Rng, vector

from rtl.architecture import Architecture
from rtl.chunk import LANES
from rtl.edges import FEED_LATENCY
from rtl.isa import LINES, Decoded, VectorOp
from rtl.vector_drain import ResultReader
from rtl.vector_issue import VectorIssue
from rtl.vector_timing import VectorTiming

WORDS = 256
COLS = (1, 2, 4, 8, 16, 32, 64)


def drained(
    architecture: Architecture, results: Any, program: list[Decoded]
) -> list[tuple[int, list[int]]]:
    """Cycle of issue and operand a of each line that is written, while instructions always wait."""
    front = Module()
    front.submodules.issue = issue = VectorIssue(architecture)
    front.submodules.reader = reader = ResultReader(architecture)
    front.d.comb += [reader.walk.eq(issue.walk), issue.bad.eq(reader.bad)]
    queue = list(program)
    lines: list[tuple[int, list[int]]] = []

    async def bench(ctx: Any) -> None:
        arriving: list[int | None] = [None] * FEED_LATENCY
        issued: list[int | None] = [None] * FEED_LATENCY
        quiet = cycle = 0
        ctx.set(issue.valid, 1)
        while quiet < 30:
            ctx.set(issue.valid, bool(queue))
            ctx.set(issue.word, queue[0].encode() if queue else 0)
            address = arriving.pop(0)
            words = results[:, address].tolist() if address is not None else [7] * len(results)
            ctx.set(reader.out_data, words)
            arriving.append(ctx.get(reader.out_address) if ctx.get(reader.out_en) else None)
            then = issued.pop(0)
            if then is not None:
                lines.append((then, list(ctx.get(reader.line))))
            order = ctx.get(issue.order)
            issued.append(cycle if order.valid and order.write else None)
            quiet = 0 if order.valid or queue else quiet + 1
            taken = ctx.get(issue.valid) and ctx.get(issue.ready)
            await ctx.tick()
            cycle += 1
            if taken:
                queue.pop(0)

    simulator = Simulator(front)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return lines


@pytest.mark.parametrize("cols", COLS)
def test_drain(cols: int, rng: Rng) -> None:
    """Every line is the one that the reference reads, at the cycle that the formulas give."""
    architecture = Architecture.make(rows=4, cols=cols, out_words=WORDS)
    timing = VectorTiming(architecture)
    reference = Reference(architecture)
    reference.results = rng.integers(0, 1 << 32, (cols, WORDS), np.uint32)
    program = []
    for run in (1, 2, 3, 5, 4, 8, 64):
        lines = int(rng.integers(run, LINES + 1))
        tiles, rows = -(-run * LANES // cols), -(-lines // run)
        stride = int(rng.integers(0, (WORDS - rows) // max(1, tiles - 1) + 1))
        base = int(rng.integers(0, WORDS - rows - stride * (tiles - 1) + 1))
        if run == 5:
            base = WORDS - rows // 2  # the last rows are not there
        program.append(vector(VectorOp.COPY, dest=1, drain=1, run=run, lines=lines, c_base=base,
                              c_stride=stride))
    expected, ends = [], timing.schedule(program)
    for instruction, done in zip(program, ends, strict=True):
        beats = timing.beats(instruction)
        last = done - timing.depth(VectorOp.COPY)
        for i in range(instruction["lines"]):
            line = reference.operand_a(instruction, i)
            if line is not None:
                at = last - beats * (instruction["lines"] - 1 - i)
                expected.append((at, line.tolist()))
    assert len(expected) > 100
    assert drained(architecture, reference.results, program) == expected
