"""How a GEMM is cut into blocks that fit the chip's buffers, chosen by estimated time.

Row, column and result buffers are each cut into equal slots. A block of results needs its rows and
its columns over all of K; two slots of each let the next block load while one computes. Where K
does not fit twice, it is cut as well: then a block is one tile, whose sums stay in the array while
the pieces of K pass by in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from compiler.ceiling import ceil_div
from rtl.architecture import Architecture
from rtl.chunk import LANES, ChunkFormat
from rtl.errors import ParameterError
from rtl.isa import LINES
from rtl.pattern import NmPattern
from sim.cycles import Run

__all__ = ["MEMORY_BYTES_PER_CYCLE", "Block", "Blocking", "Problem", "Step", "best_blocking"]

MEMORY_BYTES_PER_CYCLE = 24
"""What the estimate takes device memory to sustain, reads and writes together."""

_WORD_CYCLES = 32 / MEMORY_BYTES_PER_CYCLE
_HIDDEN = 0.95
"""How much of the less busy units' work is taken to overlap with the busiest one's."""
_MOST_ROWS = 4032  # `first` of load_a has 12 bits
_LONGEST_K = 65520  # `items` and `count` have 16 bits
_SCAN = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True)
class Problem:
    """The sizes of a GEMM that matter for its blocks.

    Parameters
    ----------
    p, panels, k: rows, panels of 16 columns, and K, which WU need not pad to 16.
    row_unit, panel_unit: a block begins at multiples of these.
    vector_ops, epilogue_words, stored_words: a line of 16 results costs so many vector operations,
        words loaded for them, and words stored.
    """

    p: int
    panels: int
    k: int
    pattern: NmPattern
    row_unit: int = 1
    panel_unit: int = 1
    vector_ops: int = 1
    epilogue_words: int = 0
    stored_words: int = 1


@dataclass(frozen=True)
class Block:
    """Results that are computed and drained together: rows ``p`` and panels ``q``."""

    p: range
    q: range


@dataclass(frozen=True)
class Step:
    """One ``compute``: part of a block, (``row``, ``rows``) and (``column``, ``columns``) counted
    from the block's corner, over ``k``; ``last`` ends the block."""

    block: Block
    row: int
    rows: int
    column: int
    columns: int
    k: range
    interleave_rows: int
    last: bool


