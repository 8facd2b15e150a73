"""STCE: the sparse tensor computing engine, that is the array with its edges and sequencer.

                 tiles --> Sequencer --> orders for row 0 and column 0
                                |               |
                                |     ColumnFeeder ... (N2S), partial sums
                                |               v
                           RowFeeder ... --> SystolicArray
                             (W2E)              v
                           Collector --> ResultBuffer ...
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out, connect

from rtl.architecture import Architecture
from rtl.array import SystolicArray
from rtl.collector import Collector
from rtl.edges import FEED_LATENCY, ColumnFeeder, ResultBuffer, RowFeeder
from rtl.links import LANES, PACKED_WEIGHT
from rtl.netlist import place
from rtl.sequencer import Sequencer, SequencerTiming
from rtl.tile import ADDRESS_BITS, TILE
from rtl.uspe import UspeTiming

__all__ = ["Stce", "StceTiming"]


class StceTiming:
    """Latencies of the whole engine in clock cycles, as formulas over the architecture.

    These are the constants of the cycle model; RTL tests hold them.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.sequencer = SequencerTiming(architecture)
        self.uspe = UspeTiming(architecture)

    def start(self, stationary: bool) -> int:
        """From taking the first tile to its first step (exclusive of the taking cycle)."""
        passes = 1 + (self.sequencer.load_lead if stationary else 0)
        return passes * self.architecture.interleave

    def finish(self, stationary: bool, n: int) -> int:
        """From the last step of a tile to the cycle in which the engine stops being busy."""
        rows, cols = self.architecture.rows, self.architecture.cols
        first_row = FEED_LATENCY + self.uspe.result
        if stationary:
            down = (rows - 1) * n * self.architecture.interleave
        else:
            down = rows * self.uspe.drain_hop
        return first_row + down + cols


class Stce(Component):
    """The engine: fill the operand buffers, stream tiles in, read the result buffers.

    One ``clk`` and synchronous ``rst``. Buffers may be filled and read at any time that the work
    under way does not use the same words; in WS, which reads partial sums, results are read while
    ``busy`` is low.

    Members
    -------
    tile, tile_valid, tile_ready: In, In, Out, stream of :data:`rtl.tile.TILE`: the work list.
    retired, retired_nonfinite: Out, strobe for each tile with results, and its sticky flag: some
        result written was Inf or NaN.
    busy: Out, a tile or its results are under way.
    cycles: Out(48), cycles with ``busy`` since reset.
    w2e_en, w2e_address, w2e_data: In, fill one word of the buffers of all enabled rows.
    n2s_en, n2s_address, n2s_data: In, fill one word of the buffers of all enabled columns.
    out_en, out_address, out_data: In, In, Out, read the same word of every column's results,
        ``FEED_LATENCY`` cycles later.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "tile": In(TILE),
                "tile_valid": In(1),
                "tile_ready": Out(1),
                "retired": Out(1),
                "retired_nonfinite": Out(1),
                "busy": Out(1),
                "cycles": Out(48),
                "w2e_en": In(architecture.rows),
                "w2e_address": In(ADDRESS_BITS),
                "w2e_data": In(data.ArrayLayout(LANES, architecture.rows)),
                "n2s_en": In(architecture.cols),
                "n2s_address": In(ADDRESS_BITS),
                "n2s_data": In(data.ArrayLayout(PACKED_WEIGHT, architecture.cols)),
                "out_en": In(1),
                "out_address": In(ADDRESS_BITS),
                "out_data": Out(data.ArrayLayout(32, architecture.cols)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        sequencer = Sequencer(self.architecture)
        collector = Collector(self.architecture)
        array = SystolicArray(self.architecture)
        place(m, platform, "sequencer", sequencer, "sequencer")
        place(m, platform, "collector", collector, "collector")
        place(m, platform, "array", array, "systolic_array")
        m.d.comb += [
            sequencer.tiles.payload.eq(self.tile),
            sequencer.tiles.valid.eq(self.tile_valid),
            self.tile_ready.eq(sequencer.tiles.ready),
            collector.plan_valid.eq(sequencer.plan_valid),
            collector.plan.eq(sequencer.plan),
            sequencer.plan_ready.eq(collector.plan_ready),
            collector.arrived.eq(array.south[0].psum.valid),
            sequencer.retired.eq(self.retired),
            self.busy.eq(sequencer.busy),
        ]
        m.d.sync += self.cycles.eq(self.cycles + self.busy)
        self._west(m, platform, sequencer, array)
        self._north_and_south(m, platform, sequencer, collector, array)
        return m

    def _west(
        self, m: Module, platform: Any, sequencer: Sequencer, array: SystolicArray
    ) -> None:
        order: Value = sequencer.row_order
        for r in range(self.architecture.rows):
            feeder = RowFeeder(self.architecture)
            place(m, platform, f"row_feeder_{r}", feeder, "row_feeder")
            m.d.comb += [
                feeder.order.eq(order),
                feeder.skew.eq(sequencer.skew),
                feeder.m_log2.eq(sequencer.m_log2),
                feeder.clear.eq(sequencer.clear),
                feeder.write_en.eq(self.w2e_en[r]),
                feeder.write_address.eq(self.w2e_address),
                feeder.write_data.eq(self.w2e_data[r]),
            ]
            connect(m, feeder.west, array.west[r])
            order = feeder.next_order

    def _north_and_south(
        self, m: Module, platform: Any, sequencer: Sequencer, collector: Collector,
        array: SystolicArray,
    ) -> None:
        col_order: Value = sequencer.col_order
        psum_order: Value = sequencer.psum_order
        write_order: Value = collector.write_order
        for c in range(self.architecture.cols):
            feeder, results = ColumnFeeder(self.architecture), ResultBuffer(self.architecture)
            place(m, platform, f"column_feeder_{c}", feeder, "column_feeder")
            place(m, platform, f"result_buffer_{c}", results, "result_buffer")
            m.d.comb += [
                feeder.order.eq(col_order),
                feeder.write_en.eq(self.n2s_en[c]),
                feeder.write_address.eq(self.n2s_address),
                feeder.write_data.eq(self.n2s_data[c]),
                results.psum_order.eq(psum_order),
                results.write_order.eq(write_order),
                results.read_en.eq(self.out_en),
                results.read_address.eq(self.out_address),
                self.out_data[c].eq(results.read_data),
                array.north[c].weight.eq(feeder.north),
                array.north[c].psum.eq(results.north),
                results.south.eq(array.south[c].psum),
            ]
            col_order, psum_order = feeder.next_order, results.next_psum_order
            write_order = results.next_write_order
        retired: Signal = write_order
        m.d.comb += [
            self.retired.eq(retired.end),
            self.retired_nonfinite.eq(retired.nonfinite),
        ]
