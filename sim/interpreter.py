"""The golden interpreter: runs the chip's binary programs on a memory image, bit for bit.

Instructions run one after the other in program order; time does not exist here. What every
instruction does is stated in :mod:`rtl.isa`, the arithmetic in :mod:`sim.golden` and
:mod:`sim.vector_math`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rtl.architecture import Architecture
from rtl.chunk import LANES, WORD_BYTES, ChunkFormat
from rtl.fp.convert import Narrow, Widen
from rtl.isa import (
    BASES,
    LINES,
    SCALARS,
    VECTORS,
    Decoded,
    IllegalWord,
    Source,
    StoreSource,
    VectorOp,
    decode,
)
from rtl.pattern import DENSE, NmPattern, Packed
from rtl.registers import ErrorCode
from sim import golden, vector_math

__all__ = ["Interpreter", "ProgramError"]

Words = npt.NDArray[np.uint16]
_MOST_CHUNK_WORDS = 10


class ProgramError(Exception):
    """A program stopped: ``code`` is what the chip would report, ``at`` the instruction."""

    def __init__(self, code: ErrorCode, at: int, detail: str) -> None:
        self.code, self.at = code, at
        super().__init__(f"instruction {at}: {code.name}: {detail}")


class _Fault(Exception):
    def __init__(self, code: ErrorCode, detail: str) -> None:
        self.code, self.detail = code, detail


@dataclass
class Traffic:
    """What a program did, for reports: words moved, MACs, instructions by mnemonic."""

    read_words: int = 0
    written_words: int = 0
    macs: int = 0
    macs_skipped: int = 0
    stores_skipped: int = 0
    instructions: Counter[str] = field(default_factory=Counter)


class Interpreter:
    """A chip with its memory.

    Parameters
    ----------
    memory: uint8, shape (bytes,), the device memory from address 0; changed in place.
    bases: byte addresses of the base registers, multiples of 32.
    scalars: float32 values of the scalar registers.
    """

    def __init__(
        self, architecture: Architecture, memory: npt.NDArray[np.uint8],
        bases: Sequence[int] = (), scalars: Sequence[float] = (),
    ) -> None:
        self.architecture = architecture
        self._words: Words = memory.view(np.uint16).reshape(-1, LANES)
        self.bases = [*bases, *[0] * (BASES - len(bases))]
        self.scalars = np.zeros(SCALARS, np.float32)
        self.scalars[: len(scalars)] = scalars
        rows, cols = architecture.rows, architecture.cols
        self.w2e = np.zeros((rows, architecture.w2e_words, LANES), np.uint16)
        self.n2s_values = np.zeros((architecture.n2s_words, cols), np.uint16)
        self.n2s_indices = np.zeros((architecture.n2s_words, cols), np.uint8)
        self.out = np.zeros((architecture.out_words, cols), np.float32)
        self.vectors = np.zeros((VECTORS, LINES, LANES), np.float32)
        self.pack = np.zeros((2, 2, 4, _MOST_CHUNK_WORDS, LANES), np.uint16)
        self.nonfinite = False
        self.traffic = Traffic()
        self._sums: npt.NDArray[np.float32] | None = None
        self._shape: Decoded | None = None
        self._program: Sequence[int] = ()
        self._at = 0

    def start(self, program: Sequence[int]) -> int | None:
        """Run from the first instruction; returns the host point it stopped at, or None at the end.

        Raises :class:`ProgramError` for what the chip reports as an error.
        """
        self._program, self._at = program, 0
        self.nonfinite = False
        return self.resume()

    def resume(self) -> int | None:
        """Go on after a host point; as :meth:`start`."""
        while True:
            at = self._at
            self._at += 1
            try:
                decoded = decode(self._program[at])
                self.traffic.instructions[decoded.instruction.mnemonic] += 1
                if decoded.instruction.mnemonic == "end":
                    return None
                if decoded.instruction.mnemonic == "host":
                    return decoded["point"]
                _ACTIONS[decoded.instruction.mnemonic](self, decoded)
            except IllegalWord as illegal:
                raise ProgramError(illegal.code, at, illegal.reason) from None
            except _Fault as fault:
                raise ProgramError(fault.code, at, fault.detail) from None
            except IndexError:
                raise ProgramError(ErrorCode.OPCODE, at, "ran past the program") from None

    # Memory.

    def _address(self, decoded: Decoded) -> int:
        return self.bases[decoded["base"]] // WORD_BYTES + decoded["offset"]

    def _read(self, addresses: npt.NDArray[np.int64]) -> Words:
        """Words at word addresses; -1 reads as zero without an access."""
        if addresses.max(initial=0) >= len(self._words) or addresses.min(initial=0) < -1:
            raise _Fault(ErrorCode.READ_DECODE, "no memory there")
        self.traffic.read_words += int((addresses >= 0).sum())
        return np.where((addresses >= 0)[..., None], self._words[addresses], np.uint16(0))

    def _write(self, addresses: npt.NDArray[np.int64], words: Words) -> None:
        if addresses.max(initial=0) >= len(self._words) or addresses.min(initial=0) < 0:
            raise _Fault(ErrorCode.WRITE_DECODE, "no memory there")
        self.traffic.written_words += addresses.size
        self._words[addresses] = words

    @staticmethod
    def _fits(last: int, depth: int, what: str) -> None:
        if last > depth:
            raise _Fault(ErrorCode.RANGE, f"{what} {last - 1} is beyond {depth - 1}")

    # LOAD.

    def _set_shape(self, decoded: Decoded) -> None:
        self._shape = decoded

    def _walk(self, decoded: Decoded, shape: Decoded) -> npt.NDArray[np.int64]:
        """Word addresses (taps, walk, channel words) of a load_a; -1 outside the image."""
        if decoded["y"] >= shape["out_height"] or decoded["x"] >= shape["out_width"]:
            raise _Fault(ErrorCode.FIELD, "the walk starts outside the output grid")
        height, width = shape["out_height"], shape["out_width"]
        first = (decoded["image"] * height + decoded["y"]) * width + decoded["x"]
        walk = first + np.arange(decoded["count"], dtype=np.int64)
        out_x, out_y, image = walk % width, walk // width % height, walk // (width * height)
        taps = np.arange(shape["taps_y"] * shape["taps_x"], dtype=np.int64)[:, None]
        tap_y, tap_x = taps // shape["taps_x"], taps % shape["taps_x"]
        y = out_y * shape["stride_y"] + tap_y * shape["step_y"] + shape["first_y"]
        x = out_x * shape["stride_x"] + tap_x * shape["step_x"] + shape["first_x"]
        inside = (y >= 0) & (y < shape["height"]) & (x >= 0) & (x < shape["width"])
        pixel = (self._address(decoded) + image * shape["image"] + y * shape["row"]
                 + x * shape["pixel"])
        words = pixel[..., None] + np.arange(shape["words"])
        return np.where(inside[..., None], words, -1)

    def _load_a(self, decoded: Decoded) -> None:
        if self._shape is None:
            raise _Fault(ErrorCode.FIELD, "no shape yet")
        words = self._read(self._walk(decoded, self._shape))  # (taps, walk, words, 16)
        taps, count, channel_words, _ = words.shape
        if decoded["turn"]:
            blocks = -(-count // LANES)
            padded = np.zeros((taps, blocks * LANES, channel_words, LANES), np.uint16)
            padded[:, :count] = words
            turned = padded.reshape(taps, blocks, LANES, channel_words, LANES)
            lines = turned.transpose(0, 3, 4, 1, 2).reshape(-1, blocks, LANES)
        else:
            lines = words.transpose(1, 0, 2, 3).reshape(count, -1, LANES)
        row = decoded["first"] + np.arange(len(lines))
        start = decoded["dest"] + row // self.architecture.rows * decoded["stride"]
        self._fits(int(start.max()) + lines.shape[1], self.architecture.w2e_words,
                   "row buffer word")
        place = start[:, None] + np.arange(lines.shape[1])
        self.w2e[(row % self.architecture.rows)[:, None], place] = lines

    def _load_b(self, decoded: Decoded) -> None:
        pattern = _pattern(decoded)
        form = ChunkFormat(pattern)
        turn = bool(decoded["turn"])
        rows_first = bool(decoded["rows_first"])
        if (pattern != DENSE and (turn or rows_first)) or (turn and rows_first):
            raise _Fault(ErrorCode.FIELD, "only plain dense rows may be read panels innermost")
        panel, tap, item = (
            np.arange(decoded[name], dtype=np.int64) for name in ("panels", "taps", "items")
        )
        start = (self._address(decoded) + panel[:, None, None] * decoded["panel_pitch"]
                 + tap[:, None] * decoded["tap_pitch"] + item * decoded["pitch"])
        each = np.arange(LANES) * decoded["turn_pitch"] if turn else np.arange(
            1 if pattern == DENSE else form.words)
        words = self._read(start[..., None] + each)  # (panels, taps, items, words, 16)
        words = words.reshape(len(panel), len(tap) * len(item), len(each), LANES)
        indices: npt.NDArray[np.uint8] | None = None
        if turn:
            values = words.swapaxes(2, 3).reshape(len(panel), -1, LANES)
        elif pattern == DENSE:
            values = words.reshape(len(panel), -1, LANES)
        else:
            packed = form.unpack(words)
            values = packed.values.view(np.uint16)[:, 0].reshape(-1, len(panel), LANES)
            values = values.swapaxes(0, 1)
            indices = packed.indices[:, 0].reshape(-1, len(panel), LANES).swapaxes(0, 1)
        rows, cols = values.shape[1], self.architecture.cols
        column = np.arange(len(panel) * LANES)
        place = decoded["dest"] + column // cols * decoded["stride"]
        self._fits(int(place.max()) + rows, self.architecture.n2s_words, "column buffer word")
        where = place + np.arange(rows)[:, None], column % cols
        self.n2s_values[where] = values.swapaxes(0, 1).reshape(rows, -1)
        self.n2s_indices[where] = (
            0 if indices is None else indices.swapaxes(0, 1).reshape(rows, -1)
        )

    def _lines(self, decoded: Decoded, words_a_line: int) -> npt.NDArray[np.int64]:
        """Word addresses (lines, words of a line)."""
        line = np.arange(decoded["lines"], dtype=np.int64)
        self._fits(decoded["line"] + len(line), LINES, "line")
        run = decoded["run"]
        start = line // run * decoded["pitch"] + line % run * words_a_line
        return self._address(decoded) + start[:, None] + np.arange(words_a_line)

    def _load_v(self, decoded: Decoded) -> None:
        words = self._read(self._lines(decoded, 1 if decoded["half"] else 2))
        flat = np.ascontiguousarray(words).reshape(len(words), -1)
        bits = Widen().compute(flat) if decoded["half"] else flat.view(np.uint32)
        here = slice(decoded["line"], decoded["line"] + decoded["lines"])
        self.vectors[decoded["dest"], here] = bits.view(np.float32)

    # COMPUTE.

    def _compute(self, decoded: Decoded) -> None:
        pattern, groups = _pattern(decoded), decoded["groups"]
        rows, cols = self.architecture.rows, self.architecture.cols
        if self.architecture.interleave % decoded["interleave_rows"]:
            raise _Fault(ErrorCode.FIELD, "interleave_rows must divide the interleave factor")
        p, q = np.arange(decoded["p_count"]), np.arange(decoded["q_count"])
        a_words = -(-groups * pattern.m // LANES)
        height = rows * decoded["interleave_rows"]
        width = cols * (self.architecture.interleave // decoded["interleave_rows"])
        one_tile = len(p) <= height and len(q) <= width
        if not (decoded["last"] and decoded["first"]) and not one_tile:
            raise _Fault(ErrorCode.FIELD, "sums stay in the array for one tile only")
        a_start = decoded["a_base"] + p // rows * decoded["a_stride"]
        b_start = decoded["b_base"] + q // cols * decoded["b_stride"]
        c_start = decoded["c_base"] + q // cols * decoded["c_stride"]
        self._fits(int(a_start.max()) + a_words, self.architecture.w2e_words, "row buffer word")
        self._fits(int(b_start.max()) + groups * pattern.n, self.architecture.n2s_words,
                   "column buffer word")
        if decoded["last"]:
            self._fits(int(c_start.max()) + len(p), self.architecture.out_words, "result word")
        a = self.w2e[(p % rows)[:, None], a_start[:, None] + np.arange(a_words)]
        a = np.ascontiguousarray(a.reshape(len(p), -1)[:, : groups * pattern.m])
        place = b_start + np.arange(groups * pattern.n)[:, None], q % cols
        packed = Packed(
            self.n2s_values[place].reshape(groups, pattern.n, -1).view(np.float16),
            self.n2s_indices[place].reshape(groups, pattern.n, -1),
        )
        start = None if decoded["first"] else self._sums
        self._sums = golden.accumulate(a.view(np.float16), packed, pattern, start)
        if decoded["last"]:
            self.out[c_start + p[:, None], q % cols] = self._sums
        self.traffic.macs += len(p) * len(q) * groups * pattern.n
        self.traffic.macs_skipped += len(p) * len(q) * groups * (pattern.m - pattern.n)

    # VECTOR.

    def _vector(self, decoded: Decoded) -> None:
        op, count = VectorOp(decoded["op"]), decoded["lines"]
        self._fits(decoded["line"] + count, LINES, "line")
        here = slice(decoded["line"], decoded["line"] + count)
        line, period = np.arange(count), decoded["period"]
        if op in vector_math.REDUCTIONS and not period:
            raise _Fault(ErrorCode.FIELD, "a reduction needs a period")
        again = decoded["source"] == Source.VECTOR and decoded["b"] == decoded["dest"]
        if op not in vector_math.REDUCTIONS and again and decoded["line"] < period:
            raise _Fault(ErrorCode.FIELD, "b repeats lines that this instruction has written")
        if decoded["drain"]:
            column = line % decoded["run"]
            q = column[:, None] * LANES + np.arange(LANES)
            place = (decoded["c_base"] + q // self.architecture.cols * decoded["c_stride"]
                     + (line // decoded["run"])[:, None])
            self._fits(int(place.max()) + 1, self.architecture.out_words, "result word")
            a = self.out[place, q % self.architecture.cols]
        else:
            a = self.vectors[decoded["a"], here]
        target = self.vectors[decoded["dest"]]
        if op in vector_math.REDUCTIONS:
            result = vector_math.reduce(op, a, target[:period] if decoded["keep"] else None, period)
            target[: len(result)] = result
        else:
            b = self._operand_b(decoded, here, line % period if period else None)
            result = vector_math.apply(op, a, b)
            if decoded["relu"]:
                result = vector_math.relu(result)
            target[here] = result
        if decoded["watch"] and not np.isfinite(result).all():
            self.nonfinite = True

    def _operand_b(
        self, decoded: Decoded, here: slice, repeated: npt.NDArray[np.intp] | None
    ) -> npt.NDArray[np.float32]:
        source = Source(decoded["source"])
        if source is Source.VECTOR:
            lines: npt.NDArray[np.float32] = self.vectors[decoded["b"]]
            return lines[here] if repeated is None else lines[repeated]
        if source is Source.SCALAR:
            return self.scalars[[decoded["b"]]]
        immediate = np.array([decoded["immediate"]], np.uint32)
        return immediate.view(np.float32)

    def _prune(self, decoded: Decoded) -> None:
        form = ChunkFormat(_pattern(decoded))
        lines = decoded["chunks"] * LANES
        self._fits(decoded["line"] + lines, LINES, "line")
        block = self.vectors[decoded["a"], decoded["line"] : decoded["line"] + lines]
        half = Narrow().compute(block.view(np.uint32)).astype(np.uint16).view(np.float16)
        for number, chunk in enumerate(half.reshape(-1, LANES, LANES)):
            for axis, matrix in enumerate((chunk, np.ascontiguousarray(chunk.T))):
                self.pack[decoded["slot"], axis, number, : form.words] = form.pack(matrix)[0, 0]

    def _clear(self, decoded: Decoded) -> None:
        self.nonfinite = False

    # STORE.

    def _store(self, decoded: Decoded) -> None:
        source = StoreSource(decoded["source"])
        if decoded["guard"] and self.nonfinite:
            self.traffic.stores_skipped += 1
            return
        if source in (StoreSource.SINGLE, StoreSource.HALF):
            addresses = self._lines(decoded, 1 if source is StoreSource.HALF else 2)
            here = slice(decoded["line"], decoded["line"] + decoded["lines"])
            bits = np.ascontiguousarray(self.vectors[decoded["a"], here]).view(np.uint32)
            if source is StoreSource.HALF:
                bits = Narrow().compute(bits).astype(np.uint16)
            self._write(addresses, bits.view(np.uint16).reshape(*addresses.shape, LANES))
            return
        axis = int(source is StoreSource.PACKED_BP)
        count, size = decoded["chunks"], decoded["chunk_words"]
        start = self._address(decoded) + np.arange(count, dtype=np.int64) * decoded["pitch"]
        self._write(start[:, None] + np.arange(size),
                    self.pack[decoded["a"] & 1, axis, :count, :size])

    def _nothing(self, decoded: Decoded) -> None:
        """A fence: here everything is complete anyway."""


_ACTIONS: dict[str, Callable[[Interpreter, Decoded], None]] = {
    "fence": Interpreter._nothing,
    "shape": Interpreter._set_shape,
    "load_a": Interpreter._load_a,
    "load_b": Interpreter._load_b,
    "load_v": Interpreter._load_v,
    "compute": Interpreter._compute,
    "vector": Interpreter._vector,
    "prune": Interpreter._prune,
    "clear": Interpreter._clear,
    "store": Interpreter._store,
}


def _pattern(decoded: Decoded) -> NmPattern:
    pattern = NmPattern(decoded["n"], 1 << decoded["m_log2"]) if (
        decoded["n"] <= 1 << decoded["m_log2"]) else None
    if pattern is None or (pattern != DENSE and 2 * pattern.n > pattern.m):
        raise _Fault(ErrorCode.FIELD, "no pattern of the array")
    return pattern
