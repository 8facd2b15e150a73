"""The compute unit: expands COMPUTE instructions into the tiles of the array.

Two stages work side by side, so that tiles follow each other without a gap: the *checker* looks at
an instruction while the *issuer* sends the tiles of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import MAX_M, Architecture
from rtl.isa import COMPUTE
from rtl.queue import Queue
from rtl.registers import ErrorCode
from rtl.tile import ADDRESS_BITS, TILE
from rtl.units import ERROR_BITS, unit_port

__all__ = ["MACS_BITS", "ComputeTiming", "ComputeUnit"]

MACS_BITS = 48
"""Width of the multiply-accumulates of an instruction; buffers hold at most 2^20 words."""

_MARKS = 4
_TOTAL_BITS = 16
"""Tiles issued and not retired, counted modulo 2^16: fewer than the array takes at a time."""

# What the issuer must know of an instruction; strides and steps in units of the tile's addresses.
_WORK = data.StructLayout({
    **dict.fromkeys(("a_base", "a_stride", "a_step", "b_base", "b_stride", "b_step", "c_base",
                     "c_stride", "c_step", "groups"), ADDRESS_BITS),
    "p_count": 16, "q_count": 12, "height": 12, "width": 12,
    "n": 4, "m_log2": 3, "interleave_rows": 3, "first": 1, "last": 1,
})
_PLAIN = ("b_base", "b_stride", "c_base", "c_stride", "groups", "p_count", "q_count", "n", "m_log2",
          "interleave_rows", "first", "last")
_TO_TILE = ("a_stride", "b_stride", "c_stride", "groups", "n", "m_log2", "interleave_rows", "first",
            "last")
_MARK = data.StructLayout({"total": _TOTAL_BITS, "held": 1})


@dataclass(frozen=True)
class ComputeTiming:
    """Latencies of the compute unit in clock cycles."""

    architecture: Architecture

    retire: int = 1
    """From the last ``retired`` of an instruction to its ``done``. If its sums stay in the array,
    ``done`` comes in the first cycle without ``busy``."""

    def check(self, p_count: int, q_count: int) -> int:
        """Cycles that the checker works on an instruction that obeys the rules."""
        rows = -(-p_count // self.architecture.rows)
        columns = -(-q_count // self.architecture.cols)
        return 3 + max(rows, columns)

    def start(self, p_count: int, q_count: int) -> int:
        """From taking an instruction to ``tile_valid`` of its first tile, with nothing ahead.

        Tiles then follow in each cycle in which the array takes one. From the last tile of an
        instruction to the first of the next it is one cycle if that one has been checked.
        """
        return self.check(p_count, q_count) + 1


class ComputeUnit(Component):
    """Executes COMPUTE, output-stationary and not paired: row tiles outside, column tiles inside.

    Latencies are those of :class:`ComputeTiming`. An instruction whose sums stay in the array
    (``last`` 0) lets no other begin before the array is empty. Up to six instructions are under
    way. One that breaks a rule reports FIELD or RANGE, sends no tile and completes in its turn.

    Members
    -------
    port: In :func:`rtl.units.unit_port`.
    tile, tile_valid, tile_ready: Out, Out(1), In(1), stream of :data:`rtl.tile.TILE`.
    retired: In(1), strobe: the results of a tile are in the result buffers.
    busy: In(1), the array has a tile or results under way.
    counted: Out(1), strobe once for each instruction that sends tiles.
    macs, macs_skipped: Out(48), Out(48), with ``counted``: multiply-accumulates of the
        instruction, and those of the dense product that sparsity saves.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "port": In(unit_port()),
                "tile": Out(TILE), "tile_valid": Out(1), "tile_ready": In(1),
                "retired": In(1), "busy": In(1),
                "counted": Out(1), "macs": Out(MACS_BITS), "macs_skipped": Out(MACS_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        checked, taken, legal, work = self._check(m)
        m.submodules.marks = marks = Queue(_MARK.size, _MARKS)
        held = self._issue(m, marks, checked, taken, legal, work)
        self._complete(m, marks, held)
        return m

    def _check(self, m: Module) -> tuple[Signal, Signal, Signal, Signal]:
        """The checker; returns checked, taken (driven by the issuer), legal, and the work."""
        architecture = self.architecture
        given = Signal(COMPUTE.layout, reset_less=True)
        work = Signal(_WORK, reset_less=True)
        checked, taken, legal = Signal(), Signal(), Signal()
        error = Signal(ERROR_BITS)

        # Interleaving: what each number of row tiles among the sums means.
        known, height, width, tiles = Signal(), Signal(12), Signal(12), Signal(3)
        for rows in range(1, architecture.interleave + 1):
            if architecture.interleave % rows == 0:
                with m.If(given.interleave_rows == rows):
                    columns = architecture.interleave // rows
                    m.d.comb += [
                        known.eq(1), height.eq(architecture.rows * rows),
                        width.eq(architecture.cols * columns), tiles.eq(columns),
                    ]
        dense = (given.m_log2 == 0) & (given.n == 1)
        sparse = (given.m_log2 != 0) & ((given.n << 1) <= (1 << given.m_log2))
        single = (given.p_count <= height) & (given.q_count <= width)
        fields_right = Signal()
        m.d.comb += fields_right.eq(
            known & (dense | sparse) & (single | (given.first & given.last))
        )

        # Ends of the buffer words in use, and what is left of rows and columns behind them.
        a_end, b_end, c_end = (Signal(26, name=f"{b}_end", reset_less=True) for b in "abc")
        rows_left = Signal(16, reset_less=True)
        columns_left = Signal(12, reset_less=True)
        words, weights = Signal(24, reset_less=True), Signal(24, reset_less=True)
        last_row, last_column, beyond = Signal(), Signal(), Signal()
        m.d.comb += [
            last_row.eq(rows_left <= architecture.rows),
            last_column.eq(columns_left <= architecture.cols),
            beyond.eq((a_end > architecture.w2e_words) | (b_end > architecture.n2s_words)
                      | (c_end > architecture.out_words)),
            self.port.error.eq(error),
        ]
        m.d.sync += error.eq(ErrorCode.NONE)

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.port.ready.eq(1)
                m.d.sync += given.eq(self.port.word)
                with m.If(self.port.valid):
                    m.next = "PREPARE"
            with m.State("PREPARE"):
                m.d.sync += [
                    words.eq(((given.groups << given.m_log2) + MAX_M - 1)[4:]),
                    weights.eq(given.groups * given.n),
                    *(work[name].eq(given[name]) for name in _PLAIN),
                    work.a_base.eq(_groups(given.a_base, given.m_log2)),
                    work.a_stride.eq(_groups(given.a_stride, given.m_log2)),
                    work.a_step.eq(_groups(given.a_stride * given.interleave_rows, given.m_log2)),
                    work.b_step.eq(given.b_stride * tiles),
                    work.c_step.eq(given.c_stride * tiles),
                    work.height.eq(height), work.width.eq(width),
                    legal.eq(fields_right),
                ]
                m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.sync += [
                    a_end.eq(given.a_base + words), b_end.eq(given.b_base + weights),
                    c_end.eq(given.c_base + given.p_count),
                    rows_left.eq(given.p_count), columns_left.eq(given.q_count),
                ]
                m.next = "WALK"
                with m.If(~legal):
                    m.d.sync += error.eq(ErrorCode.FIELD)
                    m.next = "CHECKED"
            with m.State("WALK"):
                with m.If(beyond):
                    m.d.sync += [legal.eq(0), error.eq(ErrorCode.RANGE)]
                with m.If(~last_row):
                    m.d.sync += [
                        a_end.eq(a_end + given.a_stride),
                        rows_left.eq(rows_left - architecture.rows),
                    ]
                with m.If(~last_column):
                    m.d.sync += [
                        b_end.eq(b_end + given.b_stride), c_end.eq(c_end + given.c_stride),
                        columns_left.eq(columns_left - architecture.cols),
                    ]
                with m.If(beyond | (last_row & last_column)):
                    m.next = "CHECKED"
            with m.State("CHECKED"):
                m.d.comb += checked.eq(1)
                with m.If(taken):
                    m.next = "IDLE"
        self._count(m, work, weights, checked & taken & legal)
        return checked, taken, legal, work

    def _count(self, m: Module, work: Signal, weights: Signal, strobe: Value) -> None:
        """Multiply-accumulates of an instruction that goes to the issuer, three cycles later."""
        results = Signal(28, reset_less=True)
        pruned = Signal(24, reset_less=True)
        m.d.sync += [
            results.eq(work.p_count * work.q_count),
            pruned.eq((work.groups << work.m_log2) - weights),
        ]
        valid = Signal(3)
        m.d.sync += valid.eq(Cat(strobe, valid[:-1]))
        m.d.comb += self.counted.eq(valid[-1])
        for name, factor, output in (("done", weights, self.macs),
                                     ("saved", pruned, self.macs_skipped)):
            product: Value = results * factor
            # Registers for the inside of the multiplier.
            for stage in range(3):
                later = Signal(MACS_BITS, name=f"macs_{name}_{stage}", reset_less=True)
                m.d.sync += later.eq(product)
                product = later
            m.d.comb += output.eq(product)

    def _issue(
        self, m: Module, marks: Queue, checked: Signal, taken: Signal, legal: Signal, work: Signal
    ) -> Signal:
        """The issuer; returns the flag that sums are to stay in the array, for the other side."""
        item = Signal(_WORK, reset_less=True)
        active, held = Signal(), Signal()
        issued = Signal(_TOTAL_BITS)
        rows_left, columns_left = Signal(16, reset_less=True), Signal(12, reset_less=True)
        a_base, b_base, c_base, c_offset = (
            Signal(ADDRESS_BITS, name=name, reset_less=True)
            for name in ("a_address", "b_address", "c_address", "c_offset")
        )
        accept, lowest, rightmost, finish = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            lowest.eq(rows_left <= item.height),
            rightmost.eq(columns_left <= item.width),
            # Only the end of an instruction fills the queue of marks, so this stays up.
            self.tile_valid.eq(active & marks.ready),
            accept.eq(self.tile_valid & self.tile_ready),
            finish.eq(accept & lowest & rightmost),
            *(self.tile[name].eq(item[name]) for name in _TO_TILE),
            self.tile.a_base.eq(a_base), self.tile.b_base.eq(b_base),
            self.tile.c_base.eq(c_base + c_offset),
            self.tile.p_count.eq(Mux(lowest, rows_left, item.height)),
            self.tile.q_count.eq(Mux(rightmost, columns_left, item.width)),
            self.tile.rows.eq(self.architecture.rows),
        ]
        with m.If(accept):
            m.d.sync += issued.eq(issued + item.last)
            with m.If(rightmost):
                m.d.sync += [
                    columns_left.eq(item.q_count), b_base.eq(item.b_base), c_offset.eq(0),
                    rows_left.eq(rows_left - item.height), a_base.eq(a_base + item.a_step),
                    c_base.eq(c_base + item.height),
                ]
            with m.Else():
                m.d.sync += [
                    columns_left.eq(columns_left - item.width), b_base.eq(b_base + item.b_step),
                    c_offset.eq(c_offset + item.c_step),
                ]
        with m.If(finish):
            m.d.sync += [active.eq(0), held.eq(~item.last)]

        # The next instruction: one without tiles only leaves its mark.
        free, skip = Signal(), Signal()
        mark = Signal(_MARK)
        m.d.comb += [
            free.eq(~held & (~active | (finish & item.last))),
            skip.eq(checked & ~legal & ~active & marks.ready),
            taken.eq((checked & legal & free) | skip),
            mark.total.eq(issued + (finish & item.last)),
            mark.held.eq(finish & ~item.last),
            marks.word.eq(mark),
            marks.valid.eq(finish | skip),
        ]
        with m.If(taken & legal):
            m.d.sync += [
                active.eq(1), item.eq(work),
                rows_left.eq(work.p_count), columns_left.eq(work.q_count),
                a_base.eq(work.a_base), b_base.eq(work.b_base), c_base.eq(work.c_base),
                c_offset.eq(0),
            ]
        return held

    def _complete(self, m: Module, marks: Queue, held: Signal) -> None:
        """``done`` in order, each instruction when its mark says so."""
        retired = Signal(_TOTAL_BITS)
        behind = Signal(_TOTAL_BITS)
        mark = Signal(_MARK)
        m.d.sync += retired.eq(retired + self.retired)
        m.d.comb += [
            mark.eq(marks.head),
            behind.eq(retired - mark.total),
            self.port.done.eq(marks.head_valid & Mux(mark.held, ~self.busy, ~behind[-1])),
            marks.head_ready.eq(self.port.done),
        ]
        with m.If(self.port.done & mark.held):
            m.d.sync += held.eq(0)


def _groups(words: Value, m_log2: Value) -> Value:
    """A distance in words of the row buffers as one in groups."""
    return ((words << 4) >> m_log2)[:ADDRESS_BITS]


if MAX_M != 1 << 4:
    raise AssertionError("a word of the row buffers is 16 elements")
