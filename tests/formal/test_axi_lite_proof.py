"""The control registers obey AXI4-Lite, proven for a host that does anything at all.

Handshakes are counted: a response comes only for a request, once, within a cycle of it, and stays
as it is until it is taken.
"""

from __future__ import annotations

import pytest
from amaranth.hdl import Assert, Cat, Module, Signal, Value
from amaranth.lib.wiring import Flow
from faulty import faulty
from prover import prove, refute

import rtl.control
from rtl.architecture import PRESETS
from rtl.axi import Response
from rtl.control import Control
from rtl.registers import REGISTERS

BUS = ("awaddr", "awvalid", "wdata", "wstrb", "wvalid", "bready", "araddr", "arvalid", "rready")


def design(control: Control, *, contents: bool) -> tuple[Module, list[Signal]]:
    """Control with a free bus; ``contents``: also whether a response is that of its address."""
    m = Module()
    m.submodules.control = control
    bus = control.bus
    free = {name: Signal(len(getattr(bus, name)), name=name) for name in BUS}
    m.d.comb += [getattr(bus, name).eq(signal) for name, signal in free.items()]

    def shaken(channel: str) -> Value:
        return getattr(bus, f"{channel}valid") & getattr(bus, f"{channel}ready")

    started = Signal()
    m.d.sync += started.eq(1)
    for response, requests, payload in (
        ("b", ("aw", "w"), bus.bresp), ("r", ("ar",), Cat(bus.rresp, bus.rdata))
    ):
        valid = getattr(bus, f"{response}valid")
        pending = {request: Signal(2, name=f"pending_{request}") for request in requests}
        for request, count in pending.items():
            m.d.sync += count.eq(count + shaken(request) - shaken(response))
            m.d.comb += [
                Assert(count <= 1),
                # One is held, and no second one is taken.
                Assert(getattr(bus, f"{request}ready") == (count == 0)),
                Assert(~valid | (count == 1)),
            ]
        complete = Signal(name=f"{response}_complete")
        due, held = Signal(name=f"{response}_due"), Signal(name=f"{response}_held")
        before = Signal(len(payload), name=f"{response}_before")
        m.d.comb += complete.eq(Cat(count == 1 for count in pending.values()).all())
        m.d.sync += [
            due.eq(complete & ~valid), held.eq(valid & ~shaken(response)), before.eq(payload),
        ]
        with m.If(started):
            m.d.comb += [
                Assert(~due | valid),
                Assert(~held | (valid & (payload == before))),
            ]
        if contents:
            _contents(m, control, requests[0], valid, getattr(bus, f"{response}resp"))
    return m, list(free.values())


def _contents(
    m: Module, control: Control, request: str, valid: Value, response: Value
) -> None:
    """Each response is that of the address that was asked for last."""
    address = Signal(12, name=f"asked_{request}")
    taken = getattr(control.bus, f"{request}valid") & getattr(control.bus, f"{request}ready")
    with m.If(taken):
        m.d.sync += address.eq(getattr(control.bus, f"{request}addr"))
    known = Cat(address[2:] == register.offset >> 2 for register in REGISTERS).any()
    with m.If(valid):
        m.d.comb += [
            Assert(~known | (response == Response.OKAY)),
            Assert(known | (response == Response.SLVERR)),
        ]


def test_every_input_of_the_bus_is_free() -> None:
    control = Control(PRESETS["tiny"])
    control._MustUse__used = True
    members = control.signature.members["bus"].signature.members
    inputs = {name for name in members if members[name].flow is Flow.In}
    assert inputs - set(BUS) == {"awprot", "arprot"}, "all but those that mean nothing here"


def test_protocol() -> None:
    """At all times, by induction."""
    assert prove(*design(Control(PRESETS["tiny"]), contents=False), depth=2)


def test_responses() -> None:
    """The response of each address, in all runs of so many cycles."""
    assert not refute(*design(Control(PRESETS["tiny"]), contents=True), cycles=9)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        # A response without data, one that does not wait, one for every second request.
        ("perform.eq(~address_free & ~data_free & ~bus.bvalid)",
         "perform.eq(~address_free & ~bus.bvalid)"),
        ("with m.Elif(bus.rvalid & bus.rready)", "with m.Elif(bus.rvalid)"),
        ("bus.bvalid.eq(0), address_free.eq(1), data_free.eq(1)",
         "bus.bvalid.eq(0), address_free.eq(1)"),
        ("perform.eq(~free & ~bus.rvalid)", "perform.eq(~free)"),
    ],
)
def test_fault_is_found(right: str, wrong: str) -> None:
    broken = faulty(rtl.control, right, wrong)
    assert refute(*design(broken.Control(PRESETS["tiny"]), contents=False), cycles=8)
