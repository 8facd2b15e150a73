"""Why a program stopped: the codes that decoder, units and bus report."""

from __future__ import annotations

import enum

__all__ = ["ErrorCode"]


class ErrorCode(enum.IntEnum):
    """Why a program stopped; in STATUS until the next start."""

    NONE = 0
    """No error."""
    OPCODE = 1
    """The word's opcode is undefined."""
    RESERVED = 2
    """Bits beyond the instruction's fields are set."""
    FIELD = 3
    """A field has a value that its rule excludes."""
    RANGE = 4
    """A buffer or register address beyond the end."""
    FETCH = 5
    """The bus answered a program fetch with an error."""
    READ_SLAVE = 6
    """SLVERR on a read."""
    READ_DECODE = 7
    """DECERR on a read: no memory at that address."""
    WRITE_SLAVE = 8
    """SLVERR on a write."""
    WRITE_DECODE = 9
    """DECERR on a write: no memory at that address."""
    BASE = 10
    """The program's address is no multiple of a bus beat, or a base register no multiple of a
    word."""
