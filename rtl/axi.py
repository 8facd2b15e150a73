"""AXI4 and AXI4-Lite ports, seen from the side that drives the addresses (the manager)."""

from __future__ import annotations

import enum

from amaranth.lib.wiring import In, Out, Signature

from rtl.architecture import Architecture
from rtl.registers import ADDRESS_BITS

__all__ = ["BOUNDARY", "INCR", "Response", "axi_lite", "axi_read", "axi_write", "read_client"]

BOUNDARY = 4096
"""No burst crosses a multiple of so many bytes."""

INCR = 0b01
"""The only burst type used."""

_MEMORY_ADDRESS = 64


class Response(enum.IntEnum):
    """RRESP and BRESP."""

    OKAY = 0
    EXOKAY = 1
    SLVERR = 2
    DECERR = 3


def axi_read(architecture: Architecture) -> Signature:
    """AXI4 read channels AR and R; one ID bit: 0 program, 1 data."""
    return Signature({
        "arvalid": Out(1), "arready": In(1), "araddr": Out(_MEMORY_ADDRESS), "arid": Out(1),
        "arlen": Out(8), "arsize": Out(3), "arburst": Out(2),
        "rvalid": In(1), "rready": Out(1), "rdata": In(8 * architecture.bus_bytes), "rid": In(1),
        "rresp": In(2), "rlast": In(1),
    })


def axi_write(architecture: Architecture) -> Signature:
    """AXI4 write channels AW, W and B; one ID bit, always 0."""
    return Signature({
        "awvalid": Out(1), "awready": In(1), "awaddr": Out(_MEMORY_ADDRESS), "awid": Out(1),
        "awlen": Out(8), "awsize": Out(3), "awburst": Out(2),
        "wvalid": Out(1), "wready": In(1), "wdata": Out(8 * architecture.bus_bytes),
        "wstrb": Out(architecture.bus_bytes), "wlast": Out(1),
        "bvalid": In(1), "bready": Out(1), "bid": In(1), "bresp": In(2),
    })


def axi_lite() -> Signature:
    """AXI4-Lite, 32 data bits."""
    return Signature({
        "awvalid": Out(1), "awready": In(1), "awaddr": Out(ADDRESS_BITS), "awprot": Out(3),
        "wvalid": Out(1), "wready": In(1), "wdata": Out(32), "wstrb": Out(4),
        "bvalid": In(1), "bready": Out(1), "bresp": In(2),
        "arvalid": Out(1), "arready": In(1), "araddr": Out(ADDRESS_BITS), "arprot": Out(3),
        "rvalid": In(1), "rready": Out(1), "rdata": In(32), "rresp": In(2),
    })


def read_client(architecture: Architecture) -> Signature:
    """Bursts from memory, seen from who asks for them.

    ``ar_address`` is a byte address, a multiple of a beat; ``ar_length`` is beats less one;
    ``r_error`` is RRESP.
    """
    return Signature({
        "ar_valid": Out(1), "ar_ready": In(1), "ar_address": Out(64), "ar_length": Out(8),
        "r_valid": In(1), "r_ready": Out(1), "r_data": In(8 * architecture.bus_bytes),
        "r_error": In(2), "r_last": In(1),
    })
