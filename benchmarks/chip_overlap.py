"""How well loads, compute and stores overlap: GEMMs on the RTL of the chip, memory included.

``python -m benchmarks.chip_overlap`` runs FF, BP and WU of linear layers on the 8 x 8 chip. Its
memory has the paper's bandwidth for each processing element (76.8 GB/s for 32 x 32 at 200 MHz, here
24 bytes a cycle) and the latency of DDR4. Bounds: MACs over processing elements, and bytes over
bandwidth; a cycle count may exceed the larger of them by 5 %.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from benchmarks.console import one_line_errors, stdout
from compiler.chip.conv_geometry import ConvGeometry
from compiler.chip.gemm import emit_backward, emit_forward, emit_weight_update
from compiler.chip.run import ChipRun
from compiler.chip.tensors import Image, Matrix, PackedWeights, Tensor, gradient_group
from rtl.architecture import PRESETS, Architecture
from rtl.axi import BOUNDARY
from rtl.chunk import WORD_BYTES
from rtl.pattern import DENSE, NmPattern
from sim.chip import Chip, MemoryModel
from sim.interpreter import Interpreter

__all__ = ["ALLOWED", "Overlap", "measure", "table"]

ALLOWED = 1.05
"""Cycles over the larger bound."""


@dataclass(frozen=True)
class Overlap:
    """One GEMM on the RTL: what it took, and what compute and memory alone would take."""

    stage: str
    size: int
    pattern: NmPattern
    cycles: int
    compute: float
    memory: float
    mismatches: int

    @property
    def ratio(self) -> float:
        """Cycles over the larger of the two bounds."""
        return self.cycles / max(self.compute, self.memory)


def measure(
    architecture: Architecture, stage: str, size: int, pattern: NmPattern, seed: int = 0
) -> Overlap:
    """``stage`` of a linear layer with ``size`` inputs, outputs and examples."""
    run, rng = ChipRun(architecture), np.random.default_rng(seed)
    geometry = ConvGeometry.linear(size, size, size)
    x, y = run.place(geometry.input()), run.place(geometry.output())
    stored: list[tuple[Tensor, np.ndarray[tuple[int, ...], np.dtype[np.float16]]]] = []

    def weights(backward: bool) -> PackedWeights | Matrix:
        array = rng.standard_normal((1, size, size)).astype(np.float16)
        tensor = (Matrix(1, size, size, half=True) if pattern == DENSE
                  else PackedWeights(1, size, size, pattern, backward=backward))
        placed = run.place(tensor)
        stored.append((placed, array))
        return placed

    for activation in (x, y):
        shape = (size, 1, 1, size)
        stored.append((activation, rng.standard_normal(shape).astype(np.float16)))
    if stage == "FF":
        emit_forward(run.builder, geometry, x, weights(backward=False), y)
    elif stage == "BP":
        emit_backward(run.builder, geometry, y, weights(backward=True), x)
    else:
        gradient = Matrix(1, size, size, group=gradient_group(architecture))
        emit_weight_update(run.builder, geometry, x, y, run.place(gradient))
    image = run.image()
    for tensor, array in stored:
        tensor.store(image, array)  # type: ignore[attr-defined]
    return _run(run, image, stage, size, pattern)


def _run(
    run: ChipRun, image: Image, stage: str, size: int, pattern: NmPattern
) -> Overlap:
    architecture, program = run.builder.architecture, run.builder.program()
    model = MemoryModel.paper(architecture)
    at = -(-len(image.memory) // BOUNDARY) * BOUNDARY
    total = -(-(at + len(program) * WORD_BYTES) // BOUNDARY) * BOUNDARY
    with Chip(architecture, total, model=model) as chip:
        chip.memory[: len(image.memory)] = image.memory
        chip.load(program, at)
        chip.start(at, image.bases)
        counters = chip.counters()
        result = np.array(chip.memory[: len(image.memory)])
    Interpreter(architecture, image.memory, image.bases).start(program)
    data = (counters["read_beats"] + counters["write_beats"]) * architecture.bus_bytes
    return Overlap(
        stage, size, pattern, counters["cycles"], counters["macs"] / architecture.pes,
        data / model.bandwidth,
        int(np.count_nonzero(result.view(np.uint32) != image.memory.view(np.uint32))),
    )


def table(architecture: Architecture, rows: list[Overlap]) -> Table:
    """A line a GEMM."""
    shown = Table(title=f"{architecture.rows} x {architecture.cols} chip, "
                        f"{MemoryModel.paper(architecture).bandwidth:g} bytes a cycle")
    shown.add_column("GEMM")
    for name in ("pattern", "RTL cycles", "compute bound", "memory bound",
                 f"cycles / bound (<= {ALLOWED})", "mismatches"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(f"{row.stage} {row.size}^3", str(row.pattern), f"{row.cycles:,}",
                      f"{row.compute:,.0f}", f"{row.memory:,.0f}", f"{row.ratio:.3f}",
                      str(row.mismatches))
    return shown


@one_line_errors
def main() -> int:
    """Print the table; status 1 if a ratio or a word is wrong."""
    architecture = PRESETS["small"]
    sparse = NmPattern(2, 8)
    cases = [("FF", 256, DENSE), ("FF", 256, sparse), ("BP", 256, DENSE), ("BP", 256, sparse),
             ("WU", 256, DENSE), ("FF", 384, sparse)]
    rows = [measure(architecture, *case) for case in cases]
    stdout().print(table(architecture, rows))
    return int(any(row.mismatches or row.ratio > ALLOWED for row in rows))


if __name__ == "__main__":
    sys.exit(main())
