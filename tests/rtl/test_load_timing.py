"""Cycles of the load unit's RTL against the formulas that state them, and its Verilog."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from load_model import ARCHITECTURES, run
from read_model import AR, BEAT, COLUMN, DONE, FILL, IDEAL, ROW, TAKEN, Stall

from rtl.architecture import Architecture
from rtl.instruction import Instruction
from rtl.isa import LOAD_A, LOAD_B, LOAD_V, SHAPE, Decoded, decode
from rtl.load import LoadTiming, LoadUnit
from rtl.netlist import to_verilog
from rtl.read_arbiter import ReadArbiter
from sim.toolchain import find_verilator, find_yosys

BASE = [n << 30 for n in range(8)]
NAMES = pytest.mark.parametrize("name", ARCHITECTURES)


def make(instruction: Instruction, **values: int) -> Decoded:
    """An instruction with the fields given."""
    return decode(instruction.encode(**values))


def image(words: int, taps: int = 1) -> Decoded:
    """A dense image of so many words a pixel; ``taps`` by one kernel without padding."""
    return make(SHAPE, words=words, pixel=words, row=8 * words, image=64 * words, height=8, width=8,
                out_height=8, out_width=8, stride_y=1, stride_x=1, taps_y=taps, step_y=1)


LOADS = {
    "rows": make(LOAD_A, count=16, stride=16),
    "rows turned": make(LOAD_A, count=40, stride=3, turn=1),
    "columns": make(LOAD_B, items=40, pitch=1, stride=50),
    "columns by rows": make(LOAD_B, items=40, pitch=1, panels=3, panel_pitch=40, stride=50,
                            rows_first=1),
    "columns 1:4": make(LOAD_B, items=12, pitch=5, n=1, m_log2=2, stride=50),
    "columns 8:16": make(LOAD_B, items=6, pitch=10, n=8, m_log2=4, stride=50),
    "columns turned": make(LOAD_B, items=3, pitch=16, turn_pitch=1, turn=1, stride=50),
    "lines": make(LOAD_V, lines=20, run=20),
    "half lines": make(LOAD_V, lines=40, run=40, half=1),
}
SHAPE_OF = image(words=2, taps=3)


def cycle_of(log: npt.NDArray[Any], *kinds: int) -> npt.NDArray[np.int64]:
    """Cycles of the events of these kinds."""
    return log["cycle"][np.isin(log["kind"], kinds)].astype(np.int64)


@NAMES
@pytest.mark.parametrize("load", LOADS)
def test_cycles(name: str, load: str) -> None:
    """Back to back, every load takes its ``cycles``, whatever the memory's latency."""
    timing = LoadTiming(ARCHITECTURES[name])
    expected = timing.cycles(LOADS[load], SHAPE_OF)
    latency = min(50, ARCHITECTURES[name].read_beats // 4)
    log = run(name, BASE, [SHAPE_OF, *[LOADS[load]] * 12], Stall(latency=latency))
    done = cycle_of(log, DONE)
    assert [b - a for a, b in pairwise(done[5:])] == [expected] * 7


@NAMES
def test_mixed_cycles(name: str) -> None:
    """Different loads back to back: the sum of their cycles, and one fill of the corner turn
    whenever a turned load follows one that is not."""
    timing = LoadTiming(ARCHITECTURES[name])
    # Lines first, as the pause after them would hide in the filling.
    others = [load for load in reversed(LOADS.values()) if not load.values.get("turn")]
    turned = [load for load in LOADS.values() if load.values.get("turn")]
    program = [SHAPE_OF, *others, *turned]
    expected = sum(timing.cycles(load, SHAPE_OF) for load in program) + timing.turned
    done = cycle_of(run(name, BASE, program * 4, Stall(latency=4)), DONE)
    starts = done[len(program) - 1 :: len(program)]
    assert [b - a for a, b in pairwise(starts[1:])] == [expected] * 2


@NAMES
@pytest.mark.parametrize("words", [1, 7, 16])
def test_latency(name: str, words: int) -> None:
    """From ``ready`` to the burst, from a beat to its write, from the last write to ``done``."""
    timing = LoadTiming(ARCHITECTURES[name])
    shape, load = image(words), make(LOAD_A, count=1)
    if words <= 8:
        log = run(name, BASE, [shape, load])
        assert int(log["extra"][log["kind"] == AR][0]) - cycle_of(log, TAKEN)[1] == (
            timing.issue(words))
        assert cycle_of(log, ROW)[0] - cycle_of(log, BEAT)[0] == timing.back
        assert cycle_of(log, DONE)[1] - cycle_of(log, ROW)[-1] == timing.done
    log = run(name, BASE, [make(LOAD_B, items=words, pitch=1)])
    assert cycle_of(log, DONE)[0] - cycle_of(log, COLUMN)[-1] == timing.done
    log = run(name, BASE, [make(LOAD_V, lines=words, run=words)])
    assert cycle_of(log, DONE)[0] - cycle_of(log, FILL)[-1] == timing.done + 1


@NAMES
def test_turned_latency(name: str) -> None:
    """A turned block's first write comes ``turned`` cycles later than a plain one's."""
    timing = LoadTiming(ARCHITECTURES[name])
    log = run(name, BASE, [make(LOAD_B, turn=1, turn_pitch=1)])
    assert cycle_of(log, COLUMN)[0] - cycle_of(log, BEAT)[0] == timing.back + timing.turned


def test_accept() -> None:
    """The front takes an instruction every ``accept`` cycles while nothing is full."""
    program = [image(1), make(LOAD_A, count=1), image(2), make(LOAD_A, count=1)]
    taken = cycle_of(run("tiny", BASE, program), TAKEN)
    accept = LoadTiming(ARCHITECTURES["tiny"]).accept
    assert [b - a for a, b in pairwise(taken)] == [accept] * 3


def test_words() -> None:
    """The count of words is that of the beats of a bus that is a word wide, zero words aside."""
    timing = LoadTiming(ARCHITECTURES["odd"])
    for load in LOADS.values():
        log = run("odd", BASE, [image(2, taps=1), load], IDEAL)
        padding = 2 * 8 if load.instruction is LOAD_A and load["turn"] else 0
        assert len(cycle_of(log, BEAT)) == timing.words(load, image(2, taps=1)) - padding


@pytest.mark.parametrize("name", ["odd", "wide", "arbiter"])
def test_lint(name: str, tmp_path: Path) -> None:
    """Verilator -Wall has nothing to say beyond the waived classes."""
    waived = ("DECLFILENAME", "PROCASSINIT", "UNUSEDSIGNAL", "WIDTHEXPAND", "WIDTHTRUNC")
    find_yosys()
    verilator = find_verilator()
    part = ReadArbiter(Architecture.make()) if name == "arbiter" else LoadUnit(ARCHITECTURES[name])
    (tmp_path / "dut.v").write_text(to_verilog(part, "dut"))
    done = subprocess.run(
        [verilator.executable, "--lint-only", "-Wall", "-Wno-fatal", "--top-module", "dut",
         *(f"-Wno-{warning}" for warning in waived), tmp_path / "dut.v"],
        env=verilator.environment(), capture_output=True, text=True,
    )
    assert done.returncode == 0 and done.stderr == ""
