"""What the load instructions write, straight from the text of :mod:`rtl.isa`, word by word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from read_model import memory

from rtl.architecture import Architecture
from rtl.chunk import LANES, WORD_BYTES, ChunkFormat
from rtl.isa import LINES, LOAD_A, LOAD_B, LOAD_V, SHAPE, Decoded
from rtl.pattern import NmPattern

__all__ = ["Effect", "execute"]

Words = npt.NDArray[np.uint16]
Write = tuple[str, int, int, bytes]
"""Where (row, column or line), which buffer or register, which word or line, what."""


@dataclass
class Effect:
    """What one instruction does: its writes, and how many accesses lie outside."""

    writes: list[Write] = field(default_factory=list)
    beyond: int = 0
    illegal: bool = False

    def write(self, kind: str, unit: int, address: int, limit: int, content: bytes) -> None:
        """One write, or one access outside."""
        if address < limit:
            self.writes.append((kind, unit, address, content))
        else:
            self.beyond += 1


def execute(
    architecture: Architecture, bases: Sequence[int], program: Sequence[Decoded]
) -> list[Effect]:
    """The effect of every instruction, in order."""
    shape: Decoded | None = None
    effects = []
    for load in program:
        effect = Effect()
        if load.instruction is SHAPE:
            shape = load
        elif load.instruction is LOAD_A:
            if shape is None or load["y"] >= shape["out_height"] or load["x"] >= shape["out_width"]:
                effect.illegal = True
            else:
                _load_a(effect, architecture, _start(bases, load), load, shape)
        elif load.instruction is LOAD_B:
            _load_b(effect, architecture, _start(bases, load), load)
        elif load.instruction is LOAD_V:
            _load_v(effect, _start(bases, load), load)
        effects.append(effect)
    return effects


def _start(bases: Sequence[int], load: Decoded) -> int:
    return bases[load["base"]] // WORD_BYTES + load["offset"]


def _read(address: int) -> Words:
    words: Words = memory([address % (1 << 59)])[0]
    return words


def _pixels(load: Decoded, shape: Decoded, tap_y: int, tap_x: int) -> Iterator[int | None]:
    """First word of the input pixel of each output pixel of the walk; None outside."""
    height, width = shape["out_height"], shape["out_width"]
    first = (load["image"] * height + load["y"]) * width + load["x"]
    for position in range(first, first + load["count"]):
        rest, out_x = divmod(position, width)
        image, out_y = divmod(rest, height)
        y = out_y * shape["stride_y"] + tap_y * shape["step_y"] + shape["first_y"]
        x = out_x * shape["stride_x"] + tap_x * shape["step_x"] + shape["first_x"]
        if 0 <= y < shape["height"] and 0 <= x < shape["width"]:
            yield image * shape["image"] + y * shape["row"] + x * shape["pixel"]
        else:
            yield None


def _load_a(
    effect: Effect, architecture: Architecture, start: int, load: Decoded, shape: Decoded
) -> None:
    zero = np.zeros(LANES, np.uint16)
    rows: list[list[Words]] = []  # im2col: one row a position of the walk
    for tap_y in range(shape["taps_y"]):
        for tap_x in range(shape["taps_x"]):
            for number, pixel in enumerate(_pixels(load, shape, tap_y, tap_x)):
                if len(rows) <= number:
                    rows.append([])
                rows[number] += [
                    zero if pixel is None else _read(start + pixel + word)
                    for word in range(shape["words"])
                ]
    matrix = np.array(rows).reshape(load["count"], -1)
    if load["turn"]:
        padded = np.zeros((-(-load["count"] // LANES) * LANES, matrix.shape[1]), np.uint16)
        padded[: load["count"]] = matrix
        matrix = padded.T
    for number, row in enumerate(matrix):
        tile, buffer = divmod(load["first"] + number, architecture.rows)
        for word in range(len(row) // LANES):
            content = np.ascontiguousarray(row[word * LANES :][:LANES]).tobytes()
            effect.write("row", buffer, load["dest"] + tile * load["stride"] + word,
                         architecture.w2e_words, content)


def _item_rows(load: Decoded, first: int) -> Iterator[tuple[Words, Words]]:
    """Values and indices of the rows of one item."""
    none = np.zeros(LANES, np.uint16)
    if load["turn"]:
        block = np.array([_read(first + n * load["turn_pitch"]) for n in range(LANES)])
        yield from ((row, none) for row in block.T)
    elif load["m_log2"]:
        chunk = ChunkFormat(NmPattern(load["n"], 1 << load["m_log2"]))
        words = np.array([[[_read(first + n) for n in range(chunk.words)]]])
        values, indices = chunk.unpack(words)
        yield from zip(values[:, 0].view(np.uint16), indices[:, 0].astype(np.uint16), strict=True)
    else:
        yield _read(first), none


def _load_b(effect: Effect, architecture: Architecture, start: int, load: Decoded) -> None:
    n, m, packed = load["n"], 1 << load["m_log2"], load["m_log2"] > 0
    if (
        (2 * n > m if packed else n != 1)
        or (packed and load["turn"])
        or (load["rows_first"] and (packed or load["turn"]))
    ):
        effect.illegal = True
        return
    cols = architecture.cols
    for panel in range(load["panels"]):
        k = 0
        for tap in range(load["taps"]):
            for item in range(load["items"]):
                first = (start + panel * load["panel_pitch"] + tap * load["tap_pitch"]
                         + item * load["pitch"])
                for values, indices in _item_rows(load, first):
                    entries = values.astype(np.uint32) | indices.astype(np.uint32) << 16
                    for lane, entry in enumerate(entries):
                        tile, column = divmod(panel * LANES + lane, cols)
                        effect.write("column", column, load["dest"] + tile * load["stride"] + k,
                                     architecture.n2s_words, int(entry).to_bytes(3, "little"))
                    k += 1
    # The columns of a tile that lie in one word are one access.
    effect.beyond //= min(cols, LANES)


def _load_v(effect: Effect, start: int, load: Decoded) -> None:
    words = 1 if load["half"] else 2
    for number in range(load["lines"]):
        row, place = divmod(number, load["run"])
        first = start + row * load["pitch"] + place * words
        raw = b"".join(_read(first + n).tobytes() for n in range(words))
        if load["half"]:
            wide = np.frombuffer(raw, np.float16).astype(np.float32)
            bits = np.where(np.isnan(wide), np.uint32(0x7FC00000), wide.view(np.uint32))
            raw = bits.astype(np.uint32).tobytes()
        effect.write("line", load["dest"], load["line"] + number, LINES, raw)