@dataclass(frozen=True)
class Blocking:
    """A way to cut ``problem``; ``edge`` rows are in the first and in the last block of rows.

    ``rows_outer``: all columns pass by a block of rows before the next, or the other way round.
    """

    architecture: Architecture
    problem: Problem
    p_block: int
    q_block: int
    k_block: int
    edge: int
    rows_outer: bool = True

    # Buffers.

    @property
    def whole_k(self) -> bool:
        """Whether K is not cut."""
        return self.k_block >= self.problem.k

    @property
    def row_words(self) -> int:
        """Words of a piece of K in a row buffer."""
        return ceil_div(min(self.k_block, self.problem.k), LANES)

    @property
    def column_words(self) -> int:
        """Words of a piece of K in a column buffer."""
        pattern = self.problem.pattern
        return min(self.k_block, self.problem.k) // pattern.m * pattern.n

    @property
    def column_tiles(self) -> int:
        """Column tiles of a block."""
        return ceil_div(self.q_block * LANES, self.architecture.cols)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Words of a slot of row, column and result buffers."""
        row_tiles = ceil_div(self.p_block, self.architecture.rows)
        return (row_tiles * self.row_words, self.column_tiles * self.column_words,
                self.column_tiles * self.p_block)

    @cached_property
    def slots(self) -> tuple[int, int, int]:
        """Slots of row, column and result buffers: as many as fit and are of use."""
        machine, (rows, columns, results) = self.architecture, self.sizes
        pieces = ceil_div(self.problem.k, self.k_block)
        return (min(machine.w2e_words // rows, len(self.row_cuts) * pieces),
                min(machine.n2s_words // columns, len(self.column_cuts) * pieces),
                min(machine.out_words // results, 2))

    @property
    def fits(self) -> bool:
        """Whether there is a slot of each."""
        return min(self.slots) >= 1

    @property
    def overlaps(self) -> bool:
        """Whether the next block can load while one computes."""
        rows, columns, results = self.slots
        pieces = ceil_div(self.problem.k, self.k_block)
        blocks = len(self.row_cuts), len(self.column_cuts)
        return (rows >= min(2, blocks[0] * pieces) and columns >= min(2, blocks[1] * pieces)
                and results >= min(2, blocks[0] * blocks[1]))

    # Blocks.

    @cached_property
    def row_cuts(self) -> list[range]:
        """Rows of the blocks: ``edge`` first and last, ``p_block`` between."""
        p, edge = self.problem.p, self.edge
        if p <= max(self.p_block, 2 * edge) or edge >= self.p_block:
            return list(_cuts(0, p, self.p_block))
        tail = (p - 1) // edge * edge
        return [range(edge), *_cuts(edge, tail, self.p_block), range(tail, p)]

    @cached_property
    def column_cuts(self) -> list[range]:
        """Panels of the blocks."""
        return list(_cuts(0, self.problem.panels, self.q_block))

    def blocks(self) -> Iterator[Block]:
        """In order of execution: back and forth, so that what is in the buffers is used again."""
        outer, inner = self.row_cuts, self.column_cuts
        if not self.rows_outer:
            outer, inner = inner, outer
        for number, first in enumerate(outer):
            for second in reversed(inner) if number % 2 else inner:
                yield Block(first, second) if self.rows_outer else Block(second, first)

    def steps(self) -> Iterator[Step]:
        """All ``compute`` of all blocks in order."""
        for block in self.blocks():
            yield from self._steps(block)

    def _steps(self, block: Block) -> Iterator[Step]:
        rows, columns = len(block.p), len(block.q) * LANES
        height, width, interleave_rows = rows, columns, self._interleave(rows, columns)
        if not self.whole_k:
            height, width = self._tile(interleave_rows)
        for row in range(0, rows, height):
            for column in range(0, columns, width):
                for k in _cuts(0, self.problem.k, self.k_block):
                    yield Step(
                        block, row, min(height, rows - row), column, min(width, columns - column),
                        k, interleave_rows,
                        row + height >= rows and column + width >= columns
                        and k.stop == self.problem.k,
                    )

    # Time.

    def _tile(self, interleave_rows: int) -> tuple[int, int]:
        machine = self.architecture
        return (machine.rows * interleave_rows,
                machine.cols * (machine.interleave // interleave_rows))

    def _tiles(self, rows: int, columns: int, interleave_rows: int) -> int:
        height, width = self._tile(interleave_rows)
        return ceil_div(rows, height) * ceil_div(columns, width)

    def _interleave(self, rows: int, columns: int) -> int:
        """Row tiles among the interleaved sums for the fewest tiles."""
        factor = self.architecture.interleave
        return min((r for r in range(1, factor + 1) if factor % r == 0),
                   key=lambda r: self._tiles(rows, columns, r))

    def _compute(self, rows: int, columns: int) -> int:
        """Cycles of a block."""
        pattern = self.problem.pattern
        tiles = self._tiles(rows, columns, self._interleave(rows, columns))
        if self.whole_k:
            passes = self.problem.k // pattern.m * pattern.n
            return Run(False, pattern.n, passes, tiles).cycles(self.architecture)
        return tiles * sum(
            Run(False, pattern.n, len(k) // pattern.m * pattern.n, 1, k.stop == self.problem.k)
            .cycles(self.architecture) for k in _cuts(0, self.problem.k, self.k_block)
        )

    def _row_load(self, rows: int) -> float:
        """Cycles to load rows over all of K."""
        return rows * ceil_div(self.problem.k, LANES) * _WORD_CYCLES

    def _column_load(self, panels: int) -> float:
        """Cycles to load panels over all of K: by memory, or by the column buffers' ports."""
        form = ChunkFormat(self.problem.pattern)
        chunks = ceil_div(self.problem.k, LANES)
        fill = form.rows * max(1.0, LANES / self.architecture.cols)
        return panels * chunks * max(form.words * _WORD_CYCLES, fill)

    def cycles(self) -> float:
        """Estimated time: the busiest of the units, the first loads and the last stores."""
        problem, machine = self.problem, self.architecture
        row_cuts, column_cuts = self.row_cuts, self.column_cuts
        compute = sum(
            number * times * self._compute(rows, panels * LANES)
            for rows, number in _lengths(row_cuts) for panels, times in _lengths(column_cuts)
        )
        row_trips, column_trips = self._trips()
        load = (self._row_load(problem.p) * row_trips
                + self._column_load(problem.panels) * column_trips)
        lines = problem.p * problem.panels
        vector_line = max(1.0, LANES / machine.cols) + problem.vector_ops - 1
        store_line = problem.stored_words * _WORD_CYCLES
        epilogue = lines * problem.epilogue_words * _WORD_CYCLES
        first = self._row_load(len(row_cuts[0])) + self._column_load(len(column_cuts[0]))
        if not self.whole_k:
            first *= self.k_block / problem.k
        corner = len(row_cuts[-1]) * len(column_cuts[-1])
        # A block is some eight instructions of a word, and two more each 64 lines.
        program = (len(row_cuts) * len(column_cuts) * 8 + lines * 2 / LINES) * _WORD_CYCLES
        memory = load + epilogue + lines * store_line + program
        work = compute, memory, lines * vector_line
        hidden = _HIDDEN if self.overlaps else 0.0
        busy = max(work) + (sum(work) - max(work)) * (1 - hidden)
        return first + busy + corner * max(vector_line, store_line)

    def _trips(self) -> tuple[float, float]:
        """How often rows and columns are loaded, on average."""
        counts, slots = (len(self.row_cuts), len(self.column_cuts)), self.slots[:2]
        if not self.whole_k:
            rows, columns = len(self.row_cuts[0]), len(self.column_cuts[0]) * LANES
            tiles = self._tiles(rows, columns, self._interleave(rows, columns))
            return counts[1] * tiles, counts[0] * tiles
        outer, inner = (0, 1) if self.rows_outer else (1, 0)
        trips = [1.0, 1.0]
        again = max(0, counts[inner] - slots[inner]) / counts[inner]
        trips[inner] += (counts[outer] - 1) * again
        return trips[0], trips[1]


