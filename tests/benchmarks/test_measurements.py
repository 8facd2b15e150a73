"""The scripts that measure: on sizes small enough for a test, without judging any time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

from algorithms import nm_mask
from benchmarks import engine_speed, mask_speed, resources, utilisation
from rtl.architecture import PRESETS
from sim.engine import cached_verilog

TINY = PRESETS["tiny"]


def test_utilisation_runs_both_dataflows_and_finds_no_difference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--arch", "tiny", "--size", "20", "--patterns", "dense", "2:8"]
    assert utilisation.main(arguments) == 0
    out = capsys.readouterr().out
    assert [out.count(word) for word in (" WS ", " OS ", "dense", "2:8")] == [2, 2, 2, 2]


def test_utilisation_fails_where_the_engines_differ(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sim.golden.gemm", lambda a, b, pattern: np.zeros((len(a), b.shape[1]), np.float32))
    assert utilisation.main(["--arch", "tiny", "--size", "4", "--patterns", "dense"]) == 1
    assert capsys.readouterr().out


def test_native_speed_counts_the_cycles_of_a_checked_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cycles, seconds = engine_speed.native_speed(TINY, (8, 8, 16))
    assert cycles > 8 * 8 * 16 / TINY.pes
    assert seconds > 0
    monkeypatch.setattr("sim.golden.gemm", lambda a, b: np.zeros((len(a), b.shape[1]), np.float32))
    with pytest.raises(AssertionError, match=r"^the RTL of tiny differs from the golden model$"):
        engine_speed.native_speed(TINY, (8, 8, 16))


@pytest.mark.parametrize("other", mask_speed.OTHERS, ids=lambda run: run.__name__)
@pytest.mark.parametrize("dim", [0, 1])
def test_masks_of_the_comparison_are_the_same(other: mask_speed.Implementation, dim: int) -> None:
    weight = torch.randint(-3, 4, (32, 48, 3, 3), generator=torch.Generator().manual_seed(0))
    for pattern in mask_speed.PATTERNS:
        expected = nm_mask(weight.float(), pattern, dim)
        assert torch.equal(other(weight.float(), pattern, dim), expected)


def test_resources_of_primitives() -> None:
    cells = Counter({"LUT6": 3, "RAM32M16": 2, "FDRE": 5, "FDSE": 1, "RAMB18E2": 3,
                     "DSP48E2": 1, "CARRY4": 9, "INV": 4})
    assert resources.resources(cells) == {"LUT": 19, "FF": 6, "DSP": 1, "BRAM36": 1.5}
    with pytest.raises(KeyError, match="LDCE"):
        resources.resources(Counter({"LDCE": 1}))


def test_the_components_counted_are_those_of_the_netlist() -> None:
    """Every part that the Verilog instantiates, as often as it does."""
    text = cached_verilog(TINY, "sat")
    placed = re.findall(r"^  (\w+) (?:\\\S+ |\w+ )\(", text, re.M)
    counts = {name: placed.count(name) for name in placed}
    for part in ("stce", "issue_queue", "narrow", "widen", "sore_lane", "vector_register"):
        counts.pop(part, None)  # what holds others, or lies in one of them
    per_block = TINY.block_rows * TINY.block_cols
    assert counts.pop("uspe") == per_block
    blocks = counts.pop("block")
    assert counts.pop("systolic_array") == 1
    assert {**counts, "uspe": blocks * per_block} == resources.instances(TINY)


@pytest.mark.slow
def test_the_engine_maps_to_the_fpga_as_meant(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One DSP a USPE, buffers in block RAM; the ``paper`` chip fits its card, without a latch."""
    monkeypatch.setattr(resources, "cells", cache(resources.cells))
    text = cached_verilog(PRESETS["paper"])
    uspe = resources.cells(text, "uspe")
    assert uspe["DSP48E2"] == 1
    assert not [cell for cell in uspe if cell.startswith("RAMB")]
    for buffer in ("row_feeder", "column_feeder", "result_buffer"):
        assert resources.resources(resources.cells(text, buffer))["BRAM36"] > 0
    # A latch is not among the primitives that resources() knows: it would raise.
    assert resources.main(["--arch", "paper"]) == 0
    assert "of the device" in capsys.readouterr().out


def test_patterns_of_the_mask_comparison_fill_whole_groups() -> None:
    assert all(size % pattern.m == 0 for shape in mask_speed.SHAPES for size in shape[:2]
               for pattern in mask_speed.PATTERNS)


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (utilisation.main, ["--size", "0"],
         "--size=0: must be at least 1; nearest legal value: 1"),
        (utilisation.main, ["--patterns", "2:9x"],
         "--patterns='2:9x': must be 'dense' or 'N:M', two integers; nearest legal value: 2:8"),
        (resources.main, ["--arch", "papr"],
         "--arch='papr': must be one of tiny, small, paper or the path of a .toml file; "
         "nearest legal value: paper"),
    ],
)
def test_bad_input_is_one_line(
    main: Callable[[list[str]], int], arguments: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"{message}\n")
