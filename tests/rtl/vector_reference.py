"""The vector engine in numpy, one line after another, and random programs for it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rtl.architecture import Architecture
from rtl.chunk import LANES, ChunkFormat
from rtl.error_codes import ErrorCode
from rtl.fp.format import BINARY16, BINARY32
from rtl.isa import CLEAR, LINES, PRUNE, VECTOR, VECTORS, Decoded, Source, VectorOp, decode
from rtl.pattern import HARDWARE_M, NmPattern

__all__ = ["Reference", "clear", "lane", "prune", "random_instruction", "random_lines", "vector"]

Bits = npt.NDArray[np.uint32]
Rng = np.random.Generator


def vector(op: VectorOp, **fields: int) -> Decoded:
    """A VECTOR; 64 lines if not told."""
    return decode(VECTOR.encode(**{"op": op, "lines": LINES, **fields}))


def prune(pattern: NmPattern, **fields: int) -> Decoded:
    """A PRUNE."""
    return decode(PRUNE.encode(n=pattern.n, m_log2=pattern.m.bit_length() - 1, **fields))


def clear() -> Decoded:
    """A CLEAR."""
    return decode(CLEAR.encode())


def lane(op: VectorOp, a_bits: Bits, b_bits: Bits, relu: bool = False) -> Bits:
    """One operation on arrays of FP32 bits, as numpy does it in float32."""
    a, b = a_bits.view(np.float32), b_bits.view(np.float32)
    zero, one = np.float32(0), np.float32(1)
    with np.errstate(all="ignore"):
        unordered = np.isnan(a) | np.isnan(b)
        result = {
            VectorOp.COPY: a,
            VectorOp.ADD: a + b,
            VectorOp.SUB: a - b,
            VectorOp.MUL: a * b,
            VectorOp.DIV: a / b,
            VectorOp.SQRT: np.sqrt(a),
            VectorOp.MAX: np.where(unordered, np.float32(np.nan), np.where(b > a, b, a)),
            VectorOp.MIN: np.where(unordered, np.float32(np.nan), np.where(b < a, b, a)),
            VectorOp.GATE: np.where(b > 0, a, zero),
            VectorOp.GREATER: np.where(a > b, one, zero),
        }[op]
        if relu:
            result = np.where(np.isnan(result) | (result > 0), result, zero)
    bits = np.ascontiguousarray(result, np.float32).view(np.uint32)
    return BINARY32.canonical(bits).astype(np.uint32)


@dataclass
class Reference:
    """Registers, result buffers and pack slots; runs one instruction after the other."""

    architecture: Architecture
    registers: Bits = field(default_factory=lambda: np.zeros((VECTORS, LINES, LANES), np.uint32))
    scalars: Bits = field(default_factory=lambda: np.zeros(16, np.uint32))
    results: Bits = field(default_factory=lambda: np.zeros((1, 0), np.uint32))
    packs: dict[tuple[int, int, int], npt.NDArray[np.uint16]] = field(default_factory=dict)
    nonfinite: bool = False

    def run(self, instruction: Decoded) -> ErrorCode:
        """Carry it out; returns the error."""
        if instruction.instruction is CLEAR:
            self.nonfinite = False
            return ErrorCode.NONE
        if instruction.instruction is PRUNE:
            return self._prune(instruction)
        if instruction["line"] + instruction["lines"] > LINES:
            return ErrorCode.RANGE
        op, period = VectorOp(instruction["op"]), instruction["period"]
        if op in (VectorOp.SUM, VectorOp.PEAK):
            return self._reduce(instruction) if period else ErrorCode.FIELD
        dest, error = self.registers[instruction["dest"]], ErrorCode.NONE
        repeats = instruction["source"] == Source.VECTOR and period > instruction["line"]
        if repeats and instruction["b"] == instruction["dest"]:
            return ErrorCode.FIELD
        for i in range(instruction["lines"]):
            a = self.operand_a(instruction, i)
            if a is None:
                error = ErrorCode.RANGE
                continue
            line = instruction["line"] + i
            dest[line] = lane(op, a, self._operand_b(instruction, i), bool(instruction["relu"]))
            self._watch(instruction, dest[line])
        return error

    def _reduce(self, instruction: Decoded) -> ErrorCode:
        dest, period = self.registers[instruction["dest"]], instruction["period"]
        adds = instruction["op"] == VectorOp.SUM
        start = np.float32(0 if adds else -np.inf)
        error, lines = ErrorCode.NONE, instruction["lines"]
        for i in range(lines):
            a, j = self.operand_a(instruction, i), i % period
            if a is None:
                error = ErrorCode.RANGE
                continue
            fresh = i < period and not instruction["keep"]
            held = np.full(LANES, start).view(np.uint32) if fresh else dest[j].copy()
            dest[j] = lane(VectorOp.ADD if adds else VectorOp.MAX, held, a)
            if i + period >= lines:
                self._watch(instruction, dest[j])
        return error

    def _prune(self, instruction: Decoded) -> ErrorCode:
        pattern = NmPattern(instruction["n"], 1 << instruction["m_log2"])
        if 2 * pattern.n > pattern.m:
            return ErrorCode.FIELD
        if instruction["line"] + LANES * instruction["chunks"] > LINES:
            return ErrorCode.RANGE
        for chunk in range(instruction["chunks"]):
            first = instruction["line"] + LANES * chunk
            weights = self.registers[instruction["a"], first : first + LANES]
            with np.errstate(all="ignore"):
                half = weights.view(np.float32).astype(np.float16)
            half = BINARY16.canonical(half.view(np.uint16)).astype(np.uint16).view(np.float16)
            for axis, operand in enumerate((half, np.ascontiguousarray(half.T))):
                words = ChunkFormat(pattern).pack(operand)[0, 0]
                self.packs[axis, instruction["slot"], chunk] = words
        return ErrorCode.NONE

    def _watch(self, instruction: Decoded, line: Bits) -> None:
        if instruction["watch"] and not np.isfinite(line.view(np.float32)).all():
            self.nonfinite = True

    def operand_a(self, instruction: Decoded, i: int) -> Bits | None:
        """Line ``i`` of operand a; None if some word of it is beyond the end."""
        if not instruction["drain"]:
            line: Bits = self.registers[instruction["a"], instruction["line"] + i]
            return line.copy()
        row, across = divmod(i, instruction["run"])
        q = LANES * across + np.arange(LANES)
        cols = self.architecture.cols
        words = instruction["c_base"] + q // cols * instruction["c_stride"] + row
        if words.max() >= self.architecture.out_words:
            return None
        drained: Bits = self.results[q % cols, words]
        return drained

    def _operand_b(self, instruction: Decoded, i: int) -> Bits:
        source, b = instruction["source"], instruction["b"]
        if source == Source.VECTOR:
            period = instruction["period"]
            line: Bits = self.registers[b, i % period if period else instruction["line"] + i]
            return line.copy()
        value = self.scalars[b] if source == Source.SCALAR else instruction["immediate"]
        return np.full(LANES, value, np.uint32)


SPECIAL = np.array(
    [0x00000000, 0x80000000, 0x00000001, 0x807FFFFF, 0x3F800000, 0xBF800000, 0x7F7FFFFF,
     0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC12345, 0x7F800001, 0x33800000, 0x38800000],
    np.uint32,
)
"""Zeros, subnormals, ones, the largest, infinities, NaNs, the edges of FP16."""


def random_lines(rng: Rng, count: int, special: float = 0.05) -> Bits:
    """Lines of moderate values that all differ, with some special ones."""
    values = rng.standard_normal((count, LANES)) * 2.0 ** rng.integers(-6, 7, (count, LANES))
    bits = values.astype(np.float32).view(np.uint32)
    return np.where(rng.random(bits.shape) < special, rng.choice(SPECIAL, bits.shape), bits)


def random_instruction(
    rng: Rng, registers: list[int], architecture: Architecture, drains: float = 0.2
) -> Decoded:
    """Any instruction, over few registers, so that most depend on the one before."""
    kind = rng.random()
    line = int(rng.choice([0, 0, 0, 8, int(rng.integers(0, 64))]))
    if kind < 0.04:
        return clear()
    if kind < 0.08:
        m = int(rng.choice(HARDWARE_M))
        chunks = int(rng.integers(1, 5))
        return prune(
            NmPattern(int(rng.integers(1, m // 2 + 1)), m), a=int(rng.choice(registers)),
            line=int(rng.integers(0, LINES - LANES * chunks + 1)), chunks=chunks,
            slot=int(rng.integers(0, 2)),
        )
    longest = LINES - line
    lines = min(longest, int(rng.choice([1, 2, 7, 8, 9, 16, 22, int(rng.integers(1, 65))])))
    op = VectorOp(int(rng.choice([*VectorOp, VectorOp.ADD, VectorOp.SUM])))
    reduces = op in (VectorOp.SUM, VectorOp.PEAK)
    source = Source(int(rng.choice([0, 0, 0, 1, 2])))
    period = int(rng.choice([1, 2, 3, 7, 8, 9, int(rng.integers(1, 65))]))
    fields = {
        "dest": int(rng.choice(registers)), "a": int(rng.choice(registers)), "source": source,
        "b": int(rng.choice(registers)), "immediate": int(random_lines(rng, 1)[0, 0]),
        "period": period if reduces or rng.random() < 0.25 else 0,
        "line": line, "lines": lines, "relu": int(rng.random() < 0.2),
        "watch": int(rng.random() < 0.3), "keep": int(rng.integers(0, 2)),
    }
    if rng.random() < drains:
        run = int(rng.choice([1, 2, 3, 4, 8, lines]))
        rows, tiles = -(-lines // run), -(-run * LANES // architecture.cols)
        room = architecture.out_words - rows
        stride = int(rng.integers(0, room // max(1, tiles - 1) + 1))
        base = int(rng.integers(0, room - stride * (tiles - 1) + 1))
        fields |= {"drain": 1, "run": run, "c_base": base, "c_stride": stride}
    return vector(op, **fields)
