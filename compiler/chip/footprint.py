"""What an instruction reads and writes, worked out from its own fields.

:func:`footprint` is the one source for :class:`compiler.chip.builder.ProgramBuilder`, which orders
instructions by it, and :mod:`compiler.chip.races`, which checks the order. Ranges are hulls: a
range may be larger than what is touched, never smaller.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

from rtl.architecture import Architecture
from rtl.chunk import LANES, ChunkFormat
from rtl.isa import LINES, Decoded, Source, StoreSource, VectorOp
from rtl.pattern import NmPattern

__all__ = ["Access", "Resource", "footprint"]


class Resource(enum.IntEnum):
    """What two units can both touch. Ranges count words unless stated otherwise."""

    ROWS = 0
    """Row buffers (W2E), all rows together."""
    COLUMNS = 1
    """Column buffers (N2S), all columns together."""
    RESULTS = 2
    """Result buffers, all columns together."""
    VECTORS = 3
    """Lines of vector registers, LINES a register."""
    PACKS = 4
    """Pack slots, FF and BP half of each."""
    FLAG = 5
    """The sticky non-finite flag."""
    MEMORY = 6
    """Device memory. Regions of different base registers are taken to be disjoint."""


class Access(NamedTuple):
    """One range of one resource, half open."""

    resource: Resource
    start: int
    stop: int
    write: bool


_REGION = 1 << 40
_REDUCTIONS = (VectorOp.SUM, VectorOp.PEAK)
_FLAG = (Resource.FLAG, 0, 1)

Accesses = tuple[Access, ...]


def footprint(decoded: Decoded, shape: Decoded | None, architecture: Architecture) -> Accesses:
    """All accesses of an instruction; ``shape`` is the last ``shape`` before it, for load_a."""
    find = _FOOTPRINTS.get(decoded.instruction.mnemonic)
    return () if find is None else find(decoded, shape, architecture)


def _memory(decoded: Decoded, low: int, high: int, write: bool = False) -> Access:
    start = decoded["base"] * _REGION + decoded["offset"]
    return Access(Resource.MEMORY, start + low, start + high, write)


def _load_a(decoded: Decoded, shape: Decoded | None, architecture: Architecture) -> Accesses:
    if shape is None:
        raise ValueError("load_a before any shape")
    values = shape.values
    out_width, out_height = values["out_width"], values["out_height"]
    first = (decoded["image"] * out_height + decoded["y"]) * out_width + decoded["x"]
    last = first + decoded["count"] - 1
    reach = (values["taps_y"] - 1) * values["step_y"]

    def row_of(walk: int, tap: int) -> int:
        """First word of the input row, moved into the image if it lies outside."""
        image, rest = divmod(walk, out_width * out_height)
        y = rest // out_width * values["stride_y"] + values["first_y"] + tap
        inside = min(max(y, 0), values["height"] - 1)
        return image * values["image"] + inside * values["row"]

    low = row_of(first, min(reach, 0))
    high = row_of(last, max(reach, 0)) + (values["width"] - 1) * values["pixel"] + values["words"]
    taps, count = values["taps_y"] * values["taps_x"], decoded["count"]
    if decoded["turn"]:
        rows, words = taps * values["words"] * LANES, -(-count // LANES)
    else:
        rows, words = count, taps * values["words"]
    top, bottom = decoded["first"], decoded["first"] + rows - 1
    dest, stride = decoded["dest"], decoded["stride"]
    return (
        _memory(decoded, low, high),
        Access(Resource.ROWS, dest + top // architecture.rows * stride,
               dest + bottom // architecture.rows * stride + words, True),
    )


def _load_b(decoded: Decoded, shape: Decoded | None, architecture: Architecture) -> Accesses:
    form = ChunkFormat(NmPattern(decoded["n"], 1 << decoded["m_log2"]))
    if decoded["turn"]:
        rows, item = LANES, (LANES - 1) * decoded["turn_pitch"] + 1
    elif decoded["m_log2"] == 0:
        rows, item = 1, 1
    else:
        rows, item = form.rows, form.words
    tap = (decoded["taps"] - 1) * decoded["tap_pitch"]
    reach = ((decoded["panels"] - 1) * decoded["panel_pitch"]
             + (decoded["items"] - 1) * decoded["pitch"] + item)
    last = (decoded["panels"] * LANES - 1) // architecture.cols
    depth = decoded["taps"] * decoded["items"] * rows
    return (
        _memory(decoded, min(tap, 0), max(tap, 0) + reach),
        Access(Resource.COLUMNS, decoded["dest"],
               decoded["dest"] + last * decoded["stride"] + depth, True),
    )


def _lines(decoded: Decoded, words_a_line: int, write: bool) -> Access:
    lines, run = decoded["lines"], min(decoded["run"], decoded["lines"])
    reach = (lines - 1) // run * decoded["pitch"] + run * words_a_line
    return _memory(decoded, 0, reach, write)


def _register(register: int, line: int, lines: int, write: bool) -> Access:
    start = register * LINES + line
    return Access(Resource.VECTORS, start, start + lines, write)


def _load_v(decoded: Decoded, shape: Decoded | None, architecture: Architecture) -> Accesses:
    return (
        _lines(decoded, 1 if decoded["half"] else 2, False),
        _register(decoded["dest"], decoded["line"], decoded["lines"], True),
    )


def _compute(decoded: Decoded, shape: Decoded | None, architecture: Architecture) -> Accesses:
    groups = decoded["groups"]
    row_tile = (decoded["p_count"] - 1) // architecture.rows
    col_tile = (decoded["q_count"] - 1) // architecture.cols
    words = -(-(groups << decoded["m_log2"]) // LANES)
    reads = (
        Access(Resource.ROWS, decoded["a_base"],
               decoded["a_base"] + row_tile * decoded["a_stride"] + words, False),
        Access(Resource.COLUMNS, decoded["b_base"],
               decoded["b_base"] + col_tile * decoded["b_stride"] + groups * decoded["n"], False),
    )
    if not decoded["last"]:
        return reads
    end = decoded["c_base"] + col_tile * decoded["c_stride"] + decoded["p_count"]
    return (*reads, Access(Resource.RESULTS, decoded["c_base"], end, True))


def _vector(decoded: Decoded, shape: Decoded | None, architecture: Architecture) -> Accesses:
    line, lines, period = decoded["line"], decoded["lines"], decoded["period"]
    if decoded["drain"]:
        run = min(decoded["run"], lines)
        last = (run * LANES - 1) // architecture.cols
        reads = [Access(
            Resource.RESULTS, decoded["c_base"],
            decoded["c_base"] + last * decoded["c_stride"] + (lines - 1) // decoded["run"] + 1,
            False,
        )]
    else:
        reads = [_register(decoded["a"], line, lines, False)]
    op = VectorOp(decoded["op"])
    if op in _REDUCTIONS:
        written = (0, min(period, lines))
        if decoded["keep"]:
            reads.append(_register(decoded["dest"], *written, False))
    else:
        written = (line, lines)
        if decoded["source"] == Source.VECTOR and op not in (VectorOp.COPY, VectorOp.SQRT):
            where = (0, min(period, lines)) if period else (line, lines)
            reads.append(_register(decoded["b"], *where, False))
    flag = (Access(*_FLAG, True),) if decoded["watch"] else ()
    return (*reads, _register(decoded["dest"], *written, True), *flag)


def _prune(decoded: Decoded, shape: Decoded | None, architecture: Architecture) -> Accesses:
    slot = 2 * decoded["slot"]
    return (
        _register(decoded["a"], decoded["line"], decoded["chunks"] * LANES, False),
        Access(Resource.PACKS, slot, slot + 2, True),
    )


def _clear(decoded: Decoded, shape: Decoded | None, architecture: Architecture) -> Accesses:
    return (Access(*_FLAG, True),)


def _store(decoded: Decoded, shape: Decoded | None, architecture: Architecture) -> Accesses:
    flag = (Access(*_FLAG, False),) if decoded["guard"] else ()
    source = StoreSource(decoded["source"])
    if source in (StoreSource.SINGLE, StoreSource.HALF):
        return (
            _register(decoded["a"], decoded["line"], decoded["lines"], False),
            _lines(decoded, 1 if source is StoreSource.HALF else 2, True), *flag,
        )
    half = 2 * (decoded["a"] & 1) + (source is StoreSource.PACKED_BP)
    reach = (decoded["chunks"] - 1) * decoded["pitch"] + decoded["chunk_words"]
    return (
        Access(Resource.PACKS, half, half + 1, False), _memory(decoded, 0, reach, True), *flag,
    )


_FOOTPRINTS: dict[str, Callable[[Decoded, Decoded | None, Architecture], Accesses]] = {
    "load_a": _load_a, "load_b": _load_b, "load_v": _load_v, "compute": _compute,
    "vector": _vector, "prune": _prune, "clear": _clear, "store": _store,
}
