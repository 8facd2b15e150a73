"""The 4 x 4 engine through its pins, and the random GEMMs that the benches run on it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge
from operands import operand

from compiler.array.layout import assemble, build
from compiler.array.mapping import Mapping
from rtl.architecture import MAX_M, PRESETS
from rtl.edges import FEED_LATENCY
from rtl.links import PACKED_WEIGHT
from rtl.tile import Tile
from sim import golden
from sim.worklist import Segment

Single = npt.NDArray[np.float32]

ARCHITECTURE = PRESETS["tiny"]


class Retired(NamedTuple):
    """A retire strobe: when, and with which flag."""

    cycle: int
    nonfinite: bool


class Base(NamedTuple):
    """Where a case lives in the three kinds of buffers."""

    w2e: int = 0
    n2s: int = 0
    out: int = 0


START = Base()


class Case:
    """A random GEMM under a mapping, at a place in the buffers."""

    def __init__(self, mapping: Mapping, base: Base = START) -> None:
        shape = mapping.shape
        self.mapping, self.base = mapping, base
        self.a = operand((shape.p, shape.k), special=0.01)
        self.b = operand((shape.k, shape.q), special=0.01)
        (self.segment,) = build(mapping, self.a, self.b).segments

    @property
    def tiles(self) -> list[Tile]:
        """The tiles, moved to the base."""
        return [
            replace(
                tile, a_base=tile.a_base + self.base.w2e * (MAX_M >> tile.m_log2),
                b_base=tile.b_base + self.base.n2s, c_base=tile.c_base + self.base.out,
            )
            for tile in self.segment.tiles
        ]

    @property
    def end(self) -> Base:
        """The base of a case that follows this one."""
        return Base(
            self.base.w2e + len(self.segment.w2e), self.base.n2s + len(self.segment.n2s_values),
            self.base.out + self.segment.read_words,
        )

    def golden(self) -> Single:
        """The result."""
        return golden.gemm(self.a, self.b, self.mapping.shape.pattern)

    def flags(self) -> list[bool]:
        """The sticky flag of each tile: some sum that it wrote was not finite."""
        mapping, shape = self.mapping, self.mapping.shape
        height, width = mapping.tile_rows, mapping.tile_cols
        if mapping.paired:
            c = self.golden()
            finite = [
                bool(np.isfinite(c[block.p.start : block.p.stop, block.q.start : block.q.stop])
                     .all()) for block in map(mapping.block, range(mapping.blocks))
            ]
            pairs = ARCHITECTURE.interleave
            return [not all(finite[first : first + pairs])
                    for first in range(0, len(finite), pairs)]
        if not mapping.stationary:
            c = self.golden()
            blocks = [c[top : top + height, left : left + width]
                      for top in range(0, shape.p, height) for left in range(0, shape.q, width)]
        else:
            step = ARCHITECTURE.rows * shape.pattern.m
            blocks = [
                golden.gemm(self.a[:, : top + step], np.ascontiguousarray(
                    self.b[: top + step, left : left + width]), shape.pattern)
                for left in range(0, shape.q, width) for top in range(0, shape.k, step)
            ]
        return [not bool(np.isfinite(block).all()) for block in blocks]

    def check(self, words: Single) -> int:
        """Compare bits; returns how many elements."""
        got, expected = assemble(self.mapping, words), self.golden()
        assert got.tobytes() == expected.tobytes(), self.mapping
        return got.size


def w2e_words(segment: Segment) -> list[int]:
    """The fill port's words: row 0 lowest."""
    return [int.from_bytes(word.tobytes(), "little") for word in segment.w2e]


def n2s_words(segment: Segment) -> list[int]:
    """The fill port's words: column 0 lowest, index above value."""
    values, indices = segment.n2s_values.view(np.uint16), segment.n2s_indices
    return [
        sum((int(value) | int(index) << 16) << PACKED_WEIGHT.size * c
            for c, (value, index) in enumerate(zip(*line, strict=True)))
        for line in zip(values, indices, strict=True)
    ]


class Bench:
    """The engine with its handles looked up once."""

    def __init__(self, dut: Any, stall: float = 0) -> None:
        self.stall = stall
        self.clk, self.rst = dut.clk, dut.rst
        self.tile, self.tile_valid, self.tile_ready = dut.tile, dut.tile_valid, dut.tile_ready
        self.retired, self.nonfinite = dut.retired, dut.retired_nonfinite
        self.busy, self.cycles = dut.busy, dut.cycles
        self.w2e = dut.w2e_en, dut.w2e_address, dut.w2e_data
        self.n2s = dut.n2s_en, dut.n2s_address, dut.n2s_data
        self.out_en, self.out_address, self.out_data = dut.out_en, dut.out_address, dut.out_data

    async def start(self) -> None:
        """Clock and reset."""
        for handle in (self.tile, self.tile_valid, *self.w2e, *self.n2s, self.out_en,
                       self.out_address):
            handle.value = 0
        self.rst.value = 1
        Clock(self.clk, 2, "ns").start(start_high=False)
        for _ in range(3):
            await FallingEdge(self.clk)
        self.rst.value = 0
        await FallingEdge(self.clk)
        assert int(self.busy.value) == int(self.cycles.value) == 0

    async def fill(self, case: Case) -> None:
        """Both operand buffers at once, a word a cycle each."""
        streams = (
            (self.w2e, case.base.w2e, w2e_words(case.segment)),
            (self.n2s, case.base.n2s, n2s_words(case.segment)),
        )
        for n in range(max(len(words) for *_, words in streams)):
            for (enable, address, data), base, words in streams:
                enable.value = (1 << len(enable)) - 1 if n < len(words) else 0
                if n < len(words):
                    address.value = base + n
                    data.value = words[n]
            await FallingEdge(self.clk)
        self.w2e[0].value = self.n2s[0].value = 0

    async def work(self, tiles: Sequence[Tile]) -> list[Retired]:
        """Offer the tiles, at random times with ``stall``, until the engine is idle again."""
        waiting = [tile.pack() for tile in tiles]
        strobes: list[Retired] = []
        offered = False
        for cycle in range(1 << 16):
            # An offer stays, unchanged, until it is taken.
            if not offered and waiting and random.random() >= self.stall:
                self.tile.value, self.tile_valid.value, offered = waiting.pop(0), 1, True
            taken = offered and bool(self.tile_ready.value)  # ready does not depend on valid
            if self.retired.value:
                strobes.append(Retired(cycle, bool(self.nonfinite.value)))
            if not offered and not waiting and not self.busy.value:
                assert not strobes or strobes[-1].cycle == cycle - 1, "busy ends with the last"
                return strobes
            await FallingEdge(self.clk)
            if taken:
                self.tile_valid.value, offered = 0, False
        raise AssertionError("the engine hangs")

    async def read(self, words: int, base: int = 0) -> Single:
        """Result words of all columns, a word a cycle."""
        self.out_en.value = 1
        lines = []
        for n in range(words + FEED_LATENCY):
            if n >= FEED_LATENCY:
                lines.append(int(self.out_data.value).to_bytes(4 * ARCHITECTURE.cols, "little"))
            self.out_address.value = base + n
            await FallingEdge(self.clk)
        self.out_en.value = 0
        return np.frombuffer(b"".join(lines), np.float32).reshape(words, ARCHITECTURE.cols)
