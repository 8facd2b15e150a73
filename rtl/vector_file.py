"""The vector registers: a memory each, so that the engine, a load and a store work side by side."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal, Value
from amaranth.lib import memory
from amaranth.lib.wiring import Component, In, Out

from rtl.isa import LINES, VECTORS
from rtl.netlist import place
from rtl.units import LINE, fill_port, take_port

__all__ = ["VectorFile", "VectorRegister"]

_READERS = ("a", "b", "take")


class VectorRegister(Component):
    """One register of ``LINES`` lines: one write port, three read ports.

    A line is in the register one cycle after its write, ``data`` of a read follows one cycle after
    the address; a line a cycle at each port. A read in the cycle of a write sees the old line.

    Members
    -------
    write_en, write_line, write_data: In, In, In, a line.
    a_en, a_line, a_data: In, In, Out, operand a of the engine.
    b_en, b_line, b_data: In, In, Out, operand b, which may be another line of the same register.
    take_en, take_line, take_data: In, In, Out, the store unit.
    """

    def __init__(self) -> None:
        ports = {"write_en": In(1), "write_line": In(range(LINES)), "write_data": In(LINE)}
        for reader in _READERS:
            ports |= {
                f"{reader}_en": In(1),
                f"{reader}_line": In(range(LINES)),
                f"{reader}_data": Out(LINE),
            }
        super().__init__(ports)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.lines = lines = memory.Memory(shape=LINE, depth=LINES, init=[])
        write = lines.write_port()
        m.d.comb += [
            write.en.eq(self.write_en),
            write.addr.eq(self.write_line),
            write.data.eq(self.write_data),
        ]
        for reader in _READERS:
            read = lines.read_port()
            m.d.comb += [
                read.en.eq(getattr(self, f"{reader}_en")),
                read.addr.eq(getattr(self, f"{reader}_line")),
                getattr(self, f"{reader}_data").eq(read.data),
            ]
        return m


class VectorFile(Component):
    """``VECTORS`` registers with the engine's ports and those of the load and store units.

    A line a cycle at each port; ``data`` follows one cycle after its address. A line written or
    filled can be read from the next cycle on. A fill waits only while the engine writes to the
    same register.

    Members
    -------
    a_en, a_register, a_line, a_data: In, In, In, Out, operand a of the engine.
    b_en, b_register, b_line, b_data: In, In, In, Out, operand b.
    write_en, write_register, write_line, write_data: In, results of the engine.
    fill: In :func:`rtl.units.fill_port`, lines from memory.
    take: In :func:`rtl.units.take_port`, lines to memory.
    """

    def __init__(self) -> None:
        register, line = In(range(VECTORS)), In(range(LINES))
        super().__init__({
            "a_en": In(1), "a_register": register, "a_line": line, "a_data": Out(LINE),
            "b_en": In(1), "b_register": register, "b_line": line, "b_data": Out(LINE),
            "write_en": In(1), "write_register": register, "write_line": line,
            "write_data": In(LINE),
            "fill": In(fill_port()),
            "take": In(take_port()),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        fill, take = self.fill, self.take
        m.d.comb += fill.ready.eq(~(self.write_en & (self.write_register == fill.register)))
        registers = []
        for number in range(VECTORS):
            register = VectorRegister()
            place(m, platform, f"register_{number}", register, "vector_register")
            registers.append(register)
            own = Signal(name=f"own_{number}")
            m.d.comb += [
                own.eq(self.write_en & (self.write_register == number)),
                register.write_en.eq(own | (fill.valid & (fill.register == number))),
                register.write_line.eq(Mux(own, self.write_line, fill.line)),
                register.write_data.eq(
                    Mux(own, self.write_data.as_value(), fill.data.as_value())
                ),
                register.a_en.eq(self.a_en & (self.a_register == number)),
                register.a_line.eq(self.a_line),
                register.b_en.eq(self.b_en & (self.b_register == number)),
                register.b_line.eq(self.b_line),
                register.take_en.eq(take.register == number),
                register.take_line.eq(take.line),
            ]
        for reader, asked, data in (
            ("a", self.a_register, self.a_data),
            ("b", self.b_register, self.b_data),
            ("take", take.register, take.data),
        ):
            answers: list[Value] = [
                getattr(register, f"{reader}_data").as_value() for register in registers
            ]
            chosen = Signal.like(asked, name=f"{reader}_chosen", reset_less=True)
            m.d.sync += chosen.eq(asked)
            m.d.comb += data.eq(Array(answers)[chosen])
        return m
