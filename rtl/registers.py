"""Control registers, counters and error codes of the chip, declared once.

The first four registers are the ``ap_ctrl_hs`` map that the Vitis tools and XRT know. Hardware
(:mod:`rtl.control`), driver constants and the reference page come from these declarations.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

from rtl.error_codes import ErrorCode
from rtl.isa import BASES, SCALARS

__all__ = [
    "ADDRESS_BITS", "COUNTERS", "REGISTERS", "Control", "Counter", "ErrorCode", "Interrupt",
    "Register", "Status", "counter_offset", "offset_of",
]

ADDRESS_BITS = 12
"""Width of an AXI4-Lite address: one page of 4 KB."""


class Control(enum.IntFlag):
    """Bits of CONTROL (``ap_ctrl_hs``)."""

    START = 1 << 0
    """Write 1 to start; reads 1 until the program has started."""
    DONE = 1 << 1
    """The program ended, well or with an error; reading clears it."""
    IDLE = 1 << 2
    """No program runs."""
    READY = 1 << 3
    """A new start may be written; reading clears it."""


class Interrupt(enum.IntFlag):
    """Bits of INTERRUPT_ENABLE and INTERRUPT_STATUS."""

    DONE = 1 << 0
    """The program ended."""
    READY = 1 << 1
    """The chip takes another start."""
    HOST = 1 << 2
    """The program waits at a host point."""


class Status(enum.IntFlag):
    """Flag bits of STATUS; bits 15 to 8 are the error code, 31 to 16 the host point."""

    RUNNING = 1 << 0
    """A program runs or waits at a host point."""
    WAITING = 1 << 1
    """The program waits at a host point for RESUME."""
    NONFINITE = 1 << 2
    """The sticky flag: a watched result was Inf or NaN since start or ``clear``."""


@dataclass(frozen=True)
class Register:
    """One 32-bit register. ``access``: r read only, w write only, rw both."""

    name: str
    offset: int
    access: Literal["r", "w", "rw"]
    doc: str


@dataclass(frozen=True)
class Counter:
    """A 64-bit counter, cleared by start; two registers, low half first."""

    name: str
    doc: str


COUNTERS = (
    Counter("cycles", "Clock cycles from start to done, host points left out."),
    Counter("host_cycles", "Clock cycles spent at host points."),
    Counter("instructions", "Instructions dispatched."),
    Counter("load_busy", "Cycles in which LOAD has an instruction under way."),
    Counter("compute_busy", "Cycles in which COMPUTE has an instruction under way."),
    Counter("vector_busy", "Cycles in which VECTOR has an instruction under way."),
    Counter("store_busy", "Cycles in which STORE has an instruction under way."),
    Counter("load_wait", "Cycles in which LOAD's next instruction waits for another unit."),
    Counter("compute_wait", "Cycles in which COMPUTE's next instruction waits for another unit."),
    Counter("vector_wait", "Cycles in which VECTOR's next instruction waits for another unit."),
    Counter("store_wait", "Cycles in which STORE's next instruction waits for another unit."),
    Counter("array_busy", "Cycles in which the array works or drains."),
    Counter("read_beats", "Bus beats read, program included."),
    Counter("write_beats", "Bus beats written."),
    Counter("read_stall", "Cycles in which data was expected and the bus brought none."),
    Counter("write_stall", "Cycles in which the bus did not take a beat offered."),
    Counter("macs", "Multiply-accumulates executed."),
    Counter("macs_skipped", "Multiply-accumulates that N:M sparsity saved."),
    Counter("stores_skipped", "Guarded stores that wrote nothing."),
)
"""All counters in the order of their offsets."""

_COUNTER_BASE = 0x200


def _pair(name: str, offset: int, doc: str) -> tuple[Register, Register]:
    return (Register(f"{name}_low", offset, "rw", f"{doc}, bits 31 to 0."),
            Register(f"{name}_high", offset + 4, "rw", f"{doc}, bits 63 to 32."))


REGISTERS = (
    Register("control", 0x00, "rw", "ap_ctrl_hs: see Control."),
    Register("interrupt_global", 0x04, "rw", "Bit 0 enables the interrupt line."),
    Register("interrupt_enable", 0x08, "rw", "See Interrupt."),
    Register("interrupt_status", 0x0C, "rw", "See Interrupt; writing 1 toggles a bit."),
    *_pair("program", 0x10, "Byte address of the program, a multiple of the bus width"),
    Register("resume", 0x18, "w", "Any write lets a program at a host point go on."),
    Register("status", 0x1C, "r", "See Status."),
    Register("error_at", 0x20, "r", "Number of the instruction, from 0, that caused the error; of "
             "the newest one dispatched if a bus error cannot be told apart."),
    Register("row_words", 0x24, "r", "Words of 16 FP16 that a row buffer holds."),
    Register("column_words", 0x28, "r", "Packed weights that a column buffer holds."),
    Register("result_words", 0x2C, "r", "FP32 results that a result buffer holds."),
    Register("identity", 0x30, "r", "0x53415431, ASCII SAT1."),
    Register("version", 0x34, "r", "Version of the instruction set and of this map."),
    Register("array", 0x38, "r", "Rows (bits 15 to 0) and columns (31 to 16) of the array."),
    Register("pipeline", 0x3C, "r", "Bytes of a bus beat (bits 15 to 0) and interleaved sums of a "
             "processing element (31 to 16)."),
    *(half for n in range(BASES)
      for half in _pair(f"base{n}", 0x40 + 8 * n, f"Base register {n}, a byte address")),
    *(Register(f"scalar{n}", 0x80 + 4 * n, "rw", f"Scalar register {n}, FP32 bits.")
      for n in range(SCALARS)),
    *(Register(f"{counter.name}_{half}", _COUNTER_BASE + 8 * n + 4 * k, "r", counter.doc)
      for n, counter in enumerate(COUNTERS) for k, half in enumerate(("low", "high"))),
)
"""All registers, in the order of their offsets."""

IDENTITY = 0x53415431
VERSION = 0x00010000

_OFFSETS = {register.name: register.offset for register in REGISTERS}


def offset_of(name: str) -> int:
    """Byte offset of a register by name."""
    return _OFFSETS[name]


def counter_offset(name: str) -> int:
    """Byte offset of the low half of a counter."""
    return _OFFSETS[f"{name}_low"]


if sorted(_OFFSETS.values()) != list(_OFFSETS.values()) or len(_OFFSETS) != len(REGISTERS):
    raise AssertionError("registers must have different names and stand in order")
