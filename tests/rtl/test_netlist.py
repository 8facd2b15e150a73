"""The Verilog: one module a component type whatever the array's size, and clean under lint."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from rtl.architecture import PRESETS, Architecture
from rtl.array import SystolicArray
from rtl.netlist import to_verilog
from rtl.uspe import Uspe
from sim.engine import cached_verilog
from sim.toolchain import find_verilator, find_yosys

WAIVED = {
    "CASEINCOMPLETE": "Amaranth assigns the default before a case, so nothing latches",
    "DECLFILENAME": "one file holds all modules",
    "PROCASSINIT": "a register has a power-up value and a reset: FPGAs have both",
    "SYMRSVDWORD": "`interrupt` is the conventional name of the port, and reserved only in C++",
    "UNUSEDSIGNAL": "every field of a structured port is also a named wire, used or not",
    "WIDTHEXPAND": "Amaranth computes operands at their own width and leaves extension to Verilog",
    "WIDTHTRUNC": "Amaranth tests a vector against zero with !, and assigns the low bits of a sum",
}
"""What Amaranth's Verilog cannot avoid, with the reason."""

MODULES = {
    "stce", "sequencer", "collector", "collector.plans", "systolic_array", "block", "uspe",
    "uspe.adder", "uspe.multiplier", "row_feeder", "column_feeder", "result_buffer",
}

ARCHITECTURES = {
    "tiny": PRESETS["tiny"],
    "grid": Architecture.make(name="grid", rows=8, cols=12, block=4, adder_stages=5),
    "flat": Architecture.make(name="flat", rows=1, cols=32, block=16, adder_stages=2),
}

CHIPS = {
    "tiny": PRESETS["tiny"],
    "odd": Architecture.make(name="odd", rows=3, cols=32, block=16, adder_stages=3, bus_bytes=128,
                             w2e_words=100, n2s_words=512, out_words=512),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_module_a_component_type(name: str) -> None:
    """However large the array, and however many blocks it has."""
    architecture = ARCHITECTURES[name]
    text = cached_verilog(architecture)
    modules = re.findall(r"^module \\?(\S+?) ?\(", text, re.M)
    assert len(modules) == len(set(modules))
    assert set(modules) == MODULES
    block = text.split("\nmodule block(")[1].split("\nendmodule")[0]
    array = text.split("\nmodule systolic_array(")[1].split("\nendmodule")[0]
    assert len(re.findall(r"^  uspe ", block, re.M)) == (
        architecture.block_rows * architecture.block_cols
    )
    assert len(re.findall(r"^  block ", array, re.M)) * len(
        re.findall(r"^  uspe ", block, re.M)
    ) == architecture.pes


def test_text_has_no_paths_and_no_memory_dumps() -> None:
    """The same text on every machine, and memories without word-by-word contents."""
    text = cached_verilog(PRESETS["tiny"])
    assert str(Path(__file__).parents[2]) not in text
    assert "(* src" not in text
    assert not re.search(r"^  initial begin$", text, re.M)


def test_same_text_every_time() -> None:
    """The text is the key of the model cache, so it must not vary."""
    find_yosys()
    again = to_verilog(SystolicArray(PRESETS["tiny"]), "systolic_array")
    modules = re.findall(r"^module .*?^endmodule$", again, re.M | re.S)
    assert len(modules) == 5
    text = cached_verilog(PRESETS["tiny"])
    assert all(module in text for module in modules)


def test_component_alone() -> None:
    """Any component converts by itself under the name asked for."""
    find_yosys()
    text = to_verilog(Uspe(PRESETS["tiny"]), "lone")
    assert set(re.findall(r"^module \\?(\S+?) ?\(", text, re.M)) == {
        "lone", "lone.adder", "lone.multiplier",
    }


def lint(text: str, top: str, folder: Path) -> None:
    """Verilator -Wall has nothing to say beyond the waived classes."""
    verilator = find_verilator()
    (folder / f"{top}.v").write_text(text)
    done = subprocess.run(
        [verilator.executable, "--lint-only", "-Wall", "-Wno-fatal", "--top-module", top,
         *(f"-Wno-{warning}" for warning in WAIVED), folder / f"{top}.v"],
        env=verilator.environment(), capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lint(name: str, tmp_path: Path) -> None:
    """The engine at several sizes."""
    lint(cached_verilog(ARCHITECTURES[name]), "stce", tmp_path)


@pytest.mark.parametrize("name", CHIPS)
def test_lint_of_the_chip(name: str, tmp_path: Path) -> None:
    """The whole chip; each module is there once, and its ports have the names that tools know."""
    text = cached_verilog(CHIPS[name], "sat")
    modules = re.findall(r"^module \\?(\S+?) ?\(", text, re.M)
    assert len(modules) == len(set(modules)) > 30
    assert {"sat", "stce", "vector_lane", "uspe"} <= set(modules)
    header = text.split("\nmodule sat(")[1].split(");")[0]
    ports = set(re.split(r"[,\s]+", header.strip()))
    assert {"clk", "rst", "interrupt", "m_axi_araddr", "m_axi_wlast"} <= ports
    assert {"s_axi_control_wdata", "s_axi_control_bresp"} <= ports
    lint(text, "sat", tmp_path)


@pytest.mark.parametrize(
    ("fault", "name"),
    [("assign out = in & ~out;", "UNOPTFLAT"), ("always @* if (in) out = 1'h1;", "LATCH")],
)
def test_lint_still_bites(fault: str, name: str, tmp_path: Path) -> None:
    """The waivers leave the classes that matter alone: loops and latches are reported."""
    verilator = find_verilator()
    kind = "reg" if "always" in fault else "wire"
    path = tmp_path / "top.v"
    path.write_text(f"module top(input in, output {kind} out);\n  {fault}\nendmodule\n")
    done = subprocess.run(
        [verilator.executable, "--lint-only", "-Wall", *(f"-Wno-{w}" for w in WAIVED), path],
        env=verilator.environment(), capture_output=True, text=True,
    )
    assert done.returncode
    assert name in done.stderr
