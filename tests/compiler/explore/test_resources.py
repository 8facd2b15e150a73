"""The closed form of the resources against Yosys, and its shape.

``test_resources.json`` has what ``python -m benchmarks.resources --arch FILE.toml`` printed for six
architectures, a component a row: LUT, FF, DSP and BRAM36 of one instance. The slopes of the closed
form come from changing one size of ``tiny`` at a time; the record changes several at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.resources import DEVICE, components
from compiler.explore.resources import VU9P, Resources, estimate, instances, memory, parts
from rtl.architecture import PRESETS, Architecture
from rtl.errors import ParameterError

RECORD = json.loads(Path(__file__).with_suffix(".json").read_text())
NAMES = [f"{entry['sizes']['rows']}x{entry['sizes']['cols']}" for entry in RECORD]
LOGIC, BLOCK_RAM = 0.03, 0.05
"""Relative errors allowed of LUTs and flip-flops, and of block RAM; DSPs are exact."""

BASE = Architecture.make(name="base", rows=8, cols=8, w2e_words=256, n2s_words=2048, out_words=1024,
                         read_beats=128)
LADDERS: Mapping[str, tuple[int, ...]] = {
    "rows": (1, 2, 3, 5, 8, 16, 24, 32, 56, 64, 128, 240),
    "cols": (1, 2, 4, 8, 16, 32, 48, 64, 128),
    "adder_stages": (2, 3, 4, 5),
    "w2e_words": tuple(1 << log2 for log2 in range(7, 17)),
    "n2s_words": tuple(1 << log2 for log2 in range(8, 21)),
    "out_words": tuple(1 << log2 for log2 in range(8, 21)),
    "bus_bytes": (32, 64, 128),
    "burst_beats": (4, 16, 32),
    "read_beats": (128, 256, 512, 1024, 2048, 4096),
}
"""Sizes between which no memory moves from LUTs to block RAM, depths in powers of two."""


def hold(found: Resources, expected: Resources) -> None:
    """Whether an estimate is as good as promised."""
    assert found.lut == pytest.approx(expected.lut, rel=LOGIC)
    assert found.ff == pytest.approx(expected.ff, rel=LOGIC)
    assert found.dsp == expected.dsp
    assert found.bram36 == pytest.approx(expected.bram36, rel=BLOCK_RAM)


def recorded(entry: Mapping[str, Mapping[str, list[float]]]) -> tuple[Architecture, Resources]:
    """An architecture of the record, and the sum of its components."""
    architecture, total = Architecture.make(**entry["sizes"]), Resources()
    for name, count in instances(architecture).items():
        total += Resources(*entry["components"][name]) * count
    return architecture, total


@pytest.mark.parametrize("entry", RECORD, ids=NAMES)
def test_the_chip_is_as_large_as_yosys_says(
    entry: Mapping[str, Mapping[str, list[float]]],
) -> None:
    architecture, total = recorded(entry)
    hold(estimate(architecture), total)


@pytest.mark.parametrize("entry", RECORD, ids=NAMES)
def test_each_component_is_about_as_large_as_yosys_says(
    entry: Mapping[str, Mapping[str, list[float]]],
) -> None:
    """Errors do not cancel: a component is within 6 %, or a few dozen where it is tiny."""
    architecture, _ = recorded(entry)
    for name, found in parts(architecture).items():
        expected = Resources(*entry["components"][name])
        assert found.lut == pytest.approx(expected.lut, rel=0.06, abs=30), name
        assert found.ff == pytest.approx(expected.ff, rel=0.02, abs=4), name
        assert (found.dsp, found.bram36) == (expected.dsp, expected.bram36), name


def test_the_record_has_architectures_that_differ() -> None:
    assert len(RECORD) >= 4
    sizes = [Architecture.make(**entry["sizes"]).model_dump() for entry in RECORD]
    for name in LADDERS:
        assert len({size[name] for size in sizes}) > 1, name
    assert estimate(PRESETS["paper"]).fits(VU9P)


# Yosys 0.70, memory with one write and one registered read port, as in rtl.edges.
@pytest.mark.parametrize(("width", "depth", "bram36"), [
    (256, 64, 0), (256, 96, 4), (256, 512, 4), (256, 600, 7.5), (256, 1500, 11), (256, 2048, 14.5),
    (256, 2500, 18.5), (256, 3000, 22), (256, 4096, 29), (256, 5000, 36.5), (256, 16384, 116),
    (256, 40000, 290), (256, 65536, 464),
    (20, 128, 0), (20, 200, 0.5), (20, 513, 1), (20, 2048, 1.5), (20, 3000, 2.5), (20, 6000, 4.5),
    (20, 10000, 7.5), (20, 20000, 12.5), (20, 32768, 20), (20, 40000, 25), (20, 1048576, 640),
    (32, 64, 0), (32, 96, 0.5), (32, 1024, 1), (32, 3000, 3), (32, 16384, 16), (32, 1048576, 1024),
])
def test_memories_fill_block_ram_as_yosys_fills_it(width: int, depth: int, bram36: float) -> None:
    assert memory(width, depth).bram36 == bram36


def test_a_memory_takes_at_least_its_bits() -> None:
    """BRAM36 holds 36 kbit; memories too small for one are in LUTs, with their read register."""
    for width in (1, 9, 20, 32, 256, 515):
        for depth in (*range(16, 3000, 61), 4096, 70_000):
            used = memory(width, depth)
            if used.bram36:
                assert used.bram36 * 36 * 1024 >= width * depth
                assert used.ff == 0
            else:
                assert used.lut * 64 >= width * depth and used.ff == width


@pytest.mark.parametrize("size", LADDERS)
def test_more_of_a_size_takes_no_less(size: str) -> None:
    values = {**BASE.model_dump(), "name": "custom"}
    steps = [estimate(Architecture.make(**{**values, size: value})) for value in LADDERS[size]]
    assert steps[0] != steps[-1]
    for smaller, larger in pairwise(steps):
        assert larger.lut >= smaller.lut
        assert larger.ff >= smaller.ff
        assert larger.bram36 >= smaller.bram36
        # An odd L multiplies in the collector, an even one shifts.
        assert larger.dsp >= smaller.dsp or size == "adder_stages"


@pytest.mark.parametrize("size", ["w2e_words", "n2s_words", "out_words", "read_beats"])
def test_block_ram_grows_with_any_depth(size: str) -> None:
    values = {**BASE.model_dump(), "name": "custom"}
    depths = range(256, 4096, 97)
    used = [estimate(Architecture.make(**{**values, size: depth})).bram36 for depth in depths]
    assert used == sorted(used)


def test_resources_add_up_and_have_shares() -> None:
    one = Resources(lut=10, ff=20, dsp=1, bram36=0.5)
    assert one + one == one * 2 == Resources(20, 40, 2, 1)
    tenth = Resources(118_224, 236_448, 684, 216)
    assert tenth.share(VU9P) == pytest.approx({"lut": 10, "ff": 10, "dsp": 10, "bram36": 10})
    assert (tenth * 10).fits(VU9P) and not (tenth * 10 + Resources(dsp=1)).fits(VU9P)
    assert astuple(VU9P.capacity) == tuple(DEVICE.values())
    assert list(DEVICE) == ["LUT", "FF", "DSP", "BRAM36"]


def test_only_a_chip_has_resources() -> None:
    with pytest.raises(ParameterError, match="cols"):
        estimate(Architecture.make(rows=4, cols=3))


@pytest.mark.slow
def test_yosys_still_says_so() -> None:
    """The preset ``tiny`` mapped anew: the RTL has not outgrown the constants."""
    architecture = PRESETS["tiny"]
    counts, total = instances(architecture), Resources()
    for name, used in components(architecture):
        total += Resources(*used.values()) * counts[name]
    hold(estimate(architecture), total)
