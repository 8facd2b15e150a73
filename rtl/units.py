"""The port between the dispatcher and a unit, and the ports between units."""

from __future__ import annotations

from amaranth.lib import data
from amaranth.lib.wiring import In, Out, Signature

from rtl.chunk import LANES, WORD_BYTES
from rtl.instruction import WORD_BITS
from rtl.isa import BASES, LINES, SCALARS, VECTORS
from rtl.registers import ErrorCode

__all__ = [
    "BASE_ADDRESSES", "ERROR_BITS", "LINE", "MEMORY_WORD", "SCALAR_VALUES", "fill_port",
    "pack_port", "take_port", "unit_port",
]

ERROR_BITS = max(ErrorCode).bit_length()

MEMORY_WORD = 8 * WORD_BYTES
"""Bits of a word."""

LINE = data.ArrayLayout(32, LANES)
"""A line of a vector register: 16 FP32 lanes."""

BASE_ADDRESSES = data.ArrayLayout(64, BASES)
"""All base registers, byte addresses."""

SCALAR_VALUES = data.ArrayLayout(32, SCALARS)
"""All scalar registers, FP32."""


def unit_port() -> Signature:
    """Instructions to a unit, seen from the dispatcher.

    ``valid`` comes up once the instruction may begin; a unit may take the next one (``ready``)
    before those under way are complete. ``done`` strobes once for each instruction, in order, when
    all that it reads has been read and all that it writes can be seen by other units. ``error``
    strobes a non-zero :class:`rtl.registers.ErrorCode`; the instruction completes nevertheless.
    """
    return Signature({
        "valid": Out(1), "ready": In(1), "word": Out(WORD_BITS),
        "done": In(1), "error": In(ERROR_BITS),
    })


def fill_port() -> Signature:
    """Lines on their way into vector registers, seen from the loader; a valid/ready stream."""
    return Signature({
        "valid": Out(1), "ready": In(1),
        "register": Out(range(VECTORS)), "line": Out(range(LINES)), "data": Out(LINE),
    })


def take_port() -> Signature:
    """Lines read by the store unit, seen from it: ``data`` one cycle after the address."""
    return Signature({
        "register": Out(range(VECTORS)), "line": Out(range(LINES)), "data": In(LINE),
    })


def pack_port() -> Signature:
    """Words of packed chunks read by the store unit, seen from it: ``data`` one cycle later.

    ``axis`` 0 is FF, 1 is BP; ``word`` counts the words of a chunk in memory order.
    """
    return Signature({
        "axis": Out(1), "slot": Out(1), "chunk": Out(2), "word": Out(4), "data": In(MEMORY_WORD),
    })
