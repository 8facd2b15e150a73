"""The cycle model of the chip against the RTL, and the RTL against its record."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache

import pytest

from benchmarks import chip_cycles
from benchmarks.chip_cycles import ALLOWED_CHANGE, PATTERNS, RECORD, WHOLE, Measured, measure
from sim.chip import MemoryModel

FIXED, STALLS = 0.02, 0.05
"""Largest error of the model: with a memory of fixed latency, with one that pauses at random."""

AGAIN = "deliberate? then: python -m benchmarks.chip_cycles --record"


@cache
def rows(pattern: str) -> list[Measured]:
    """Every operation and the whole step, once."""
    return measure(pattern)


def layers(measured: list[Measured]) -> dict[str, tuple[int, int]]:
    """RTL and model cycles of each layer: its FF, BP, WU and update; the whole step beside them."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in measured:
        name = row.name if row.name == WHOLE else row.name.split()[0]
        sums[name][0] += row.rtl
        sums[name][1] += row.model
    return {name: (rtl, model) for name, (rtl, model) in sums.items()}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_model_with_fixed_latency(pattern: str) -> None:
    """Every single operation of every layer."""
    assert len(rows(pattern)) > 20
    for row in rows(pattern):
        print(f"{row.key}: RTL {row.rtl}, model {row.model}, {row.gap:+.2%}")
        assert abs(row.gap) <= FIXED, row.key


@pytest.mark.parametrize("latency", [10, 120])
def test_model_with_other_latencies(latency: int) -> None:
    for row in measure("2:8", MemoryModel.fixed(latency)):
        print(f"{row.key}: RTL {row.rtl}, model {row.model}, {row.gap:+.2%}")
        assert abs(row.gap) <= FIXED, row.key


@pytest.mark.parametrize("bandwidth", [6.0, 24.0])
def test_model_with_limited_bandwidth(bandwidth: float) -> None:
    """Of the bus's 64 bytes a cycle: loads and stores compete."""
    for row in measure("2:8", MemoryModel(bandwidth=bandwidth)):
        print(f"{row.key}: RTL {row.rtl}, model {row.model}, {row.gap:+.2%}")
        assert abs(row.gap) <= FIXED, row.key


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 9))])
def test_model_with_random_stalls(seed: int) -> None:
    """The model knows how the memory behaves on average, not when it pauses."""
    model = MemoryModel.stalls(seed)
    for name, (rtl, predicted) in layers(measure("2:8", model, times=3)).items():
        print(f"seed {seed}, {name}: RTL {rtl}, model {predicted}, {predicted / rtl - 1:+.2%}")
        if name != "loss":  # some 200 cycles, no layer
            assert abs(predicted / rtl - 1) <= STALLS, name


@pytest.mark.parametrize("pattern", PATTERNS)
def test_rtl_takes_what_the_record_says(pattern: str) -> None:
    """A change beyond 1 % in either direction is looked at by a person first."""
    known = json.loads(RECORD.read_text())["cycles"]
    assert {row.key for row in rows(pattern)} == {k for k in known if k.startswith(pattern + " ")}
    for row in rows(pattern):
        change = row.rtl / known[row.key] - 1
        assert abs(change) <= ALLOWED_CHANGE, f"{row.key}: {change:+.2%}; {AGAIN}"


def test_record_is_of_these_programs() -> None:
    assert json.loads(RECORD.read_text())["guard"] == chip_cycles.guard(), AGAIN
