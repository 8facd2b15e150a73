"""The control registers: what the host sees of the chip, an AXI4-Lite subordinate.

The map is that of :mod:`rtl.registers`, and everything here is generated from its declarations.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from rtl import registers
from rtl.architecture import Architecture
from rtl.axi import Response, axi_lite
from rtl.isa import BASES, SCALARS
from rtl.registers import ADDRESS_BITS, COUNTERS, IDENTITY, REGISTERS, VERSION, Register, offset_of
from rtl.units import BASE_ADDRESSES, ERROR_BITS, SCALAR_VALUES

__all__ = ["AMOUNT_BITS", "EVENTS", "Control"]

AMOUNT_BITS = 48
"""Width of what an instruction adds to a counter of multiply-accumulates."""

_OWN = ("cycles", "host_cycles")
_AMOUNTS = ("macs", "macs_skipped")

EVENTS = data.StructLayout({
    counter.name: AMOUNT_BITS if counter.name in _AMOUNTS else 1
    for counter in COUNTERS if counter.name not in _OWN
} | {"counted": 1})
"""What is added to each counter in this cycle: a bit, or for ``macs`` and ``macs_skipped`` an
amount that counts with ``counted``. ``cycles`` and ``host_cycles`` are Control's own."""

_WORD = 4
_WIDTHS = {"interrupt_global": 1, "interrupt_enable": len(registers.Interrupt)}


