"""The collector: finds a place in the result buffers for every sum that leaves the array.

Sums leave a column one by one in a fixed order, so an address is a matter of counting. Column 0
counts; the others get the same orders one cycle later each.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import Architecture
from rtl.edges import WRITE_ORDER
from rtl.sequencer import RESULT_PLAN, SequencerTiming
from rtl.tile import ADDRESS_BITS

__all__ = ["Collector"]


class Collector(Component):
    """Write addresses for the results of column 0.

    WS results come in the order of the rows of A. OS results come from the last array row to the
    first, the L interleaved sums of a row together; pairs are to it a row tile of L column tiles.
    The order is combinational from ``arrived``: latency 0, one result a cycle.

    Members
    -------
    plan_valid, plan, plan_ready: In, In, Out, one :data:`rtl.sequencer.RESULT_PLAN` a tile.
    arrived: In, a sum is at the south port of column 0.
    write_order: Out, to the result buffer of column 0.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "plan_valid": In(1),
                "plan": In(RESULT_PLAN),
                "plan_ready": Out(1),
                "arrived": In(1),
                "write_order": Out(WRITE_ORDER),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        rows, cols = self.architecture.rows, self.architecture.cols
        interleave = self.architecture.interleave
        m.submodules.plans = plans = SyncFIFO(
            width=RESULT_PLAN.size, depth=SequencerTiming(self.architecture).in_flight
        )
        plan = Signal(RESULT_PLAN)
        m.d.comb += [
            plans.w_data.eq(self.plan),
            plans.w_en.eq(self.plan_valid),
            self.plan_ready.eq(plans.w_rdy),
            plan.eq(plans.r_data),
        ]

        # Position of the next result: ``slot`` counts interleaved sums, ``climbed`` array rows.
        slot = Signal(3)
        sums = Signal(3)
        climbed = Signal(range(rows + 1))
        block = Signal(ADDRESS_BITS)
        row_tile, column, used = (
            Signal(ADDRESS_BITS, name=name) for name in ("row_tile", "column", "used_columns")
        )
        last_slot, last_climb = slot == interleave - 1, climbed == rows - 1
        end = Signal()
        p = Signal(ADDRESS_BITS)
        with m.If(plan.stationary):
            m.d.comb += [
                p.eq(block + slot),
                end.eq(last_slot & (climbed == 0) & (block == (plan.groups - 1) * interleave)),
            ]
        with m.Else():
            m.d.comb += [
                p.eq(row_tile + (rows - 1) - climbed),
                end.eq(last_slot & last_climb),
            ]
        order = self.write_order
        m.d.comb += [
            plans.r_en.eq(self.arrived & end),
            order.valid.eq(self.arrived & (p < plan.p_count)),
            order.end.eq(self.arrived & end),
            order.address.eq(plan.c_base + column + p),
            order.cols.eq(Mux(plan.q_count > used, plan.q_count - used, 0)),
        ]
        with m.If(self.arrived):
            m.d.sync += slot.eq(Mux(last_slot, 0, slot + 1))
            with m.If(plan.stationary):
                m.d.sync += block.eq(Mux(end, 0, Mux(last_slot, block + interleave, block)))
            with m.Elif(last_slot):
                m.d.sync += [
                    sums.eq(0), row_tile.eq(0), column.eq(0), used.eq(0),
                    climbed.eq(Mux(last_climb, 0, climbed + 1)),
                ]
            with m.Elif(sums == plan.interleave_rows - 1):
                m.d.sync += [
                    sums.eq(0), row_tile.eq(0),
                    column.eq(column + plan.c_stride), used.eq(used + cols),
                ]
            with m.Else():
                m.d.sync += [sums.eq(sums + 1), row_tile.eq(row_tile + rows)]
        return m
