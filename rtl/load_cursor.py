"""Where the next word goes: an array row or slice of columns, in a tile, at an address."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import Architecture
from rtl.load_decode import NEAR_BITS, PLAN, saturating_sum

__all__ = ["LoadCursor"]


class LoadCursor(Component):
    """A place (unit and tile) and a depth; the address is their sum.

    A step goes to the next unit, after the last one to the next tile. The place can return to its
    home, the depth to its mark. Everything changes with the clock edge; an address that leaves the
    largest buffer never comes back.

    Members
    -------
    begin: In(1), begin ``plan``.
    plan: In, :data:`rtl.load_decode.PLAN`.
    stride: In(20), from a tile to the next.
    last_unit: In(8), last unit of a tile.
    step: In(1), on to the next unit.
    back: In(1), to the home instead.
    settle: In(1), with ``step``: the next unit becomes the home.
    deeper: In(1), next address.
    note: In(1), with ``deeper``: the next address becomes the mark.
    rise: In(1), to the mark instead.
    reset: In(1), back to depth 0 instead.
    unit: Out(8), array row in its tile, or slice of 16 columns.
    address: Out(22), buffer address; with the top bit set, it is beyond any buffer.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "begin": In(1),
                "plan": In(PLAN),
                "stride": In(20),
                "last_unit": In(8),
                "step": In(1),
                "back": In(1),
                "settle": In(1),
                "deeper": In(1),
                "note": In(1),
                "rise": In(1),
                "reset": In(1),
                "unit": Out(8),
                "address": Out(NEAR_BITS + 1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        tile, home_tile, depth, mark = (
            Signal(NEAR_BITS + 1, name=name, reset_less=True)
            for name in ("tile", "home_tile", "depth", "mark")
        )
        home_unit, next_unit = Signal(8, reset_less=True), Signal(8)
        next_tile = Signal(NEAR_BITS + 1)
        wrap = Signal()
        tile_above = saturating_sum(m, "tile_above", tile, self.stride)
        depth_above = Signal(NEAR_BITS + 1)
        m.d.comb += [
            self.address.eq(saturating_sum(m, "total", tile, depth)),
            wrap.eq(self.unit == self.last_unit),
            next_unit.eq(Mux(wrap, 0, self.unit + 1)),
            next_tile.eq(Mux(wrap, tile_above, tile)),
            depth_above.eq(Mux(depth[-1], depth, depth + 1)),
        ]
        with m.If(self.begin):
            m.d.sync += [
                self.unit.eq(self.plan.unit), home_unit.eq(self.plan.unit),
                tile.eq(self.plan.tile), home_tile.eq(self.plan.tile),
                depth.eq(0), mark.eq(0),
            ]
        with m.Else():
            with m.If(self.back):
                m.d.sync += [self.unit.eq(home_unit), tile.eq(home_tile)]
            with m.Elif(self.step):
                m.d.sync += [self.unit.eq(next_unit), tile.eq(next_tile)]
                with m.If(self.settle):
                    m.d.sync += [home_unit.eq(next_unit), home_tile.eq(next_tile)]
            with m.If(self.reset):
                m.d.sync += depth.eq(0)
            with m.Elif(self.rise):
                m.d.sync += depth.eq(mark)
            with m.Elif(self.deeper):
                m.d.sync += depth.eq(depth_above)
                with m.If(self.note):
                    m.d.sync += mark.eq(depth_above)
        return m
