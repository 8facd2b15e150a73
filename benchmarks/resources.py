"""What the chip takes of an UltraScale+ FPGA, as Yosys maps it: an estimate before placement.

``python -m benchmarks.resources [--arch paper]`` synthesises each component type once, multiplies
by how often the architecture has it, and holds the sum against the VU9P of the VCU1525. LUTs are
mapped primitives before packing. Vivado was not run; no clock frequency follows from this.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from benchmarks.console import one_line_errors, stdout
from compiler.explore.resources import VU9P, instances
from rtl.architecture import Architecture
from sim.engine import cached_verilog
from sim.toolchain import find_yosys, run_tool

__all__ = ["DEVICE", "cells", "components", "instances", "main", "resources"]

DEVICE: dict[str, float] = {
    name.upper(): amount for name, amount in asdict(VU9P.capacity).items()
}
"""What a VU9P has."""

# Shares of a resource that one primitive takes; LUT memories and shift registers are LUTs too.
_SHARES: dict[str, tuple[str, float]] = {
    **{f"LUT{inputs}": ("LUT", 1) for inputs in range(1, 7)},
    "RAM32M16": ("LUT", 8), "RAM64M8": ("LUT", 8), "SRL16E": ("LUT", 1), "SRLC32E": ("LUT", 1),
    "INV": ("LUT", 0),  # becomes part of the LUT that it feeds
    **{f"FD{kind}E": ("FF", 1) for kind in "RSCP"},
    "DSP48E2": ("DSP", 1), "RAMB36E2": ("BRAM36", 1), "RAMB18E2": ("BRAM36", 0.5),
    **dict.fromkeys(("CARRY4", "MUXF7", "MUXF8", "MUXF9"), ("LUT", 0)),  # beside the LUTs
}

# Scope notes and escaped names of flattened modules break abc9's way back into the design; beside
# black boxes plain names would collide, and there it finds its way without.
_SCRIPT = """
read_verilog source.v
{boxes}
synth_xilinx -family xcup -flatten -noiopad -noclkbuf -top {top} -run begin:map_luts
delete t:$scopeinfo
{names}
synth_xilinx -family xcup -flatten -noiopad -noclkbuf -top {top} -run map_luts:
tee -q -o report.txt stat
"""


def cells(verilog: str, top: str, without: Sequence[str] = ()) -> Counter[str]:
    """Primitives that module ``top`` of ``verilog`` maps to, and how many of each.

    Modules named in ``without`` are left out: they are counted on their own.

    Raises :class:`sim.toolchain.ToolError` when Yosys is missing or refuses the design.
    """
    yosys = find_yosys()
    with tempfile.TemporaryDirectory(prefix="nmsat-") as name:
        scratch = Path(name)
        (scratch / "source.v").write_text(verilog)
        boxes = "\n".join(f"blackbox {module}" for module in without)
        names = "" if without else "rename -unescape\nautoname"
        (scratch / "script.ys").write_text(_SCRIPT.format(top=top, boxes=boxes, names=names))
        run_tool([yosys, "-q", "-s", "script.ys"], f"synthesising {top}", cwd=scratch)
        report = (scratch / "report.txt").read_text()
    found = re.findall(r"^ +(\d+) +([A-Z]\w+)$", report, re.M)
    return Counter({cell: int(count) for count, cell in found})


def resources(primitives: Counter[str]) -> dict[str, float]:
    """LUT, FF, DSP and BRAM36 of some primitives; ``KeyError`` for one that is not known."""
    total = dict.fromkeys(DEVICE, 0.0)
    for cell, count in primitives.items():
        resource, share = _SHARES[cell]
        total[resource] += share * count
    return total


def components(architecture: Architecture) -> Iterator[tuple[str, dict[str, float]]]:
    """What one component of each type of the chip takes; all of them, minutes."""
    verilog = cached_verilog(architecture, "sat")
    for name in instances(architecture):
        yield name, resources(cells(verilog, name, ["vector_lane"] if name == "vector" else ()))


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; the status is 1 if the chip is larger than the device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", default="paper", help="preset or TOML file")
    architecture = Architecture.load(parser.parse_args(argv).arch)
    table = Table(title=f"SAT {architecture.rows} x {architecture.cols} on a VU9P, Yosys estimate")
    for name in ("component", "count", *DEVICE):
        table.add_column(name, justify="right" if name != "component" else "left")

    def line(name: str, count: str, used: dict[str, float]) -> None:
        table.add_row(name, count, *(f"{amount:,.10g}" for amount in used.values()))

    counts = instances(architecture)
    total = dict.fromkeys(DEVICE, 0.0)
    for name, used in components(architecture):
        count = counts[name]
        line(name, f"{count:,}", used)
        total = {key: total[key] + count * used[key] for key in DEVICE}
    table.add_section()
    line("chip", "", total)
    table.add_row("of the device", "", *(f"{total[key] / DEVICE[key]:.0%}" for key in DEVICE))
    stdout().print(table)
    return int(any(total[key] > DEVICE[key] for key in DEVICE))


if __name__ == "__main__":
    raise SystemExit(main())