class Control(Component):
    """Registers, counters and the interrupt line.

    Each channel holds one transaction: a read takes three cycles and a write three after the later
    of its address and its data. READY and VALID outputs are registers. An address without a
    register gets SLVERR; the low two address bits are ignored; writing a read-only register, or
    reading RESUME, does nothing (and reads 0).

    An event that comes in the cycle in which its bit is cleared or toggled wins. A START written
    while a program runs starts the next one. Counters are 64 bits; the halves of one that counts
    are read at different times.

    Members
    -------
    bus: In :func:`rtl.axi.axi_lite`.
    interrupt: Out(1), a status bit is set that is enabled.
    start: Out(1), strobe: begin the program; counters are cleared.
    resume: Out(1), strobe: go on after the host point.
    program: Out(64), byte address of the program.
    bases: Out, :data:`rtl.units.BASE_ADDRESSES`.
    scalars: Out, :data:`rtl.units.SCALAR_VALUES`.
    running, waiting: In(1), In(1), a program runs; it waits at a host point.
    nonfinite: In(1), the sticky flag of the vector engine.
    done: In(1), strobe: the program ended.
    ready_again: In(1), strobe: the chip takes another start.
    host: In(1), strobe: a host point is reached.
    error: In, :class:`rtl.registers.ErrorCode`.
    error_at: In(32), number of the instruction that caused it.
    point: In(16), number of the host point.
    events: In, :data:`EVENTS`.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "bus": In(axi_lite()),
                "interrupt": Out(1), "start": Out(1), "resume": Out(1),
                "program": Out(64), "bases": Out(BASE_ADDRESSES), "scalars": Out(SCALAR_VALUES),
                "running": In(1), "waiting": In(1), "nonfinite": In(1), "done": In(1),
                "ready_again": In(1), "host": In(1),
                "error": In(ERROR_BITS), "error_at": In(32), "point": In(16),
                "events": In(EVENTS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._written = Signal(32)
        self._mask = Signal(32)
        self._writes = {
            register.name: Signal(name=f"write_{register.name}")
            for register in REGISTERS if "w" in register.access
        }
        self._reads_control = Signal()
        values = self._plain(m) | self._fixed() | self._special(m) | self._counters(m)
        self._write_channels(m)
        self._read_channel(m, values)
        return m

    def _plain(self, m: Module) -> dict[str, Value]:
        """Registers that hold what was written; returns their values."""
        values: dict[str, Value] = {}
        for register in REGISTERS:
            if register.access != "rw" or register.name in ("control", "interrupt_status"):
                continue
            value = Signal(_WIDTHS.get(register.name, 32), name=register.name)
            with m.If(self._writes[register.name]):
                m.d.sync += value.eq(value & ~self._mask | self._written & self._mask)
            values[register.name] = value
        m.d.comb += [
            self.program.eq(_pair(values, "program")),
            *(self.bases[n].eq(_pair(values, f"base{n}")) for n in range(BASES)),
            *(self.scalars[n].eq(values[f"scalar{n}"]) for n in range(SCALARS)),
        ]
        self._enabled = Mux(values["interrupt_global"], values["interrupt_enable"], 0)
        return values

    def _fixed(self) -> dict[str, Value]:
        """Registers that describe the chip."""
        architecture = self.architecture
        return {
            "row_words": Const(architecture.w2e_words, 32),
            "column_words": Const(architecture.n2s_words, 32),
            "result_words": Const(architecture.out_words, 32),
            "identity": Const(IDENTITY, 32),
            "version": Const(VERSION, 32),
            "array": Const(architecture.cols << 16 | architecture.rows, 32),
            "pipeline": Const(architecture.interleave << 16 | architecture.bus_bytes, 32),
        }

    def _special(self, m: Module) -> dict[str, Value]:
        """Registers with a life of their own; returns what they read."""
        pending, done, ready = Signal(), Signal(), Signal()
        m.d.comb += self.start.eq(pending & ~self.running)
        with m.If(self._writes["control"] & self._set_bits(registers.Control.START)):
            m.d.sync += pending.eq(1)
        with m.Elif(self.start):
            m.d.sync += pending.eq(0)
        for sticky, event in ((done, self.done), (ready, self.ready_again)):
            with m.If(event):
                m.d.sync += sticky.eq(1)
            with m.Elif(self._reads_control):
                m.d.sync += sticky.eq(0)

        status = Signal(len(registers.Interrupt), name="interrupt_status")
        toggled = Mux(self._writes["interrupt_status"], self._written & self._mask, 0)
        m.d.sync += status.eq(
            status ^ toggled[: len(status)] | Cat(self.done, self.ready_again, self.host)
        )
        m.d.comb += [
            self.interrupt.eq((status & self._enabled).any()),
            self.resume.eq(self._writes["resume"]),
        ]
        idle = ~self.running & ~pending
        return {
            "control": Cat(pending, done, idle, ready),
            "interrupt_status": status,
            "resume": Const(0),
            "status": Cat(self.running, self.waiting, self.nonfinite, Const(0, 5),
                          self.error, Const(0, 8 - ERROR_BITS), self.point),
            "error_at": self.error_at,
        }

    def _set_bits(self, flag: registers.Control) -> Value:
        """Whether a write sets the bits of ``flag``."""
        return (self._written & self._mask & int(flag)) != 0

    def _counters(self, m: Module) -> dict[str, Value]:
        """The counters; returns the values of their halves."""
        values: dict[str, Value] = {}
        own = {
            "cycles": self.running & ~self.waiting,
            "host_cycles": self.waiting,
        } | {name: Mux(self.events.counted, self.events[name], 0) for name in _AMOUNTS}
        for counter in COUNTERS:
            total = Signal(64, name=counter.name)
            step = own[counter.name] if counter.name in own else self.events[counter.name]
            m.d.sync += total.eq(Mux(self.start, 0, total + step))
            values |= {f"{counter.name}_low": total[:32], f"{counter.name}_high": total[32:]}
        return values

    def _write_channels(self, m: Module) -> None:
        bus = self.bus
        # Ready is low while a request is held, until its response has been taken.
        address_free, data_free = Signal(init=1), Signal(init=1)
        address = Signal(ADDRESS_BITS - 2)
        strobes = Signal(_WORD)
        perform = Signal()
        m.d.comb += [
            bus.awready.eq(address_free),
            bus.wready.eq(data_free),
            perform.eq(~address_free & ~data_free & ~bus.bvalid),
            self._mask.eq(Cat(strobe.replicate(8) for strobe in strobes)),
        ]
        with m.If(bus.awvalid & address_free):
            m.d.sync += [address_free.eq(0), address.eq(bus.awaddr[2:])]
        with m.If(bus.wvalid & data_free):
            m.d.sync += [data_free.eq(0), self._written.eq(bus.wdata), strobes.eq(bus.wstrb)]
        m.d.comb += [
            self._writes[register.name].eq(perform & strobes.any() & (address == _word(register)))
            for register in REGISTERS if register.name in self._writes
        ]
        with m.If(perform):
            m.d.sync += [
                bus.bvalid.eq(1),
                bus.bresp.eq(_response(address)),
            ]
        with m.Elif(bus.bvalid & bus.bready):
            m.d.sync += [bus.bvalid.eq(0), address_free.eq(1), data_free.eq(1)]

    def _read_channel(self, m: Module, values: dict[str, Value]) -> None:
        bus = self.bus
        free = Signal(init=1)
        address = Signal(ADDRESS_BITS - 2, name="read_address")
        perform = Signal(name="read_perform")
        value = Signal(32)
        m.d.comb += [bus.arready.eq(free), perform.eq(~free & ~bus.rvalid)]
        with m.If(bus.arvalid & free):
            m.d.sync += [free.eq(0), address.eq(bus.araddr[2:])]
        with m.Switch(address):
            for register in REGISTERS:
                with m.Case(_word(register)):
                    m.d.comb += value.eq(values[register.name])
        m.d.comb += self._reads_control.eq(
            perform & (address == offset_of("control") // _WORD)
        )
        with m.If(perform):
            m.d.sync += [
                bus.rvalid.eq(1), bus.rdata.eq(value), bus.rresp.eq(_response(address)),
            ]
        with m.Elif(bus.rvalid & bus.rready):
            m.d.sync += [bus.rvalid.eq(0), free.eq(1)]


def _word(register: Register) -> int:
    return register.offset // _WORD


def _response(address: Signal) -> Value:
    """Of an access to a word that may or may not have a register."""
    known = address.matches(*map(_word, REGISTERS))
    return Mux(known, Response.OKAY, Response.SLVERR)


def _pair(values: dict[str, Value], name: str) -> Value:
    return Cat(values[f"{name}_low"], values[f"{name}_high"])
