"""The mapper: the tiling of a GEMM with the fewest cycles, and how far it can be from the optimum.

Every variant (dataflow, operand that plays B, shape of a tile) and, of each, a ladder of block
sizes is costed, best bounds first. A variant is left, or never entered, once the best found is
within :data:`CLOSE` of the array cycles that it needs at least. Among tilings within as much of the
fastest, the one that moves the fewest bytes is taken: what it leaves of the memory goes to updates
and neighbours. How far the result can be from what no tiling at all can go below says
:func:`lower_bound`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from compiler.ceiling import ceil_div
from compiler.schedule.problem import Problem
from compiler.schedule.target import Target
from compiler.schedule.tiling import Tiling
from rtl.errors import ParameterError
from rtl.pattern import DENSE

__all__ = ["CLOSE", "FRUGAL", "Infeasible", "Mapped", "best_tiling", "lower_bound", "tilings"]

CLOSE = 1e-3
"""Relative slack, given twice: the search ends this close to its bound, and the choice among what
it found is as free. The result is the best of the space to 0.2 %."""
FRUGAL = 1.1
"""Traffic, relative to moving each operand once, below which a fast tiling is not improved on."""

Dataflow = Literal["auto", "ws", "os"]
_LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048)


class Infeasible(ParameterError):
    """No mapping exists: which resource is short, by how much, and what would help.

    ``demand`` and ``bound`` are in ``unit``; ``levers`` are changes that would fix it.
    """

    def __init__(self, what: str, resource: str, demand: float, bound: float, unit: str,
                 levers: Sequence[str]) -> None:
        self.resource, self.demand, self.bound, self.levers = resource, demand, bound, levers
        self._given = what, resource, demand, bound, unit, levers
        rule = (f"needs {demand:,.{0 if demand >= 100 else 1}f} {unit} of {resource} and there "
                f"are {bound:,.{0 if bound >= 100 else 1}f}; would fix it: {' or '.join(levers)}")
        super().__init__("mapping", what, rule)

    def __reduce__(self) -> tuple[object, ...]:
        return Infeasible, self._given


@dataclass(frozen=True)
class Mapped:
    """The best tiling of the space, to 0.2 %, and the cycles that no tiling can go below."""

    tiling: Tiling
    bound: int

    @property
    def gap(self) -> float:
        """Cycles above the bound, relative to it."""
        return self.tiling.cost.cycles / self.bound - 1


def lower_bound(target: Target, problem: Problem) -> int:
    """Cycles that no tiling can go below: all USPEs busy, every operand moved once."""
    # Of im2col, each pixel once.
    moved = (problem.moved_bytes + problem.sampling_bytes
             - problem.a_bytes * (1 - 1 / problem.taps))
    lines = problem.batch * problem.p * problem.q / target.vector_lanes
    return max(1, round(max(
        problem.macs / target.architecture.pes,
        moved / target.dram_bytes,
        lines * problem.vector_ops,
    )))


@lru_cache(maxsize=4096)
def best_tiling(target: Target, problem: Problem, dataflow: Dataflow = "auto") -> Mapped:
    """The tiling of the space with the fewest cycles.

    Raises :class:`ParameterError` for an unknown ``dataflow`` and :class:`Infeasible` if not one
    tile fits the buffers.
    """
    if dataflow not in ("auto", "ws", "os"):
        raise ParameterError("dataflow", dataflow, "must be auto, ws or os", "auto")
    bound = lower_bound(target, problem)
    variants = [v for v in _variants(target, problem) if dataflow in ("auto", v.dataflow)]
    found: list[Tiling] = []
    least = None
    for floor, variant in sorted(((_floor(one), one) for one in variants),
                                 key=lambda pair: pair[0]):
        if least is not None and least * (1 + CLOSE) < floor:
            break
        for tiling in tilings(variant):
            found.append(tiling)
            cycles = tiling.cost.cycles
            least = cycles if least is None else min(least, cycles)
            if cycles <= max(floor, bound) * (1 + CLOSE) and (
                    tiling.cost.dram_bytes <= FRUGAL * problem.moved_bytes):
                break
        else:
            continue
        if cycles <= bound * (1 + CLOSE):
            break
    if least is None:
        raise _shortage(target, problem, dataflow, variants)
    limit = least * (1 + CLOSE)
    best = min((one for one in found if one.cost.cycles <= limit),
               key=lambda one: (one.cost.dram_bytes, one.cost.cycles))
    return Mapped(best, bound)


def _floor(variant: Tiling) -> int:
    """Array cycles that no blocks of this variant go below."""
    if not variant.stationary:
        return variant.array_cycles  # blocks do not matter
    machine, problem = variant.architecture, variant.problem
    return (problem.batch * ceil_div(problem.q, machine.cols)
            * ceil_div(problem.groups, machine.rows)
            * ceil_div(problem.p, machine.interleave) * machine.interleave * problem.pattern.n)


def _variants(target: Target, problem: Problem) -> Iterator[Tiling]:
    """One tiling of each dataflow, orientation and tile shape, with the smallest blocks."""
    machine = target.architecture
    orientations = [(problem, False)]
    if problem.pattern == DENSE and not problem.epilogue_words and not problem.inline:
        orientations.append((problem.swapped(), True))
    for turned, swapped in orientations:
        for rows in range(1, machine.interleave + 1):
            if machine.interleave % rows == 0:
                columns = machine.interleave // rows
                yield Tiling(target, turned, False, machine.rows * rows, machine.cols * columns,
                             turned.groups, rows, swapped=swapped)
        yield Tiling(target, turned, False, machine.rows, machine.cols, turned.groups, 1,
                     paired=True, swapped=swapped)
        rows = ceil_div(turned.p, machine.interleave) * machine.interleave
        yield Tiling(target, turned, True, min(rows, machine.out_words), machine.cols,
                     turned.groups, swapped=swapped)


def tilings(variant: Tiling) -> Iterator[Tiling]:
    """Block sizes of one variant that fit the buffers, large ones first."""
    if variant.stationary:
        yield from _weight_stationary(variant)
        return
    whole = [variant] if variant.paired else list(_output_stationary(variant))
    fitting = [tiling for tiling in whole if tiling.fits]
    yield from fitting
    if not any(tiling.overlaps for tiling in fitting):
        yield from _cut_k(variant)


def _sizes(unit: int, length: int, most: int) -> list[int]:
    """Multiples of ``unit`` up to ``length`` and ``most`` tiles, large first."""
    tiles = min(ceil_div(length, unit), max(1, most))
    return [scale * unit for scale in sorted({min(s, tiles) for s in (*_LADDER, tiles)},
                                             reverse=True)]


def _output_stationary(variant: Tiling) -> Iterator[Tiling]:
    """All of K in the buffers."""
    machine, problem = variant.architecture, variant.problem
    rows, columns, _ = variant.words
    depth = min(machine.w2e_words // rows if rows else 0, machine.out_words // variant.p_block)
    width = machine.n2s_words // columns
    for p_block in _sizes(variant.p_block, problem.p, depth):
        for q_block in _few(_sizes(variant.q_block, problem.q, width)):
            yield _with(variant, p_block, q_block, problem.groups, True)
    for q_block in _sizes(variant.q_block, problem.q, width):
        for p_block in _few(_sizes(variant.p_block, problem.p, depth)):
            yield _with(variant, p_block, q_block, problem.groups, False)


def _few(sizes: list[int]) -> list[int]:
    """Of the inner loop's blocks: the largest, one that leaves room for a second, the least.

    How often the outer operand is read does not depend on them.
    """
    return sorted({sizes[0], *[size for size in sizes if 2 * size <= sizes[0]][:1], sizes[-1]},
                  reverse=True)


def _cut_k(variant: Tiling) -> Iterator[Tiling]:
    """One tile a block and the longest pieces of K, two of each in the buffers if possible."""
    machine, problem = variant.architecture, variant.problem
    per_word = 16 // problem.pattern.m
    one = _with(variant, variant.p_block, variant.q_block, per_word, True)
    rows, columns, results = one.words
    if results > machine.out_words:
        return
    for copies in (2, 1):
        pieces = min(machine.w2e_words // (copies * rows), machine.n2s_words // (copies * columns))
        if pieces:
            yield _with(variant, variant.p_block, variant.q_block,
                        min(pieces * per_word, problem.groups), True)


def _weight_stationary(variant: Tiling) -> Iterator[Tiling]:
    """Blocks of rows as large as the results allow; K whole or as many slices as fit."""
    machine, problem = variant.architecture, variant.problem
    slices = ceil_div(problem.groups, machine.rows)
    for copies in (2, 1):
        most = machine.out_words // copies
        for p_block in sorted({min(problem.p, most // share) for share in (1, 2, 4, 8, 16)},
                              reverse=True):
            p_block = min(ceil_div(p_block, machine.interleave),
                          most // machine.interleave) * machine.interleave
            width = max(1, most // p_block)
            for q_block in _sizes(machine.cols, problem.q, width)[:4]:
                one = _with(variant, p_block, q_block, machine.rows, True)
                rows, columns, _ = one.words
                fit = min(machine.w2e_words // (copies * rows),
                          machine.n2s_words // (copies * columns))
                if fit:
                    groups = min(fit, slices) * machine.rows
                    yield _with(variant, p_block, q_block, groups, True)


def _with(variant: Tiling, p_block: int, q_block: int, groups: int, rows_outer: bool) -> Tiling:
    # Faster than dataclasses.replace, which this is called too often for.
    return Tiling(variant.target, variant.problem, variant.stationary, p_block, q_block, groups,
                  variant.interleave_rows, variant.paired, rows_outer, variant.swapped)


def _shortage(
    target: Target, problem: Problem, dataflow: Dataflow, variants: Sequence[Tiling]
) -> Infeasible:
    """Which buffer is too small for the smallest block, and by how much."""
    machine = target.architecture
    short: list[tuple[float, str, int, int]] = []
    for variant in variants:
        rows = machine.interleave if variant.stationary else variant.p_block
        groups = machine.rows if variant.stationary else 16 // problem.pattern.m
        smallest = _with(variant, rows, variant.q_block, groups, True)
        worst = max(
            (words / depth, name, words, depth) for words, name, depth in zip(
                smallest.words, ("w2e_words", "n2s_words", "out_words"),
                (machine.w2e_words, machine.n2s_words, machine.out_words), strict=True)
        )
        short.append(worst)
    _, name, demand, bound = min(short)
    what = f"{problem.p} x {problem.q} x {problem.k}"
    levers = [f"{name}={demand} in the architecture"]
    if dataflow != "auto":
        levers.append("dataflow auto")
    return Infeasible(what, f"buffer {name}", demand, bound, "words", levers)
