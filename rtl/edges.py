"""The edges of the array: operand buffers in the west and north, result buffers in the south.

The paper calls the operand buffers W2E and N2S after the way their data travels. Each array row
and column has its own, one Verilog module a kind. Neighbouring feeders are chained: what row or
column 0 is told in a cycle, the next is told a fixed number of cycles later, which makes the skew
that a systolic array needs.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, memory
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import MAX_M, MAX_N, Architecture
from rtl.links import LANES, PACKED_WEIGHT, PSUM, SLOT_BITS, STEP, row_link, weight_word
from rtl.tile import ADDRESS_BITS

__all__ = [
    "COL_ORDER", "FEED_LATENCY", "MAX_SKEW", "PSUM_ORDER", "ROW_ORDER", "WRITE_ORDER",
    "ColumnFeeder", "ResultBuffer", "RowFeeder",
]

FEED_LATENCY = 2
"""Cycles from an order at a feeder to the data at the array's port: memory, then a register."""

MAX_SKEW = 64
"""Deepest row-to-row delay that a row feeder can make; more than MAX_N * the longest adder."""

_COUNT_BITS = 12

ROW_ORDER = data.StructLayout(
    {"step": STEP, "address": ADDRESS_BITS, "rows": _COUNT_BITS}
)
"""Read the group at ``address`` and do ``step``; rows from ``rows`` on get zeros instead."""

COL_ORDER = data.StructLayout(
    {"address": ADDRESS_BITS, "load": 1, "zero": 1, "hops": 8, "bank": 1, "slot": SLOT_BITS}
)
"""Read the packed weight at ``address``; ``zero`` sends +0 in its place."""

PSUM_ORDER = data.StructLayout({"address": ADDRESS_BITS, "zero": 1})
"""Read the partial sum at ``address``, or take +0."""

WRITE_ORDER = data.StructLayout(
    {"address": ADDRESS_BITS, "valid": 1, "cols": _COUNT_BITS, "end": 1, "nonfinite": 1}
)
"""Write a result at ``address`` if ``valid`` and ``cols`` is not zero (``cols`` loses one a
column). ``end`` marks the last result of a tile, ``nonfinite`` gathers its sticky flag."""


