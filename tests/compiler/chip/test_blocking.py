"""Blocks cover a GEMM and fit the buffers, and generated programs keep the units busy."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.chip.allocator import DeviceMemory, Region
from compiler.chip.blocking import MEMORY_BYTES_PER_CYCLE, Problem, best_blocking
from compiler.chip.builder import ProgramBuilder
from compiler.chip.conv_geometry import ConvGeometry
from compiler.chip.gemm import emit_forward
from compiler.chip.tensors import Matrix, PackedWeights
from rtl import isa
from rtl.architecture import PRESETS, Architecture
from rtl.chunk import LANES, WORD_BYTES, ChunkFormat
from rtl.errors import ParameterError
from rtl.instruction import Unit
from rtl.pattern import DENSE, NmPattern
from sim.cycles import Run

MINIMAL = Architecture(name="minimal", rows=4, cols=4, w2e_words=16, n2s_words=64, out_words=64)
ARCHITECTURES = (PRESETS["tiny"], PRESETS["small"], PRESETS["paper"], MINIMAL)
QUEUE = 8
"""Instructions that wait in front of a unit."""


class Timing:
    """Time of a program with four units and their queues: each instruction takes as long as its
    data, and begins when its unit is free and its waits are over."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.busy = dict.fromkeys(Unit, 0.0)
        self._shape: isa.Decoded | None = None

    def cost(self, decoded: isa.Decoded) -> float:
        """Cycles of one instruction."""
        machine, word = self.architecture, WORD_BYTES / MEMORY_BYTES_PER_CYCLE
        name = decoded.instruction.mnemonic
        if name == "shape":
            self._shape = decoded
            return 1
        if name == "load_a":
            assert self._shape is not None
            values = self._shape.values
            return decoded["count"] * values["taps_y"] * values["taps_x"] * values["words"] * word
        if name == "load_b":
            form = ChunkFormat(NmPattern(decoded["n"], 1 << decoded["m_log2"]))
            items = decoded["panels"] * decoded["taps"] * decoded["items"]
            words, rows = (1, 1) if decoded["m_log2"] == 0 else (form.words, form.rows)
            return items * max(words * word, rows * max(1, LANES // machine.cols))
        if name == "compute":
            interleave_rows = decoded["interleave_rows"]
            tiles = -(-decoded["p_count"] // (machine.rows * interleave_rows)) * -(
                -decoded["q_count"] // (machine.cols * (machine.interleave // interleave_rows)))
            run = Run(False, decoded["n"], decoded["groups"] * decoded["n"], tiles,
                      bool(decoded["last"]))
            return run.cycles(machine)
        if name == "vector":
            return decoded["lines"] * (max(1, LANES // machine.cols) if decoded["drain"] else 1)
        if name in ("store", "load_v"):
            single = not decoded.values.get("half", decoded.values.get("source", 0))
            return decoded["lines"] * (2 if single else 1) * word
        raise AssertionError(name)

    def run(self, program: list[int]) -> float:
        """Cycles from the first instruction to the last completion."""
        free = dict.fromkeys(Unit, 0.0)
        ends: dict[Unit, list[float]] = {unit: [] for unit in Unit}
        begun = {unit: deque([0.0] * QUEUE, QUEUE) for unit in Unit}
        now = 0.0
        for word in program[:-1]:
            decoded = isa.decode(word)
            unit = decoded.instruction.unit
            now = max(now + 1, begun[unit][0])
            start = max(now, free[unit])
            for other in (Unit.LOAD, Unit.COMPUTE, Unit.VECTOR, Unit.STORE):
                distance = decoded[f"after_{other.name.lower()}"]
                if distance and len(ends[other]) >= distance:
                    start = max(start, ends[other][-distance])
            cost = self.cost(decoded)
            free[unit] = start + cost
            self.busy[unit] += cost
            begun[unit].append(start)
            ends[unit].append(free[unit])
        return max(free.values())


def forward_program(geometry: ConvGeometry, pattern: NmPattern | None, architecture: Architecture
                    ) -> list[int]:
    """FF of one layer."""
    space, builder = DeviceMemory(), ProgramBuilder(architecture)
    sizes = geometry.taps, geometry.c_in, geometry.c_out
    weights = space.allocate(Region.WEIGHTS, "w", Matrix(*sizes, half=True) if pattern is None
                             else PackedWeights(*sizes, pattern))
    x = space.allocate(Region.ACTIVATIONS, "x", geometry.input())
    y = space.allocate(Region.ACTIVATIONS, "y", geometry.output())
    emit_forward(builder, geometry, x, weights, y)
    return builder.program()


@pytest.mark.parametrize("pattern", [None, NmPattern(2, 8)])
def test_256_cubed_on_8x8_is_near_the_bound(pattern: NmPattern | None) -> None:
    """Within 5 % of the larger of compute and memory, first loads and last stores included."""
    machine, n = PRESETS["small"], 256
    program = forward_program(ConvGeometry.linear(n, n, n), pattern, machine)
    timing = Timing(machine)
    total = timing.run(program)
    chosen = pattern or DENSE
    compute = n**3 * chosen.n / chosen.m / machine.pes
    memory = 2 * n * n * 3 / MEMORY_BYTES_PER_CYCLE
    print(total, compute, timing.busy, len(program))
    assert total <= 1.05 * max(compute, memory)


@settings(max_examples=60)
@given(p=st.integers(1, 400), panels=st.integers(1, 40), chunks=st.integers(1, 60),
       pattern=st.sampled_from(["dense", "2:4", "2:8", "8:16", "1:16"]),
       architecture=st.sampled_from(ARCHITECTURES))
def test_steps_cover_every_result_once_and_fit(
    p: int, panels: int, chunks: int, pattern: str, architecture: Architecture
) -> None:
    chosen = NmPattern.parse(pattern)
    problem = Problem(p, panels, chunks * LANES, chosen)
    blocking = best_blocking(architecture, problem)
    depths = architecture.w2e_words, architecture.n2s_words, architecture.out_words
    for slots, size, depth in zip(blocking.slots, blocking.sizes, depths, strict=True):
        assert slots >= 1 and slots * size <= depth
    seen = np.zeros((p, panels * LANES), int)
    for step in blocking.steps():
        top = step.block.p.start + step.row
        left = step.block.q.start * LANES + step.column
        here = seen[top : top + step.rows, left : left + step.columns]
        assert here.shape == (step.rows, step.columns)
        assert (here == step.k.start).all()
        here += len(step.k)
    assert (seen == problem.k).all()


def test_k_is_cut_only_where_it_must_be() -> None:
    small = best_blocking(PRESETS["small"], Problem(64, 4, 4608, NmPattern(2, 8)))
    assert small.whole_k and small.overlaps
    assert not best_blocking(MINIMAL, Problem(64, 4, 4608, NmPattern(2, 8))).whole_k


def test_buffers_that_hold_no_tile_are_named() -> None:
    narrow = Architecture(name="narrow", rows=1, cols=1, w2e_words=16, n2s_words=64, out_words=64)
    with pytest.raises(ParameterError, match=r"^architecture='narrow': has buffers too small"):
        best_blocking(narrow, Problem(1, 1, 16, DENSE))
