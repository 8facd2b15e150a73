"""Documentation does not rot: what it names exists, what it computes is what the code computes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from benchmarks.record import blocks
from rtl.architecture import PRESETS, Architecture
from rtl.stce import StceTiming
from rtl.tile import TILE_WORD_BITS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ODD = Architecture(name="odd", rows=3, cols=5, adder_stages=3)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_links_exist(page: Path) -> None:
    text = page.read_text()
    paths = set(re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]*(?:\.[a-z]+)?)`", text))
    links = set(re.findall(r"\]\(([^)#:]+)\)", text))
    assert paths | links
    missing = [path for path in paths if not (ROOT / path).exists()]
    missing += [link for link in links if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_and_modules_exist(page: Path) -> None:
    text = page.read_text()
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_[a-z_0-9]+)`", text):
        assert f"def {name}(" in tests, name
    for module in re.findall(r"python -m ([a-z_.]+)", text):
        assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("arch", [*PRESETS.values(), ODD], ids=lambda arch: arch.name)
def test_timing_formulas_of_the_array_page(arch: Architecture) -> None:
    """docs/array.md spells out what the timing classes compose."""
    rows, cols, stages, timing = arch.rows, arch.cols, arch.interleave, StceTiming(arch)
    for n in (1, 2, 8):
        assert timing.sequencer.stationary_gap(n) == rows * n + -(-3 // stages)
        assert timing.finish(True, n) == 2 + 4 + stages + (rows - 1) * n * stages + cols
    assert timing.start(True) == stages * (1 + -(-rows // stages))
    assert timing.start(False) == stages
    assert timing.finish(False, 1) == 2 + 4 + stages + rows * (stages + 1) + cols
    assert timing.sequencer.drain_gap == rows


def test_size_of_a_tile_word() -> None:
    assert f"one {TILE_WORD_BITS}-bit word each" in (ROOT / "docs" / "array.md").read_text()


def test_result_tables_are_filled_in() -> None:
    """Each block of the README holds what its command printed (``benchmarks.record``)."""
    places = blocks((ROOT / "README.md").read_text())
    assert len(places) >= 5
    for command, content in places.items():
        assert len(content.splitlines()) > 5, command
