"""Runs the cocotb benches under Verilator: the USPE, the 4 x 4 engine, the whole 4 x 4 chip."""

from __future__ import annotations

import secrets
from pathlib import Path

from rtl.architecture import PRESETS
from rtl.netlist import to_verilog
from rtl.uspe import Uspe
from sim.engine import cached_verilog
from sim.testbench import CocotbModel
from sim.toolchain import find_yosys

TINY = PRESETS["tiny"]
HERE = Path(__file__).parent


def run(model: CocotbModel, bench: str, scratch: Path) -> list[str]:
    """Tests passed; another seed each time, which a failure reports."""
    passed = model.run(bench, scratch, folder=HERE, seed=secrets.randbits(32))
    print(f"{bench}: {len(passed)} cocotb tests passed")
    return passed


def test_uspe(tmp_path: Path) -> None:
    """Dataflows, N:M selection, stalls, drain chain of a processing element."""
    find_yosys()
    assert len(run(CocotbModel(to_verilog(Uspe(TINY), "uspe"), "uspe"), "uspe_bench",
                   tmp_path)) == 8


def test_stce(tmp_path: Path) -> None:
    """The whole engine through its pins: fill, stream with stalls, strobes, flags, results."""
    assert len(run(CocotbModel(cached_verilog(TINY), "stce"), "stce_bench", tmp_path)) == 5


def test_chip(tmp_path: Path) -> None:
    """The whole chip: cocotbext-axi is its host and its memory."""
    assert len(run(CocotbModel(cached_verilog(TINY, "sat"), "sat"), "chip_bench", tmp_path)) == 7
