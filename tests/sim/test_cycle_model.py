"""The chip's cycle model against the RTL: what a unit's time goes into, and larger arrays.

Whole training steps, and the record, are in ``tests/benchmarks/test_chip_cycles.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from layer_program import forward_program
from random_programs import MEMORY_BYTES, Waits, generate
from random_programs import PROGRAM as RANDOM_AT

from compiler.chip.conv_geometry import ConvGeometry
from compiler.ir import Conv
from rtl import isa
from rtl.architecture import PRESETS
from rtl.pattern import NmPattern
from sim.chip import Chip, MemoryModel
from sim.chip_cycles import ChipCycles, predict

SIDE = 128
POINTWISE = Conv((1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
PROGRAM, MEMORY, DATA = 0x10000, 0x20000, 0x8000
TINY = PRESETS["tiny"]
FIXED = MemoryModel.fixed()
UNITS = ("load", "compute", "vector", "store")


def gap(model: float, rtl: float) -> float:
    """The model's error, printed."""
    print(f"RTL {rtl:,}, model {model:,}, {model / rtl - 1:+.2%}")
    return abs(model / rtl - 1)


@pytest.fixture(scope="module")
def small() -> Iterator[Chip]:
    """The 8 x 8 chip."""
    with Chip(PRESETS["small"], 1 << 20, model=FIXED) as chip:
        yield chip


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["dense", "2:8"])
def test_gemm_on_a_larger_array(small: Chip, pattern: str) -> None:
    geometry = ConvGeometry(POINTWISE, SIDE, 1, 1, SIDE, SIDE)
    program = forward_program(small.architecture, geometry, NmPattern.parse(pattern))
    counters = program.run(small)
    model = predict(program.words, small.architecture, FIXED, program.bases, program.at)
    assert gap(model.cycles, counters["cycles"]) <= 0.02
    assert model.macs == counters["macs"] == SIDE**3 // (1 if pattern == "dense" else 4)
    assert model.write_beats == counters["write_beats"]
    assert gap(model.read_beats, counters["read_beats"]) <= 0.02
    for name in UNITS:
        assert gap(model.units[name].busy, counters[f"{name}_busy"]) <= 0.05
        assert gap(1 + model.units[name].wait, 1 + counters[f"{name}_wait"]) <= 0.05


# What bounds a unit, in programs made for it.

STORES = ["store base=1 a=1 lines=1 run=1 pitch=8"] * 40
LOADS = ["load_v lines=64 run=64"] * 10
GATHER = ["load_v lines=64 run=1 pitch=8"] * 10
DIVISIONS = ["load_v lines=64 run=64 half=1",
             *(["vector op=4 lines=64 source=2 immediate=0x40000000 after_load=1"] * 20)]
CHAIN = ["load_v lines=1", "vector lines=1 dest=1 after_load=1",
         "store base=1 a=1 lines=1 after_vector=1"] * 20
HOST = ["load_v lines=64 run=64", "host point=1", "load_v lines=64 run=64", "fence"]


def both(chip: Chip, lines: list[str], model: MemoryModel = FIXED) -> tuple[dict[str, int],
                                                                            ChipCycles]:
    program = [isa.assemble(line) for line in [*lines, "end"]]
    chip.load(program, PROGRAM)
    bases = [0, DATA]
    point = chip.start(PROGRAM, bases)
    while point is not None:
        point = chip.resume()
    return chip.counters(), predict(program, TINY, model, bases, PROGRAM)


@pytest.fixture(scope="module", params=[1, 10, 40, 120])
def tiny(request: pytest.FixtureRequest) -> Iterator[tuple[Chip, MemoryModel]]:
    """The 4 x 4 chip with memories of different latencies."""
    model = MemoryModel.fixed(request.param)
    with Chip(TINY, MEMORY, model=model) as chip:
        chip.memory[:] = np.arange(MEMORY, dtype=np.uint32).view(np.uint8)[:MEMORY] & 0x3F
        yield chip, model


@pytest.mark.parametrize(
    "lines", [STORES, LOADS, GATHER, DIVISIONS, CHAIN, HOST, []],
    ids=["stores", "loads", "gather", "divisions", "chain", "host", "nothing"])
def test_programs_without_compute_are_exact(
    tiny: tuple[Chip, MemoryModel], lines: list[str]
) -> None:
    chip, memory = tiny
    counters, model = both(chip, lines, memory)
    assert gap(model.cycles, counters["cycles"]) <= 0.01
    assert (model.read_beats, model.write_beats) == (
        counters["read_beats"], counters["write_beats"])
    for name in UNITS:
        assert model.units[name].busy == pytest.approx(counters[f"{name}_busy"], abs=8)


@pytest.mark.parametrize("waits", Waits, ids=lambda waits: waits.name)
def test_random_programs(waits: Waits) -> None:
    """Every instruction, host points, turned and packed operands; those that skip no store."""
    compared = 0
    with Chip(TINY, MEMORY_BYTES, model=FIXED) as chip:
        for seed in range(20):
            program = generate(TINY, seed, 80, waits)
            chip.memory[:] = program.memory
            point = chip.start(RANDOM_AT, program.bases, program.scalars)
            while point is not None:
                point = chip.resume()
            counters = chip.counters()
            if not counters["stores_skipped"]:
                model = predict(program.words, TINY, FIXED, program.bases, RANDOM_AT)
                compared += 1
                assert gap(model.cycles, counters["cycles"]) <= 0.01, seed
                assert gap(model.read_beats, counters["read_beats"]) <= 0.01, seed
                assert model.write_beats == counters["write_beats"], seed
                assert model.macs == counters["macs"], seed
    assert compared > 3


def test_a_unit_says_what_bounds_it() -> None:
    def units(lines: list[str], memory: MemoryModel = FIXED) -> dict[str, str]:
        program = [isa.assemble(line) for line in [*lines, "end"]]
        found = predict(program, TINY, memory)
        return {name: unit.bound for name, unit in found.units.items() if unit.busy}

    assert units(LOADS) == {"load": "work"}
    assert units(LOADS, MemoryModel(bandwidth=6.0)) == {"load": "rest"}
    assert units(DIVISIONS)["vector"] == "work"
    assert units(CHAIN) == {"load": "rest", "vector": "load", "store": "vector"}


def test_more_bandwidth_latency_and_pauses_only_slow_down() -> None:
    program = [isa.assemble(line) for line in [*CHAIN, *STORES, "end"]]

    def cycles(**values: float) -> int:
        return predict(program, TINY, MemoryModel(**values)).cycles  # type: ignore[arg-type]

    fast = cycles()
    for values in ({"read_latency": 80}, {"write_latency": 80}, {"bandwidth": 20.0},
                   {"outstanding": 1}, {"jitter": 40}, {"stall": 0.3}):
        assert cycles(**values) > fast, values
    assert cycles(stall=0.3, seed=1) == cycles(stall=0.3, seed=1)