class RowFeeder(Component):
    """W2E buffer of one row: words of ``MAX_M`` FP16 elements, read as groups of M.

    A word holds ``MAX_M / M`` groups, so dense data is packed as tightly as sparse. The lanes
    appear at ``west`` ``FEED_LATENCY`` cycles after the order, the order for the next row
    ``skew`` cycles after it. Throughput is one group a cycle.

    ``skew`` and ``m_log2`` change only while no order is on its way; ``clear`` then forgets what
    the delay line still holds.

    Members
    -------
    order, next_order: In, Out :data:`ROW_ORDER`.
    skew, m_log2, clear: In, configuration of the whole array.
    write_en, write_address, write_data: In, fill port, one word a cycle.
    west: Out :func:`rtl.links.row_link`.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "order": In(ROW_ORDER),
                "next_order": Out(ROW_ORDER),
                "skew": In(range(MAX_SKEW)),
                "m_log2": In(3),
                "clear": In(1),
                "write_en": In(1),
                "write_address": In(ADDRESS_BITS),
                "write_data": In(LANES),
                "west": Out(row_link()),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._delay_line(m)
        m.submodules.buffer = buffer = memory.Memory(
            shape=LANES, depth=self.architecture.w2e_words, init=[]
        )
        write, read = buffer.write_port(), buffer.read_port()
        groups_log2 = Signal(range(5))
        step1 = Signal(STEP)
        group1 = Signal(4, reset_less=True)
        live1 = Signal()
        lanes2 = Signal(LANES, reset_less=True)
        m.d.comb += [
            write.en.eq(self.write_en),
            write.addr.eq(self.write_address),
            write.data.eq(self.write_data),
            groups_log2.eq((MAX_M - 1).bit_length() - self.m_log2),
            read.en.eq(1),
            read.addr.eq(self.order.address >> groups_log2),
        ]
        # Shift the group down to lane 0: group g of the word starts at element g * M.
        first_lane = (group1 << self.m_log2)[:4]
        m.d.sync += [
            step1.eq(self.order.step),
            group1.eq(self.order.address[:4] & ((1 << groups_log2) - 1)[:4]),
            live1.eq(self.order.rows != 0),
            self.west.step.eq(step1),
            lanes2.eq(Mux(live1, read.data.as_value() >> Cat(0, 0, 0, 0, first_lane), 0)),
        ]
        m.d.comb += self.west.lanes.eq(lanes2)
        return m

    def _delay_line(self, m: Module) -> None:
        """Pass the order on ``skew`` cycles later; a ring, so that the skew can be long."""
        m.submodules.ring = ring = memory.Memory(
            shape=ROW_ORDER, depth=MAX_SKEW, init=[]
        )
        write, read = ring.write_port(), ring.read_port(domain="comb")
        now = Signal(range(MAX_SKEW))
        filled = Signal(MAX_SKEW)
        m.d.sync += [
            now.eq(now + 1),
            filled.eq(Mux(self.clear, 0, Cat(self.order.step.valid, filled)[:MAX_SKEW])),
        ]
        m.d.comb += [
            write.en.eq(1),
            write.addr.eq(now),
            write.data.eq(self.order),
            read.addr.eq(now - self.skew),
            self.next_order.eq(read.data),
            self.next_order.step.valid.eq((Cat(0, filled) >> self.skew)[0]),
            self.next_order.rows.eq(Mux(read.data.rows == 0, 0, read.data.rows - 1)),
        ]


class ColumnFeeder(Component):
    """N2S buffer of one column: packed weights, one a cycle.

    The weight appears at ``north`` ``FEED_LATENCY`` cycles after the order, the order for the
    next column one cycle after it.

    Members
    -------
    order, next_order: In, Out :data:`COL_ORDER`.
    write_en, write_address, write_data: In, fill port, one weight a cycle.
    north: Out, weight word.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "order": In(COL_ORDER),
                "next_order": Out(COL_ORDER),
                "write_en": In(1),
                "write_address": In(ADDRESS_BITS),
                "write_data": In(PACKED_WEIGHT),
                "north": Out(weight_word(architecture)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.buffer = buffer = memory.Memory(
            shape=PACKED_WEIGHT, depth=self.architecture.n2s_words, init=[]
        )
        write, read = buffer.write_port(), buffer.read_port()
        order1 = Signal(COL_ORDER)
        m.d.comb += [
            write.en.eq(self.write_en),
            write.addr.eq(self.write_address),
            write.data.eq(self.write_data),
            read.en.eq(1),
            read.addr.eq(self.order.address),
            self.next_order.eq(order1),
        ]
        m.d.sync += [
            order1.eq(self.order),
            self.north.weight.eq(Mux(order1.zero, 0, read.data.as_value())),
            self.north.load.eq(order1.load),
            self.north.hops.eq(order1.hops),
            self.north.bank.eq(order1.bank),
            self.north.slot.eq(order1.slot),
        ]
        return m


class ResultBuffer(Component):
    """Result buffer of one column: partial sums go out in the north, come back in the south.

    A partial sum appears at ``north`` ``FEED_LATENCY`` cycles after its order; a result is in
    memory one cycle after its order. The orders for the next column follow one cycle later. While
    the array is idle, ``read_address`` reads with the same latency into ``read_data``.

    Members
    -------
    psum_order, next_psum_order: In, Out :data:`PSUM_ORDER`.
    write_order, next_write_order: In, Out :data:`WRITE_ORDER`.
    north: Out :data:`rtl.links.PSUM`, to the top of the column.
    south: In :data:`rtl.links.PSUM`, from its bottom.
    read_en, read_address, read_data: In, In, Out, host access.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "psum_order": In(PSUM_ORDER),
                "next_psum_order": Out(PSUM_ORDER),
                "write_order": In(WRITE_ORDER),
                "next_write_order": Out(WRITE_ORDER),
                "north": Out(PSUM),
                "south": In(PSUM),
                "read_en": In(1),
                "read_address": In(ADDRESS_BITS),
                "read_data": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.buffer = buffer = memory.Memory(
            shape=32, depth=self.architecture.out_words, init=[]
        )
        write, read = buffer.write_port(), buffer.read_port()
        zero1 = Signal()
        value2 = Signal(32, reset_less=True)
        m.d.comb += [
            read.en.eq(1),
            read.addr.eq(Mux(self.read_en, self.read_address, self.psum_order.address)),
            self.read_data.eq(value2),
            self.north.value.eq(value2),
        ]
        m.d.sync += [
            self.next_psum_order.eq(self.psum_order),
            zero1.eq(self.psum_order.zero & ~self.read_en),
            value2.eq(Mux(zero1, 0, read.data)),
        ]

        # A sum that is Inf or NaN has an all-ones exponent; the flag is sticky within a tile.
        order = self.write_order
        sticky = Signal()
        flag = Signal()
        m.d.comb += [
            write.en.eq(order.valid & (order.cols != 0)),
            write.addr.eq(order.address),
            write.data.eq(self.south.value),
            flag.eq(sticky | (write.en & self.south.value[23:31].all())),
        ]
        m.d.sync += [
            sticky.eq(Mux(order.end, 0, flag)),
            self.next_write_order.eq(order),
            self.next_write_order.cols.eq(Mux(order.cols == 0, 0, order.cols - 1)),
            self.next_write_order.nonfinite.eq(order.nonfinite | (order.end & flag)),
        ]
        return m


if MAX_SKEW <= MAX_N * 5:
    raise AssertionError("the row delay line is shorter than the longest skew")
