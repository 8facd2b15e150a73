"""Random layers, model against RTL: the array to the cycle, the chip within two per cent.

A drift in either direction fails. Seeds are in the test's name.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from layer_program import forward_program, update_program

from compiler.array.gemm import run_mapping
from compiler.chip.conv_geometry import ConvGeometry
from compiler.ir import Conv
from compiler.schedule.mapper import best_tiling
from compiler.schedule.problem import Problem
from compiler.schedule.sampling import sample_of
from compiler.schedule.target import Target
from rtl.architecture import PRESETS
from rtl.pattern import DENSE, NmPattern
from sim import golden
from sim.chip import Chip, MemoryModel
from sim.chip_cycles import predict
from sim.engine import RtlEngine

PATTERNS = (DENSE, NmPattern(2, 8), NmPattern(1, 4), NmPattern(2, 4), NmPattern(2, 16),
            NmPattern(1, 2))
MEMORY = MemoryModel(bandwidth=24.0)


@pytest.fixture(scope="module")
def engine() -> RtlEngine:
    return RtlEngine(PRESETS["tiny"])


@pytest.mark.parametrize("seed", range(24))
def test_array_cycles_of_a_random_gemm_are_exact(engine: RtlEngine, seed: int) -> None:
    rng = random.Random(seed)
    problem = Problem(
        rng.randint(1, 400), rng.randint(1, 120), rng.randint(1, 600),
        batch=rng.choice((1, 1, 7)), pattern=rng.choice(PATTERNS),
    )
    target = Target.of(PRESETS["tiny"])
    for dataflow in ("auto", "ws", "os"):
        sample = sample_of(best_tiling(target, problem, dataflow).tiling)
        shape = sample.mapping.shape
        values = np.random.default_rng(seed)
        a, b = (values.standard_normal(sizes).astype(np.float16)
                for sizes in ((shape.batch, shape.p, shape.k), (shape.batch, shape.k, shape.q)))
        if shape.batch == 1:
            a, b = a[0], b[0]
        c, cycles, _ = run_mapping(sample.mapping, a, b, engine, stall_seed=0)
        assert cycles == sample.model_cycles == sample.mapping.cycles(), (seed, shape)
        want = golden.gemm(a, b, shape.pattern) if shape.batch == 1 else np.stack(
            [golden.gemm(*pair, shape.pattern) for pair in zip(a, b, strict=True)])
        assert np.array_equal(c.view(np.uint32), want.view(np.uint32))


@pytest.fixture(scope="module")
def chip() -> Iterator[Chip]:
    with Chip(PRESETS["tiny"], 1 << 22, model=MEMORY) as chip:
        yield chip


@pytest.mark.parametrize("pattern", [DENSE, NmPattern(1, 2), NmPattern(2, 4)], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_a_random_weight_update_takes_the_chip_as_long_as_the_model_says(
    chip: Chip, seed: int, pattern: NmPattern
) -> None:
    """WU from a packed sample; pixels that a chunk does not divide are in it."""
    rng = random.Random(seed)
    kernel = rng.choice((1, 3))
    conv = Conv((kernel, kernel), (stride := rng.choice((1, 2)), stride), (kernel // 2,) * 4)
    geometry = ConvGeometry(conv, rng.randint(1, 3), rng.randint(4, 9), rng.randint(4, 9),
                            rng.choice((16, 24)), rng.choice((16, 40)))
    program = update_program(chip.architecture, geometry, pattern)
    counters = program.run(chip)
    model = predict(program.words, chip.architecture, MEMORY, program.bases, program.at)
    assert model.macs == counters["macs"]
    assert model.cycles == pytest.approx(counters["cycles"], rel=0.02)
    assert model.read_beats == pytest.approx(counters["read_beats"], rel=0.02)
    assert model.write_beats == counters["write_beats"]


@pytest.mark.parametrize("seed", range(12))
def test_a_random_layer_takes_the_chip_as_long_as_the_model_says(chip: Chip, seed: int) -> None:
    rng = random.Random(seed)
    kernel = rng.choice((1, 3, 3, 5))
    conv = Conv((kernel, kernel), (stride := rng.choice((1, 1, 2)), stride),
                (kernel // 2,) * 4)
    side, c_in, c_out = rng.randint(4, 12), rng.choice((16, 24, 40)), rng.choice((16, 32, 48))
    pattern = rng.choice(PATTERNS)
    geometry = ConvGeometry(conv, rng.randint(1, 3), side, side, c_in, c_out)
    program = forward_program(chip.architecture, geometry, pattern)
    counters = program.run(chip)
    model = predict(program.words, chip.architecture, MEMORY, program.bases, program.at)
    print(f"seed {seed}: {geometry}, {pattern}: RTL {counters['cycles']:,}, model "
          f"{model.cycles:,}, {model.cycles / counters['cycles'] - 1:+.2%}")
    assert model.macs == counters["macs"]
    assert model.cycles == pytest.approx(counters["cycles"], rel=0.02)
    assert model.read_beats == pytest.approx(counters["read_beats"], rel=0.02)
    assert model.write_beats == counters["write_beats"]
