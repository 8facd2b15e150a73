"""The sequencer: turns a stream of tiles into what row 0 and column 0 of the array do each cycle.

Two tiles are in hand: the *pending* one, whose stationary weights flow in behind the computation,
and the *current* one, which computes. Everything happens in passes of L cycles, so that the sums
kept in the adders stay in step.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import Architecture
from rtl.edges import COL_ORDER, FEED_LATENCY, MAX_SKEW, PSUM_ORDER, ROW_ORDER
from rtl.tile import TILE
from rtl.uspe import UspeTiming

__all__ = ["RESULT_PLAN", "Sequencer", "SequencerTiming"]

_PASS_BITS = 28
_TIMER_BITS = 14

RESULT_PLAN = data.StructLayout(
    {
        name: TILE[name].shape
        for name in (
            "c_base", "c_stride", "groups", "p_count", "q_count", "interleave_rows", "stationary",
        )
    }
)
"""What the collector must know of a tile to find a place for its results."""


@dataclass(frozen=True)
class SequencerTiming:
    """Rules that space tiles, in passes of L cycles."""

    architecture: Architecture

    @property
    def load_lead(self) -> int:
        """WS: from the first weight order to the first step, so that weights arrive in time.

        Weights move down one row a cycle, on top of the skew that they share with the steps.
        """
        return -(-self.architecture.rows // self.architecture.interleave)

    def stationary_gap(self, n: int) -> int:
        """WS: least distance of two tiles.

        The first sums must be in the result buffer before the next tile reads them: R rows with
        a skew of ``n`` passes, and three cycles more. The weight wave needs as much.
        """
        return self.architecture.rows * n + -(-3 // self.architecture.interleave)

    @property
    def skew_tail(self) -> int:
        """OS: cycles after the last step in which some row or column still reads operands."""
        return max(self.architecture.rows, self.architecture.cols)

    @property
    def drain_gap(self) -> int:
        """OS: least distance of two emissions: R * L results a column leave one by one."""
        return self.architecture.rows

    @property
    def in_flight(self) -> int:
        """Most tiles at a time that have started and wait for their last result to be stored.

        One computes, one may have just ended, and the rest drain, ``drain_gap`` passes apart.
        """
        rows, cols = self.architecture.rows, self.architecture.cols
        uspe = UspeTiming(self.architecture)
        finish = FEED_LATENCY + uspe.result + rows * uspe.drain_hop + cols
        return 2 + -(-finish // (self.drain_gap * self.architecture.interleave))


class Sequencer(Component):
    """Issues orders to row 0 and column 0; see :class:`SequencerTiming` for the spacing of tiles.

    A tile is taken in the last cycle of a pass; OS work starts one pass later, WS work
    ``1 + load_lead`` passes later. Tiles of one configuration follow each other without a gap
    wherever the rules allow. A tile of another configuration waits until the array is empty.

    Members
    -------
    tiles: In, stream of :data:`rtl.tile.TILE`.
    row_order, col_order: Out, to row 0 and column 0.
    psum_order: Out, to the result buffer of column 0, delayed to meet the product at the adder.
    skew, m_log2, clear: Out, array configuration, see :class:`rtl.edges.RowFeeder`.
    plan_valid, plan, plan_ready: Out, Out, In, one :data:`RESULT_PLAN` for each tile with results.
    retired: In, strobe: the last result of a tile is in memory.
    busy: Out, a tile is pending, current, or has results on their way.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "tiles": In(stream.Signature(TILE)),
                "row_order": Out(ROW_ORDER),
                "col_order": Out(COL_ORDER),
                "psum_order": Out(PSUM_ORDER),
                "skew": Out(range(MAX_SKEW)),
                "m_log2": Out(3),
                "clear": Out(1),
                "plan_valid": Out(1),
                "plan": Out(RESULT_PLAN),
                "plan_ready": In(1),
                "retired": In(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        interleave = self.architecture.interleave
        timing = SequencerTiming(self.architecture)

        phase = Signal(range(interleave))
        tick = Signal()
        self._tick = tick
        m.d.comb += tick.eq(phase == interleave - 1)
        m.d.sync += phase.eq(Mux(tick, 0, phase + 1))

        # The pending tile.
        pending = Signal(TILE)
        self._pending = pending
        has_pending = Signal()
        loading = Signal()
        loaded = Signal()
        pending_passes = Signal(_PASS_BITS)
        payload = self.tiles.payload
        # The next tile is taken as soon as this one starts and its weights are all on their way.
        start = Signal()
        self._start = start
        self._load_ends = Signal(name="load_ends")
        self._accept = Signal(name="accept")
        m.d.comb += [
            self.tiles.ready.eq(
                tick & (~has_pending | start) & (~loading | self._load_ends)
            ),
            self._accept.eq(self.tiles.valid & self.tiles.ready),
        ]
        with m.If(self._accept):
            m.d.sync += [
                pending.eq(payload),
                pending_passes.eq(payload.groups * payload.n),
                has_pending.eq(1),
                loaded.eq(0),
            ]

        # Configuration of the whole array: changed only while it is empty.
        config = Signal(8)
        wanted = Signal.like(config)
        active = Signal()
        outstanding = Signal(range(timing.in_flight + 1))
        settled = Signal()
        m.d.comb += [
            wanted.eq(Cat(pending.stationary, pending.n, pending.m_log2)),
            settled.eq((config == wanted) | (~active & (outstanding == 0))),
            self.m_log2.eq(config[5:8]),
            self.skew.eq(Mux(config[0], config[1:5] * interleave, 1)),
            self.clear.eq(tick & has_pending & settled & (config != wanted)),
        ]
        with m.If(tick & has_pending & settled):
            m.d.sync += config.eq(wanted)

        # Start conditions, judged in the last cycle of a pass.
        lead = Signal(range(max(2, timing.load_lead) + 1))
        timer = Signal(_TIMER_BITS)
        waited = Signal(_TIMER_BITS)
        finishing = Signal()
        self._finishing = finishing
        current = Signal(TILE)
        allowed = Signal()
        with m.If(config != wanted):
            m.d.comb += waited.eq(0)  # the array is empty
        with m.Elif(finishing & ~current.stationary & current.last):
            m.d.comb += waited.eq(timing.drain_gap + 1)
        with m.Else():
            m.d.comb += waited.eq(timer)
        with m.If(pending.stationary):
            m.d.comb += allowed.eq((loaded | loading) & ~(lead > 1) & (waited <= 1))
        with m.Elif(pending.last):
            m.d.comb += allowed.eq(waited <= pending_passes + 1)
        with m.Else():
            m.d.comb += allowed.eq(1)
        m.d.comb += start.eq(
            tick & has_pending & settled & allowed & (~active | finishing) & self.plan_ready
        )
        with m.If(tick):
            m.d.sync += [
                timer.eq(Mux(waited == 0, 0, waited - 1)),
                lead.eq(Mux(lead == 0, 0, lead - 1)),
            ]
        with m.If(start):
            m.d.sync += [current.eq(pending), has_pending.eq(self._accept)]
            with m.If(pending.stationary):
                m.d.sync += timer.eq(self._gap_table(pending.n))
        # The last row and column still read operands while the skew runs out.
        reading = Signal(range(timing.skew_tail + 1))
        with m.If(finishing):
            m.d.sync += reading.eq(timing.skew_tail)
        with m.Elif(reading != 0):
            m.d.sync += reading.eq(reading - 1)
        emits = pending.stationary | pending.last
        m.d.comb += [
            self.plan_valid.eq(start & emits),
            *(self.plan[name].eq(pending[name]) for name in RESULT_PLAN.members),
            self.busy.eq(has_pending | active | (reading != 0) | (outstanding != 0)),
        ]
        m.d.sync += outstanding.eq(outstanding + self.plan_valid - self.retired)

        bank = Signal()
        load_order = self._load(m, has_pending & settled, loading, loaded, lead, ~bank, phase)
        with m.If(start & pending.stationary):
            m.d.sync += bank.eq(~bank)
        self._compute(m, current, active, bank, load_order)
        return m

    def _gap_table(self, n: Value) -> Value:
        """``stationary_gap`` of ``n``, which is linear in ``n``."""
        timing = SequencerTiming(self.architecture)
        return n * self.architecture.rows + (timing.stationary_gap(1) - self.architecture.rows)

    def _load(
        self, m: Module, ready: Value, loading: Signal, loaded: Signal, lead: Signal,
        bank: Value, phase: Signal,
    ) -> Signal:
        """Send the pending tile's weights, one a pass, with the skew of the steps to come."""
        pending = self._pending
        rows_left = Signal(12)
        row = Signal(8)
        slot = Signal(4)
        address = Signal(24)
        last_slot = slot == pending.n - 1
        last_row = row == self.architecture.rows - 1
        with m.If(self._tick & loading):
            m.d.sync += [
                slot.eq(Mux(last_slot, 0, slot + 1)),
                address.eq(Mux(rows_left == 0, address, address + 1)),
            ]
            with m.If(last_slot):
                m.d.sync += [
                    row.eq(row + 1),
                    rows_left.eq(Mux(rows_left == 0, 0, rows_left - 1)),
                ]
        m.d.comb += self._load_ends.eq(self._tick & loading & last_slot & last_row)
        with m.If(self._load_ends):
            m.d.sync += [loading.eq(0), loaded.eq(~self._accept)]
        begin = self._tick & ready & pending.stationary & ~loading & ~loaded
        load_bank = Signal()
        with m.If(begin):
            m.d.sync += [
                loading.eq(1),
                lead.eq(SequencerTiming(self.architecture).load_lead),
                rows_left.eq(pending.rows),
                row.eq(0),
                slot.eq(0),
                address.eq(pending.b_base),
                load_bank.eq(bank),
            ]
        order = Signal(COL_ORDER, name="load_order")
        m.d.comb += [
            order.address.eq(address),
            order.load.eq(loading & (phase == 0)),
            order.zero.eq(rows_left == 0),
            order.hops.eq(row),
            order.bank.eq(load_bank),
            order.slot.eq(slot),
        ]
        return order

    def _compute(
        self, m: Module, tile: Signal, active: Signal, bank: Signal, load_order: Signal
    ) -> None:
        """Issue the current tile's steps: groups outside, packed weights, then interleaved sums."""
        pending, start = self._pending, self._start
        group = Signal(24)
        slot = Signal(4)
        sums = Signal(3)
        a_address, a_offset, b_address, b_offset, c_address = (
            Signal(24, name=name)
            for name in ("a_address", "a_offset", "b_address", "b_offset", "c_address")
        )
        last_slot = Signal()
        m.d.comb += [
            last_slot.eq(slot == tile.n - 1),
            self._finishing.eq(self._tick & active & last_slot & (group == tile.groups - 1)),
        ]

        # Within a pass: WS walks along the rows of A, OS over row tiles and then column tiles, or
        # over pairs of the two.
        with m.If(tile.stationary):
            m.d.sync += a_offset.eq(a_offset + 1)
        with m.Elif(sums == tile.interleave_rows - 1):
            m.d.sync += [
                sums.eq(0),
                a_offset.eq(Mux(tile.paired, a_offset + tile.a_stride, 0)),
                b_offset.eq(b_offset + tile.b_stride),
            ]
        with m.Else():
            m.d.sync += [sums.eq(sums + 1), a_offset.eq(a_offset + tile.a_stride)]
        # Between passes.
        with m.If(self._tick):
            m.d.sync += [
                slot.eq(Mux(last_slot, 0, slot + 1)),
                sums.eq(0), a_offset.eq(0), b_offset.eq(0),
                b_address.eq(b_address + 1),
            ]
            with m.If(last_slot):
                step = Mux(tile.stationary, self.architecture.interleave, 1)
                m.d.sync += [
                    group.eq(group + 1),
                    a_address.eq(a_address + step),
                    c_address.eq(c_address + step),
                ]
        with m.If(self._finishing):
            m.d.sync += active.eq(0)
        with m.If(start):
            m.d.sync += [
                active.eq(1), group.eq(0), slot.eq(0),
                a_address.eq(pending.a_base),
                b_address.eq(pending.b_base),
                c_address.eq(pending.c_base),
            ]

        order = self.row_order
        whole = tile.stationary
        m.d.comb += [
            order.address.eq(a_address + a_offset),
            order.rows.eq(tile.rows),
            order.step.valid.eq(active),
            order.step.first.eq((slot == 0) & (whole | (tile.first & (group == 0)))),
            order.step.last.eq(last_slot & (whole | (tile.last & (group == tile.groups - 1)))),
            order.step.stationary.eq(tile.stationary),
            order.step.bank.eq(bank),
            order.step.slot.eq(slot),
        ]
        with m.If(load_order.load):
            m.d.comb += self.col_order.eq(load_order)
        with m.Else():
            m.d.comb += self.col_order.address.eq(b_address + b_offset)

        early = Signal(PSUM_ORDER, name="psum_order_0")
        m.d.comb += [early.address.eq(c_address + a_offset), early.zero.eq(tile.first)]
        for cycle in range(1, UspeTiming(self.architecture).operand + 1):
            later = Signal(PSUM_ORDER, name=f"psum_order_{cycle}")
            m.d.sync += later.eq(early)
            early = later
        m.d.comb += self.psum_order.eq(early)
