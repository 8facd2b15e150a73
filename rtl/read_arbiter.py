"""One AXI4 read port for the two that read: the program fetch and the data loads."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import Architecture
from rtl.axi import INCR, axi_read, read_client

__all__ = ["ReadArbiter"]


class ReadArbiter(Component):
    """Two clients on one AXI4 read port; the program goes first, answers go by their ID.

    Registers stand in both directions: a burst reaches the port one cycle after its client offers
    it, a beat its client one cycle after the port, one of each a cycle. No output of the AXI port
    depends on one of its inputs in the same cycle.

    Members
    -------
    program: In, :func:`rtl.axi.read_client` with ID 0, which has priority.
    data: In, :func:`rtl.axi.read_client` with ID 1.
    axi: Out, :func:`rtl.axi.axi_read`.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "program": In(read_client(architecture)),
                "data": In(read_client(architecture)),
                "axi": Out(axi_read(architecture)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._addresses(m)
        self._beats(m)
        return m

    def _addresses(self, m: Module) -> None:
        axi, program, loads = self.axi, self.program, self.data
        free = Signal()
        m.d.comb += [
            axi.arsize.eq((self.architecture.bus_bytes - 1).bit_length()),
            axi.arburst.eq(INCR),
            free.eq(~axi.arvalid | axi.arready),
            program.ar_ready.eq(free),
            loads.ar_ready.eq(free & ~program.ar_valid),
        ]
        with m.If(free):
            m.d.sync += [
                axi.arvalid.eq(program.ar_valid | loads.ar_valid),
                axi.arid.eq(~program.ar_valid),
                axi.araddr.eq(Mux(program.ar_valid, program.ar_address, loads.ar_address)),
                axi.arlen.eq(Mux(program.ar_valid, program.ar_length, loads.ar_length)),
            ]

    def _beats(self, m: Module) -> None:
        """Two beats of storage, so that ``rready`` can be a register."""
        axi = self.axi
        beat = data.StructLayout({
            "id": 1, "last": 1, "error": 2, "data": 8 * self.architecture.bus_bytes,
        })
        arriving = Signal(beat)
        head, spare = (Signal(beat, name=name, reset_less=True) for name in ("head", "spare"))
        head_valid, spare_valid, taken = (
            Signal(name=name) for name in ("head_valid", "spare_valid", "taken")
        )
        m.d.comb += [
            arriving.eq(Cat(axi.rid, axi.rlast, axi.rresp, axi.rdata)),
            axi.rready.eq(~spare_valid),
            taken.eq(~head_valid | Mux(head.id, self.data.r_ready, self.program.r_ready)),
        ]
        with m.If(taken):
            m.d.sync += [
                head_valid.eq(spare_valid | axi.rvalid),
                head.eq(Mux(spare_valid, spare, arriving)),
                spare_valid.eq(0),
            ]
        with m.Elif(axi.rvalid & ~spare_valid):
            m.d.sync += [spare_valid.eq(1), spare.eq(arriving)]
        for number, client in enumerate((self.program, self.data)):
            m.d.comb += [
                client.r_valid.eq(head_valid & (head.id == number)),
                client.r_data.eq(head.data),
                client.r_error.eq(head.error),
                client.r_last.eq(head.last),
            ]
