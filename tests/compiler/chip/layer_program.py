"""One convolution as a program of the chip, for tests that run it on the RTL and on its model."""

from __future__ import annotations

from typing import NamedTuple

from compiler.chip.allocator import Region
from compiler.chip.conv_geometry import ConvGeometry
from compiler.chip.gemm import emit_forward, emit_weight_update
from compiler.chip.run import ChipRun
from compiler.chip.tensors import Matrix, PackedWeights, gradient_group
from rtl.architecture import Architecture
from rtl.axi import BOUNDARY
from rtl.pattern import DENSE, NmPattern
from sim.chip import Chip


class LayerProgram(NamedTuple):
    """A program, its base addresses, and where behind its tensors it lies."""

    words: list[int]
    bases: list[int]
    at: int

    def run(self, chip: Chip) -> dict[str, int]:
        """Counters of a run on zeros."""
        chip.memory[:] = 0
        chip.load(self.words, self.at)
        chip.start(self.at, self.bases)
        return chip.counters()


def forward_program(
    architecture: Architecture, geometry: ConvGeometry, pattern: NmPattern
) -> LayerProgram:
    """FF of one layer."""
    run = ChipRun(architecture)
    sizes = geometry.taps, geometry.c_in, geometry.c_out
    weights = run.place(Matrix(*sizes, half=True) if pattern == DENSE
                        else PackedWeights(*sizes, pattern), Region.WEIGHTS)
    x, y = run.place(geometry.input()), run.place(geometry.output())
    emit_forward(run.builder, geometry, x, weights, y)
    return _program(run)


def update_program(
    architecture: Architecture, geometry: ConvGeometry, pattern: NmPattern
) -> LayerProgram:
    """WU of one layer, from a packed sample of dY unless the pattern is dense."""
    run = ChipRun(architecture)
    x, dy = run.place(geometry.input()), run.place(geometry.output() if pattern == DENSE else
        PackedWeights(1, geometry.output().pixels, geometry.c_out, pattern))
    gradient = run.place(Matrix(geometry.taps, geometry.c_in, geometry.c_out,
                                group=gradient_group(architecture)), Region.WEIGHTS)
    emit_weight_update(run.builder, geometry, x, dy, gradient)
    return _program(run)


def _program(run: ChipRun) -> LayerProgram:
    at = -(-run.space.size() // BOUNDARY) * BOUNDARY
    return LayerProgram(run.builder.program(), run.space.bases(), at)
