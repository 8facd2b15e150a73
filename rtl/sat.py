"""SAT: the whole accelerator, with nothing but AXI around it.

              s_axi_control              m_axi (reads)                       m_axi (writes)
                    |                          |                                   ^
                 Control              +-- ReadArbiter --+                          |
                    |                 |                 |                          |
                    +--> Dispatch <---+                 |                          |
                         |  |  |  |                     |                          |
                         |  |  |  +-----------------------------------------> StoreUnit
                         |  |  +--------> VectorUnit (registers, lanes, SORE) <----+
                         |  +--> ComputeUnit --> Stce ---^ results       ^
                         +--> LoadUnit <----------------+  | operands    | lines
                                 +------------------------> Stce         |
                                 +---------------------------------------+
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib.wiring import Component, In, Member, Out, Signature, connect

from rtl.architecture import Architecture
from rtl.axi import axi_lite, axi_read, axi_write
from rtl.compute import ComputeUnit
from rtl.control import Control
from rtl.dispatch import Dispatch
from rtl.load import LoadUnit
from rtl.netlist import place
from rtl.read_arbiter import ReadArbiter
from rtl.stce import Stce
from rtl.store import StoreUnit
from rtl.vector import VectorUnit

__all__ = ["Sat"]


def _members(prefix: str, signature: Signature, *, flip: bool = False) -> dict[str, Member]:
    """The members of a port as ports of their own, with the names that AXI tools expect."""
    return {
        f"{prefix}_{name}": member.flip() if flip else member
        for name, member in signature.members.items()
    }


class Sat(Component):
    """The accelerator. One clock ``clk``, one synchronous reset ``rst``.

    A host writes the control registers (:mod:`rtl.registers`), starts a program
    (:mod:`rtl.isa`) and waits for the interrupt. Everything else goes through the memory port.

    Raises :class:`rtl.errors.ParameterError` unless the columns divide 16 or are a multiple of 16:
    panels of 16 columns fall on whole column tiles.

    Members
    -------
    s_axi_control_awvalid, s_axi_control_awready: In, Out, AXI4-Lite write address.
    s_axi_control_awaddr, s_axi_control_awprot: In(12), In(3), its payload.
    s_axi_control_wvalid, s_axi_control_wready: In, Out, write data.
    s_axi_control_wdata, s_axi_control_wstrb: In(32), In(4), its payload.
    s_axi_control_bvalid, s_axi_control_bready: Out, In, write response.
    s_axi_control_bresp: Out(2), its payload.
    s_axi_control_arvalid, s_axi_control_arready: In, Out, read address.
    s_axi_control_araddr, s_axi_control_arprot: In(12), In(3), its payload.
    s_axi_control_rvalid, s_axi_control_rready: Out, In, read data.
    s_axi_control_rdata, s_axi_control_rresp: Out(32), Out(2), its payload.
    m_axi_arvalid, m_axi_arready: Out, In, AXI4 read address.
    m_axi_araddr, m_axi_arid, m_axi_arlen, m_axi_arsize, m_axi_arburst: Out, its payload.
    m_axi_rvalid, m_axi_rready: In, Out, read data.
    m_axi_rdata, m_axi_rid, m_axi_rresp, m_axi_rlast: In, its payload.
    m_axi_awvalid, m_axi_awready: Out, In, write address.
    m_axi_awaddr, m_axi_awid, m_axi_awlen, m_axi_awsize, m_axi_awburst: Out, its payload.
    m_axi_wvalid, m_axi_wready: Out, In, write data.
    m_axi_wdata, m_axi_wstrb, m_axi_wlast: Out, its payload.
    m_axi_bvalid, m_axi_bready: In, Out, write response.
    m_axi_bid, m_axi_bresp: In, its payload.
    interrupt: Out(1), level, see the interrupt registers.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture.require_chip()
        super().__init__(
            {
                **_members("s_axi_control", axi_lite(), flip=True),
                **_members("m_axi", axi_read(architecture)),
                **_members("m_axi", axi_write(architecture)),
                "interrupt": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        parts: dict[str, Any] = {
            "control": Control(self.architecture),
            "dispatch": Dispatch(self.architecture),
            "arbiter": ReadArbiter(self.architecture),
            "load": LoadUnit(self.architecture),
            "compute": ComputeUnit(self.architecture),
            "stce": Stce(self.architecture),
            "vector": VectorUnit(self.architecture),
            "store": StoreUnit(self.architecture),
        }
        for name, part in parts.items():
            place(m, platform, name, part, name)
        self._outside(m, "s_axi_control", parts["control"].bus)
        self._outside(m, "m_axi", parts["arbiter"].axi)
        self._outside(m, "m_axi", parts["store"].axi)
        m.d.comb += self.interrupt.eq(parts["control"].interrupt)
        self._front_end(m, **parts)
        self._units(m, **parts)
        self._events(m, **parts)
        return m

    @staticmethod
    def _front_end(m: Module, control: Any, dispatch: Any, arbiter: Any, **parts: Any) -> None:
        """Control registers, program, and the four units."""
        m.d.comb += [
            *(getattr(dispatch, name).eq(getattr(control, name))
              for name in ("start", "resume", "program", "bases")),
            *(getattr(control, name).eq(getattr(dispatch, name))
              for name in ("running", "waiting", "done", "ready_again", "host", "error",
                           "error_at", "point")),
            control.nonfinite.eq(parts["vector"].nonfinite),
        ]
        for name in ("load", "compute", "vector", "store"):
            connect(m, getattr(dispatch, name), parts[name].port)
        for client, port in ((dispatch, arbiter.program), (parts["load"], arbiter.data)):
            for name, member in port.signature.members.items():
                inner, outer = getattr(client, name), getattr(port, name)
                m.d.comb += outer.eq(inner) if member.flow is In else inner.eq(outer)

    @staticmethod
    def _units(m: Module, load: Any, compute: Any, stce: Any, vector: Any, store: Any,
               control: Any, **_: Any) -> None:
        """What the units hand to each other."""
        m.d.comb += [
            load.bases.eq(control.bases), store.bases.eq(control.bases),
            vector.scalars.eq(control.scalars), vector.clear.eq(control.start),
            store.nonfinite.eq(vector.nonfinite),
            stce.w2e_en.eq(load.w2e_en), stce.w2e_address.eq(load.w2e_address),
            *(lanes.eq(load.w2e_data) for lanes in stce.w2e_data),
            stce.n2s_en.eq(load.n2s_en), stce.n2s_address.eq(load.n2s_address),
            stce.n2s_data.eq(load.n2s_data),
            stce.tile.eq(compute.tile), stce.tile_valid.eq(compute.tile_valid),
            compute.tile_ready.eq(stce.tile_ready),
            compute.retired.eq(stce.retired), compute.busy.eq(stce.busy),
            stce.out_en.eq(vector.out_en), stce.out_address.eq(vector.out_address),
            vector.out_data.eq(stce.out_data),
        ]
        connect(m, load.fill, vector.fill)
        connect(m, store.take, vector.take)
        connect(m, store.pack, vector.pack)

    def _events(self, m: Module, control: Any, dispatch: Any, compute: Any, stce: Any, store: Any,
                **_: Any) -> None:
        """What the counters count."""
        reads = Signal(16)
        opened, closed = Signal(), Signal()
        events = control.events
        m.d.comb += [
            opened.eq(self.m_axi_arvalid & self.m_axi_arready),
            closed.eq(self.m_axi_rvalid & self.m_axi_rready & self.m_axi_rlast),
            *(events[name].eq(dispatch.events[name])
              for name in dispatch.events.shape().members),
            events.array_busy.eq(stce.busy),
            events.read_beats.eq(self.m_axi_rvalid & self.m_axi_rready),
            events.write_beats.eq(self.m_axi_wvalid & self.m_axi_wready),
            events.read_stall.eq((reads != 0) & ~self.m_axi_rvalid),
            events.write_stall.eq((self.m_axi_wvalid & ~self.m_axi_wready)
                                  | (self.m_axi_awvalid & ~self.m_axi_awready)),
            events.macs.eq(compute.macs), events.macs_skipped.eq(compute.macs_skipped),
            events.counted.eq(compute.counted),
            events.stores_skipped.eq(store.skipped),
        ]
        m.d.sync += reads.eq(reads + opened - closed)

    def _outside(self, m: Module, prefix: str, port: Any) -> None:
        """Join a part's port with the chip's ports of that prefix."""
        for name, member in port.signature.members.items():
            inner, outer = getattr(port, name), getattr(self, f"{prefix}_{name}")
            m.d.comb += outer.eq(inner) if member.flow is Out else inner.eq(outer)
