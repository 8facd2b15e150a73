"""Lines of the vector engine out of the result buffers: a walk over addresses, then a gathering."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import Architecture
from rtl.chunk import LANES
from rtl.edges import FEED_LATENCY
from rtl.isa import LINES
from rtl.units import LINE

__all__ = ["ADDRESS_BITS", "WALK", "ResultReader"]

ADDRESS_BITS = 20
"""Width of an address in the result buffers."""

_WIDE = 32  # no walk is so long that it wraps: its end is seen

WALK = data.StructLayout({
    "load": 1, "c_base": ADDRESS_BITS, "c_stride": ADDRESS_BITS, "run": range(LINES + 1),
    "step": 1, "issue": 1,
})
"""``load``: a walk begins at ``c_base`` in the next cycle, over rows of ``run`` lines; ``step``: a
beat of it, ``issue``: the last of a line."""


class ResultReader(Component):
    """Line i is result row ``i / run``, columns ``16 (i mod run)`` and up.

    Column q stands in buffer ``q mod C`` at ``c_base + (q / C) * c_stride`` plus the row. So a line
    takes ``16 / C`` beats, one if C is 16 or more, a beat a cycle; the beats of a line follow each
    other. It is complete ``FEED_LATENCY`` cycles after its last beat. Reset state is don't-care.

    Members
    -------
    walk: In, :data:`WALK`.
    bad: Out(1), this beat is beyond the end of the buffers, and suppressed.
    out_en, out_address, out_data: Out(1), Out(20), In, the result buffers.
    line: Out, :data:`rtl.units.LINE`.
    """

    def __init__(self, architecture: Architecture) -> None:
        self._cols = architecture.cols
        self._out_words = architecture.out_words
        super().__init__({
            "walk": In(WALK), "bad": Out(1),
            "out_en": Out(1), "out_address": Out(ADDRESS_BITS),
            "out_data": In(data.ArrayLayout(32, self._cols)),
            "line": Out(LINE),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        walk = self.walk
        parts = max(1, self._cols // LANES)
        row, address = (Signal(_WIDE, name=name, reset_less=True) for name in ("row", "address"))
        stride = Signal(ADDRESS_BITS, reset_less=True)
        across = Signal(range(LINES), reset_less=True)
        part = Signal(range(max(2, parts)), reset_less=True)
        row_ends, tile_ends = Signal(), Signal()
        m.d.comb += [
            self.bad.eq(address >= self._out_words),
            self.out_en.eq(walk.step & ~self.bad),
            self.out_address.eq(address[:ADDRESS_BITS]),
            row_ends.eq(walk.issue & (across + 1 == walk.run)),
            tile_ends.eq(part == parts - 1),
        ]
        with m.If(walk.load):
            m.d.sync += [
                row.eq(walk.c_base), address.eq(walk.c_base), stride.eq(walk.c_stride),
                across.eq(0), part.eq(0),
            ]
        with m.Elif(walk.step):
            m.d.sync += [
                row.eq(row + row_ends),
                address.eq(Mux(row_ends, row + 1, Mux(tile_ends, address + stride, address))),
                across.eq(Mux(row_ends, 0, across + walk.issue)),
                part.eq(Mux(row_ends | tile_ends, 0, part + 1)),
            ]
        m.d.comb += self.line.eq(self._gather(m, part))
        return m

    def _gather(self, m: Module, part: Signal) -> Value:
        """The line from the columns that came last."""
        columns = self.out_data.as_value()
        if self._cols >= LANES:
            for cycle in range(1, FEED_LATENCY + 1):
                later = Signal.like(part, name=f"part_{cycle}", reset_less=True)
                m.d.sync += later.eq(part)
                part = later
            width = LINE.size
            return Array(columns.word_select(n, width) for n in range(len(columns) // width))[part]
        earlier = Signal(LINE.size - len(columns), reset_less=True)
        line = Cat(earlier, columns)
        m.d.sync += earlier.eq(line[len(columns) :])
        return line
