"""The instruction set of SAT, declared once.

A program is a straight line of 256-bit words. The dispatcher hands each instruction to the queue of
its unit; the four units run side by side, each in order. Where an instruction needs what another
unit does before it, its header says so by distance (``after_...``): such a wait always points
backward in the program, so that no program can deadlock.

Addresses in memory are ``base register + offset``, offsets in words of 32 bytes
(:mod:`rtl.chunk`); a program is relocated by its base registers alone.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from rtl.error_codes import ErrorCode
from rtl.errors import ParameterError, closest
from rtl.instruction import WORD_BITS, Field, Instruction, Unit

__all__ = [
    "BASES", "INSTRUCTIONS", "LINES", "SCALARS", "VECTORS", "Decoded", "IllegalWord", "Source",
    "StoreSource", "VectorOp", "assemble", "by_name", "decode", "disassemble",
]

BASES = 8
"""Base registers, each a byte address that is a multiple of a word."""
VECTORS = 16
"""Vector registers."""
LINES = 64
"""Lines of a vector register; a line is 16 FP32 lanes."""
SCALARS = 16
"""FP32 scalar registers that the host writes: learning rate, loss scale, ..."""


class VectorOp(enum.IntEnum):
    """Operations of the vector engine, lane by lane, each rounded once (numerics contract 7)."""

    COPY = 0
    """a"""
    ADD = 1
    """a + b"""
    SUB = 2
    """a - b"""
    MUL = 3
    """a * b"""
    DIV = 4
    """a / b"""
    SQRT = 5
    """square root of a"""
    MAX = 6
    """the larger; NaN if either is; a if they compare equal"""
    MIN = 7
    """the smaller; NaN if either is; a if they compare equal"""
    GATE = 8
    """a where b > 0, else +0: the backward mask of ReLU"""
    GREATER = 9
    """1 where a > b, else +0"""
    SUM = 10
    """reduction: destination line j (of ``period``) takes the lines j, j + period, ... of a, added
    one by one in that order to what it holds (``keep``) or to +0"""
    PEAK = 11
    """reduction as SUM with MAX; without ``keep`` it starts from -Inf"""


class Source(enum.IntEnum):
    """Where operand b of a vector operation comes from."""

    VECTOR = 0
    """Vector register ``b``; its line is the line number modulo ``period`` (0: no modulo)."""
    SCALAR = 1
    """Scalar register ``b``, the same for all lanes."""
    IMMEDIATE = 2
    """``immediate``, FP32 bits, the same for all lanes."""


class StoreSource(enum.IntEnum):
    """What a store writes."""

    SINGLE = 0
    """Lines of a vector register as FP32: two words a line."""
    HALF = 1
    """Lines of a vector register rounded to FP16: one word a line."""
    PACKED_FF = 2
    """Packed chunks of SORE with groups along the rows (for FF)."""
    PACKED_BP = 3
    """Packed chunks of SORE with groups along the columns (for BP), transposed."""


_BASE = Field("base", 3, "Base register.")
_OFFSET = Field("offset", 32, "First word, from the base.")
_N = Field("n", 4, "N of the pattern; 1 for dense.", 1, 8)
_M_LOG2 = Field("m_log2", 3, "log2 of M; 0 for dense.", 0, 4)
_LINE = Field("line", 6, "First line.")
_LINES = Field("lines", 7, "Number of lines.", 1, LINES)
_RUN = Field("run", 7, "Lines that follow each other in memory; then the next row begins.", 1,
             LINES)
_PITCH = Field("pitch", 24, "Words from one row to the next.")

END = Instruction("end", 0x01, Unit.CONTROL, "Wait until all units are idle; the program is done.",
                  ())
FENCE = Instruction("fence", 0x02, Unit.CONTROL, "Wait until all units are idle.", ())
HOST = Instruction(
    "host", 0x03, Unit.CONTROL,
    "Wait until all units are idle, then stop with an interrupt, all state kept, until the host "
    "writes RESUME.",
    (Field("point", 16, "Number of this host point, for the driver."),),
)
SHAPE = Instruction(
    "shape", 0x10, Unit.LOAD,
    "Geometry of the images that following load_a read: (image, height, width, words), all "
    "distances in words. A linear layer is a 1 x 1 image with one tap.",
    (
        Field("words", 12, "Channel words of a pixel that are read.", 1),
        Field("pixel", 16, "From a pixel to the next in its row."),
        Field("row", 24, "From a row of pixels to the next."),
        Field("image", 24, "From an image to the next."),
        Field("height", 12, "Rows of the image; outside it is zero.", 1),
        Field("width", 12, "Pixels of a row; outside it is zero.", 1),
        Field("out_height", 12, "Rows of the output grid.", 1),
        Field("out_width", 12, "Pixels of a row of the output grid.", 1),
        Field("stride_y", 4, "Input rows from an output row to the next."),
        Field("stride_x", 4, "Input pixels from an output pixel to the next."),
        Field("taps_y", 8, "Kernel taps down.", 1),
        Field("taps_x", 8, "Kernel taps across.", 1),
        Field("step_y", 8, "Input rows from a tap to the next.", -128),
        Field("step_x", 8, "Input pixels from a tap to the next.", -128),
        Field("first_y", 12, "Input row of output row 0, tap 0.", -2048),
        Field("first_x", 12, "Input pixel of output pixel 0, tap 0.", -2048),
    ),
)
LOAD_A = Instruction(
    "load_a", 0x11, Unit.LOAD,
    "Fill row buffers (W2E) with im2col of the shape. The walk is `count` output pixels from "
    "(image, y, x) on, x fastest. turn=0: walk position i is array row `first + i`, its words are "
    "(tap, channel word). turn=1 (WU): array row is `first + (tap, channel)`, its words are the "
    "walk, 16 positions a word, zero beyond the end. Array row r is buffer r mod R, words from "
    "`dest + (r / R) * stride` on.",
    (
        _BASE, _OFFSET,
        Field("image", 16, "Image of the first output pixel."),
        Field("y", 12, "Its row."),
        Field("x", 12, "Its place in the row."),
        Field("count", 16, "Output pixels to walk over.", 1),
        Field("dest", 16, "First word in the row buffers."),
        Field("stride", 16, "Words from one row tile to the next."),
        Field("first", 12, "First array row."),
        Field("turn", 1, "Transpose in blocks of 16 x 16."),
    ),
)
LOAD_B = Instruction(
    "load_b", 0x12, Unit.LOAD,
    "Fill column buffers (N2S) with `panels` panels of 16 columns. Item (panel, tap, i) begins at "
    "word `offset + panel * panel_pitch + tap * tap_pitch + i * pitch`: dense a row of 16 values; "
    "packed a packed chunk; turned (dense only) a block of 16 words `turn_pitch` apart, whose "
    "transpose gives 16 rows. Rows are counted through taps and items; row k, column q of the "
    "block go to column buffer q mod C, word `dest + (q / C) * stride + k`.",
    (
        _BASE, _OFFSET,
        Field("dest", 20, "First word in the column buffers."),
        Field("stride", 20, "Words from one column tile (C columns) to the next."),
        _N, _M_LOG2,
        Field("turn", 1, "Transpose in blocks of 16 x 16; dense only."),
        Field("rows_first", 1, "Order of reading: 0 panel by panel, 1 panels innermost."),
        Field("panels", 10, "Panels of 16 columns.", 1),
        Field("panel_pitch", 24, "Words between panels."),
        Field("taps", 8, "Kernel taps.", 1),
        Field("tap_pitch", 24, "Words between taps.", -(1 << 23)),
        Field("items", 16, "Items of a tap.", 1),
        Field("pitch", 16, "Words between items."),
        Field("turn_pitch", 16, "Words between the 16 words of a turned block."),
    ),
)
LOAD_V = Instruction(
    "load_v", 0x13, Unit.LOAD,
    "Fill lines of a vector register, rows of `run` lines, `pitch` words apart; FP16 is widened.",
    (
        _BASE, _OFFSET,
        Field("dest", 4, "Vector register."), _LINE, _LINES, _RUN, _PITCH,
        Field("half", 1, "1: memory holds FP16 (one word a line); 0: FP32 (two)."),
    ),
)
COMPUTE = Instruction(
    "compute", 0x20, Unit.COMPUTE,
    "Multiply a block, output-stationary: p_count rows of the row buffers by q_count columns of "
    "the column buffers over `groups` groups of K. Result (p, q) goes to result buffer q mod C, "
    "word `c_base + (q / C) * c_stride + p`. The column buffers must hold indices below M, as of "
    "chunks packed to this pattern or, for M = 1, dense rows; the result of others is undefined.",
    (
        Field("a_base", 16, "First word in the row buffers."),
        Field("a_stride", 16, "Words from one row tile (R rows) to the next."),
        Field("b_base", 20, "First word in the column buffers."),
        Field("b_stride", 20, "Words from one column tile (C columns) to the next."),
        Field("c_base", 20, "First word in the result buffers."),
        Field("c_stride", 20, "Words from one column tile to the next."),
        Field("groups", 20, "Groups of M along K.", 1),
        Field("p_count", 16, "Rows of the block.", 1),
        Field("q_count", 12, "Columns of the block.", 1),
        _N, _M_LOG2,
        Field("interleave_rows", 3, "Row tiles among the L interleaved sums; divides L.", 1, 5),
        Field("first", 1, "Sums start at +0; else those still in the array go on (one tile)."),
        Field("last", 1, "Write the sums out afterwards."),
    ),
)
VECTOR = Instruction(
    "vector", 0x30, Unit.VECTOR,
    "Line by line: dest = op(a, b), then ReLU if asked. Operand a is a vector register, or with "
    "`drain` the result buffers: line i holds result row i / run, columns 16 (i mod run) to "
    "16 (i mod run) + 15.",
    (
        Field("op", 4, "See VectorOp.", 0, max(VectorOp)),
        Field("dest", 4, "Vector register."),
        Field("a", 4, "Vector register."),
        Field("source", 2, "What b is, see Source.", 0, max(Source)),
        Field("b", 4, "Vector or scalar register."),
        Field("immediate", 32, "FP32 bits."),
        Field("period", 7, "b repeats after so many lines (0: never); length of a reduction's "
              "result.", 0, LINES),
        _LINE, _LINES,
        Field("relu", 1, "Replace a result that is not above zero by +0; NaN stays."),
        Field("watch", 1, "Set the sticky non-finite flag if a result is Inf or NaN."),
        Field("keep", 1, "Reductions: begin with what the destination holds."),
        Field("drain", 1, "Operand a comes from the result buffers."),
        Field("c_base", 20, "First word in the result buffers."),
        Field("c_stride", 20, "Words from one column tile (C columns) to the next."),
        Field("run", 7, "Lines of a result row.", 1, LINES),
    ),
)
PRUNE = Instruction(
    "prune", 0x31, Unit.VECTOR,
    "Round chunks of 16 lines to FP16 and pack them N:M along both axes into pack slot `slot`.",
    (
        Field("a", 4, "Vector register."), _LINE,
        Field("chunks", 3, "Chunks of 16 lines.", 1, 4),
        Field("slot", 1, "Pack slot."), Field("n", 4, "N of the pattern.", 1, 8),
        Field("m_log2", 3, "log2 of M.", 1, 4),
    ),
)
UPDATE_GUARD = Field("guard", 1, "Write nothing if the sticky non-finite flag is set.")
STORE = Instruction(
    "store", 0x40, Unit.STORE,
    "Write lines of a vector register in rows of `run` lines, `pitch` words apart; or "
    "`chunks` packed chunks of a pack slot, `pitch` words apart.",
    (
        _BASE, _OFFSET,
        Field("source", 2, "What is written, see StoreSource."),
        Field("a", 4, "Vector register, or pack slot (0 or 1)."),
        _LINE, _LINES, _RUN, _PITCH,
        Field("chunks", 3, "Packed chunks.", 1, 4),
        Field("chunk_words", 4, "Words of a packed chunk.", 1, 10),
        UPDATE_GUARD,
    ),
)
CLEAR = Instruction("clear", 0x32, Unit.VECTOR, "Clear the sticky non-finite flag.", ())

INSTRUCTIONS = (
    END, FENCE, HOST, SHAPE, LOAD_A, LOAD_B, LOAD_V, COMPUTE, VECTOR, PRUNE, CLEAR, STORE,
)
"""All of them."""

_BY_OPCODE = {instruction.opcode: instruction for instruction in INSTRUCTIONS}
_BY_NAME = {instruction.mnemonic: instruction for instruction in INSTRUCTIONS}


class IllegalWord(ValueError):
    """A word that is no instruction; ``reason`` is why, ``code`` what the chip reports."""

    def __init__(self, word: int, code: ErrorCode, reason: str) -> None:
        self.word, self.code, self.reason = word, code, reason
        super().__init__(f"{word:#x} is no instruction: {reason}")


@dataclass(frozen=True)
class Decoded:
    """An instruction with the values of its fields."""

    instruction: Instruction
    values: dict[str, int]

    def __getitem__(self, name: str) -> int:
        return self.values[name]

    def encode(self) -> int:
        """The word again."""
        return self.instruction.encode(**self.values)


def by_name(mnemonic: str) -> Instruction:
    """The instruction of that name; raises :class:`ParameterError` if there is none."""
    if mnemonic not in _BY_NAME:
        raise ParameterError("mnemonic", mnemonic, "must be an instruction",
                             closest(mnemonic, _BY_NAME))
    return _BY_NAME[mnemonic]


def decode(word: int) -> Decoded:
    """Read one word; raises :class:`IllegalWord` as the hardware does."""
    instruction = _BY_OPCODE.get(word & 0xFF)
    if instruction is None:
        raise IllegalWord(word, ErrorCode.OPCODE, f"opcode {word & 0xFF:#04x} is undefined")
    if word >> instruction.width:
        raise IllegalWord(word, ErrorCode.RESERVED, f"bits above {instruction.width} of "
                          f"{instruction.mnemonic} are set")
    values = instruction.fields_of(word)
    for field in instruction.fields:
        if not field.low <= values[field.name] <= field.top:
            raise IllegalWord(word, ErrorCode.FIELD,
                              f"{instruction.mnemonic}.{field.name}={values[field.name]} "
                              f"is not {field.low} to {field.top}")
    return Decoded(instruction, values)


def disassemble(word: int) -> str:
    """One line: the mnemonic and every field that differs from its default."""
    decoded = decode(word)
    parts = [decoded.instruction.mnemonic]
    parts += [
        f"{field.name}={decoded[field.name]}"
        for field in decoded.instruction.all_fields
        if field.name != "opcode" and decoded[field.name] != field.default
    ]
    return " ".join(parts)


def assemble(line: str) -> int:
    """The word of one line as :func:`disassemble` writes it; numbers may be hexadecimal.

    Raises :class:`ParameterError` for an unknown mnemonic or field, or a value outside its rule.
    """
    mnemonic, *parts = line.split() or [""]
    values = {}
    for part in parts:
        name, _, text = part.partition("=")
        try:
            values[name] = int(text, 0)
        except ValueError:
            raise ParameterError(f"{mnemonic}.{name}", text or part,
                                 "must be NAME=NUMBER") from None
    return by_name(mnemonic).encode(**values)


if len(_BY_OPCODE) < len(INSTRUCTIONS) or WORD_BITS % 32:
    raise AssertionError("opcodes must differ")
