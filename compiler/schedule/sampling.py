"""A few tiles of a scheduled GEMM, small enough to run on the RTL of the array.

A full-size layer takes hundreds of millions of cycles. A sample keeps what its cycles follow from
(dataflow, tile shape, pattern, leftovers at the edges, as much of K as fits) and cuts the rest. It
runs as one flow of tiles, for which model and RTL must agree to the cycle; the whole layer is the
same formula with more tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.array.mapping import GemmShape, Mapping
from compiler.ceiling import ceil_div
from compiler.schedule.tiling import Tiling
from rtl.architecture import MAX_M

__all__ = ["Sample", "sample_of"]

_CYCLES = 40_000
"""Array cycles that a sample should not much exceed."""


@dataclass(frozen=True)
class Sample:
    """A cut-down GEMM: how the schedule's model sees it, and how the array runs it."""

    tiling: Tiling
    mapping: Mapping

    @property
    def model_cycles(self) -> int:
        """What the model of the whole layer says of the sample."""
        return self.tiling.array_cycles


def sample_of(tiling: Tiling, k_unit: int = 1) -> Sample:
    """Tiles from the corner of a GEMM: whole ones, and what is left over at the edges.

    ``k_unit``: elements of K come in runs of so many, which the cut respects.

    Raises :class:`ValueError` if even one tile does not fit the buffers as a single flow.
    """
    machine, problem = tiling.architecture, tiling.problem
    pattern, interleave = problem.pattern, machine.interleave
    if tiling.stationary:
        height, width = interleave * (machine.rows * pattern.n + 8), machine.cols
    elif tiling.paired:
        height, width = machine.rows, machine.cols
    else:
        height = machine.rows * tiling.interleave_rows
        width = machine.cols * (interleave // tiling.interleave_rows)
    p, q = (_with_leftover(length, unit) for length, unit in ((problem.p, height),
                                                              (problem.q, width)))
    units = ceil_div(p, height) * ceil_div(q, width)
    batch = min(problem.batch, ceil_div(2 * interleave + 1, units)) if tiling.paired else 1
    groups = min(problem.groups, _groups(tiling, p, q, batch))
    unit = max(1, k_unit // pattern.m)
    groups = max(1, groups // unit * unit) if groups < problem.groups else groups
    small = replace(problem, p=p, q=q, k=groups * pattern.m, batch=batch, taps=1)
    blocks = (height, width) if tiling.paired else (ceil_div(p, height) * height,
                                                    ceil_div(q, width) * width)
    if tiling.stationary:
        blocks = p, ceil_div(q, width) * width
    cut = replace(tiling, problem=small, p_block=blocks[0], q_block=blocks[1], group_block=groups)
    resident = batch * units if tiling.paired else 1
    mapping = Mapping(machine, GemmShape(p, q, small.k, pattern, batch), cut.dataflow, *blocks,
                      groups, tiling.interleave_rows, tiling.paired, resident)
    if len(list(mapping.pieces())) != 1:
        raise ValueError("a sample must be one flow of tiles")
    return Sample(cut, mapping)


def _with_leftover(length: int, unit: int) -> int:
    """Two units, or one and what the last unit of ``length`` holds."""
    return min(length, unit + (length % unit or unit))


def _groups(tiling: Tiling, p: int, q: int, batch: int) -> int:
    """Groups of K that fit the buffers and the cycles to be spent."""
    machine, pattern = tiling.architecture, tiling.problem.pattern
    rows, columns = ceil_div(p, machine.rows), ceil_div(q, machine.cols)
    per_word = MAX_M // pattern.m
    if tiling.stationary:
        depth = machine.w2e_words * per_word // p * machine.rows
        depth = min(depth, machine.n2s_words // (columns * pattern.n))
        return min(depth // machine.rows, 3) * machine.rows
    units = rows * columns * batch
    tiles = ceil_div(units, machine.interleave)
    copies = (units, units) if tiling.paired else (rows, columns)
    depth = min(machine.w2e_words // copies[0] * per_word,
                machine.n2s_words // (copies[1] * pattern.n))
    return min(depth, _CYCLES // (tiles * pattern.n * machine.interleave))