def _cuts(start: int, stop: int, block: int) -> Iterator[range]:
    for first in range(start, stop, block):
        yield range(first, min(first + block, stop))


def _lengths(cuts: list[range]) -> list[tuple[int, int]]:
    lengths = [len(cut) for cut in cuts]
    return [(length, lengths.count(length)) for length in sorted(set(lengths))]


@lru_cache(maxsize=1024)
def best_blocking(architecture: Architecture, problem: Problem) -> Blocking:
    """The legal blocking with the least estimated time; K is cut only if two blocks would not fit.

    Raises :class:`ParameterError` if not even one tile fits the buffers.
    """
    whole = [b for b in _whole(architecture, problem) if b.fits]
    good = [b for b in whole if b.overlaps] or list(_cut(architecture, problem)) or whole
    if not good:
        raise ParameterError("architecture", architecture.name,
                             "has buffers too small for one block of this GEMM")
    return min(good, key=Blocking.cycles)


def _row_sizes(architecture: Architecture, problem: Problem) -> list[int]:
    """Rows of a block worth trying."""
    unit = problem.row_unit
    sizes = {ceil_div(scale * architecture.rows, unit) * unit for scale in _SCAN}
    whole = ceil_div(problem.p, unit) * unit
    return sorted({min(size, whole) for size in sizes | {_MOST_ROWS} if size <= _MOST_ROWS})


def _panel_sizes(problem: Problem) -> list[int]:
    unit, most = problem.panel_unit, LINES
    sizes = {min(scale * unit, problem.panels) for scale in _SCAN}
    return sorted(size for size in sizes | {problem.panels} if size <= most) or [unit]


def _whole(architecture: Architecture, problem: Problem) -> Iterator[Blocking]:
    if problem.k > _LONGEST_K:
        return
    unit = problem.row_unit
    least = ceil_div(architecture.rows * architecture.interleave, unit) * unit
    for rows in _row_sizes(architecture, problem):
        for panels in _panel_sizes(problem):
            for edge in sorted({min(rows, least), rows}):
                for rows_outer in (True, False):
                    yield Blocking(architecture, problem, rows, panels, problem.k, edge,
                                   rows_outer)


def _cut(architecture: Architecture, problem: Problem) -> Iterator[Blocking]:
    """Blocks of one tile with the longest pieces of K, two to a buffer if possible."""
    for rows in _row_sizes(architecture, problem):
        for panels in _panel_sizes(problem):
            one = Blocking(architecture, problem, rows, panels, LANES, rows)
            height = architecture.rows * architecture.interleave
            if rows > max(height, problem.row_unit) or not one.fits:
                continue
            row_size, column_size, _ = one.sizes
            for copies in (2, 1):
                chunks = min(architecture.w2e_words // row_size,
                             architecture.n2s_words // column_size, _LONGEST_K * copies // LANES)
                if chunks >= copies:
                    yield replace(one, k_block=chunks // copies * LANES)
                    break
