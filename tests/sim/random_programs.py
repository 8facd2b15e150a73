"""Random legal programs: every kind of instruction, no data races, the waits chosen three ways.

An instruction is drawn with wide parameters and tried on the golden interpreter; what that refuses
is drawn again. What the chosen ones touch gives the waits.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rtl import isa
from rtl.architecture import Architecture
from rtl.chunk import LANES, WORD_BYTES, ChunkFormat
from rtl.instruction import Unit
from rtl.isa import LINES, SCALARS, VECTORS, Source, StoreSource, VectorOp
from rtl.pattern import DENSE, HARDWARE_M, NmPattern
from sim.interpreter import Interpreter, ProgramError

__all__ = ["CHUNKS", "MEMORY_BYTES", "PROGRAM", "Program", "Waits", "generate"]

Words = npt.NDArray[np.uint16]

PROGRAM = 0x80
"""Byte address of the program, a multiple of any beat."""
_PACKED, _DATA, _RESULT, _CHUNKS, _DUMP = 0x0400, 0x0800, 0x1800, 0x2800, 0x3000
"""First words of the regions: program; packed weights; data; results of stores, which loads read
again; packed chunks that the program makes; all vector registers at its end."""
_REGISTER = 2 * LINES
CHUNKS = slice(_CHUNKS, _DUMP)
"""Words of the packed chunks that the program makes."""
MEMORY_BYTES = WORD_BYTES * (_DUMP + VECTORS * _REGISTER)
_REFUSALS = 200


class Waits(enum.Enum):
    """How a program keeps its instructions apart."""

    FENCES = "a fence behind every instruction"
    ALL = "every instruction waits for all of the other units"
    EXACT = "every instruction waits for just those that it conflicts with"


class Access(NamedTuple):
    """A range of what an instruction reads or writes; ``kind`` tells the address spaces apart."""

    kind: str
    first: int
    end: int
    write: bool

    def conflicts(self, other: Access) -> bool:
        """Whether their order matters."""
        return (self.kind == other.kind and (self.write or other.write)
                and self.first < other.end and other.first < self.end)


@dataclass(frozen=True)
class Program:
    """Words with everything that they need: the memory as it is before, bases, scalars."""

    words: list[int]
    memory: npt.NDArray[np.uint8]
    bases: list[int]
    scalars: list[float]


class _Recorder(Interpreter):
    """The interpreter, one instruction at a time, telling what it did to memory."""

    accesses: list[Access]

    def execute(self, word: int) -> list[Access]:
        self.accesses = []
        self._program, self._at = [word, isa.END.encode()], 0
        self.resume()
        return self.accesses

    def _read(self, addresses: npt.NDArray[np.int64]) -> Words:
        words = super()._read(addresses)
        inside = addresses[addresses >= 0]
        if inside.size:
            self._note(inside, write=False)
        return words

    def _write(self, addresses: npt.NDArray[np.int64], words: Words) -> None:
        super()._write(addresses, words)
        self._note(addresses, write=True)

    def _note(self, addresses: npt.NDArray[np.int64], write: bool) -> None:
        first, end = int(addresses.min()), int(addresses.max()) + 1
        self.accesses.append(Access("memory", first, end, write))


@dataclass
class _Operand:
    """What a load left in the row or column buffers."""

    base: int
    stride: int
    count: int  # rows or columns
    words: int  # of K
    pattern: NmPattern = DENSE

    def end(self, side: int) -> int:
        """The word after the last, with ``side`` rows or columns a tile."""
        return self.base + (self.count - 1) // side * self.stride + self.words


@dataclass
class _Chunks:
    """Packed chunks in memory, or in a slot."""

    pattern: NmPattern
    chunks: int
    base: int = 0
    panels: int = 1


@dataclass
class _Draw:
    """The state that makes random instructions sensible."""

    architecture: Architecture
    rng: random.Random
    patterns: list[NmPattern]
    recorder: _Recorder
    bases: list[int]
    packed: tuple[_Chunks, ...]
    rows: tuple[_Operand, ...] = ()
    columns: tuple[_Operand, ...] = ()
    results: tuple[tuple[int, int, int, int], ...] = ()
    slots: dict[int, _Chunks] = field(default_factory=dict)
    shape: dict[str, int] = field(default_factory=dict)
    next_chunk: int = _CHUNKS

    def at(self, word: int) -> dict[str, int]:
        """A base register and the offset that together give a word address."""
        choices = [n for n, base in enumerate(self.bases) if base <= word]
        base = self.rng.choice(choices)
        return {"base": base, "offset": word - self.bases[base]}

    def readable(self) -> int:
        """Somewhere in the data or in what was stored."""
        return self.rng.randrange(_DATA, _CHUNKS - 1)

    def lines(self, most: int = LINES) -> dict[str, int]:
        """Lines of a register."""
        count = min(self.rng.choice((1, 2, 5, 16, 33, LINES)), most)
        return {"line": self.rng.randint(0, LINES - count), "lines": count}

    def rows_of_lines(self, words: int, lines: int) -> dict[str, int]:
        """Run and pitch in memory, rows not overlapping."""
        run = self.rng.choice((1, 3, lines, LINES))
        return {"run": run, "pitch": words * run + self.rng.choice((0, 0, 1, 7))}

    # What may come next: one instruction, or some that belong together, or none as things are.

    def load_v(self) -> list[int]:
        lines, half = self.lines(), self.rng.randint(0, 1)
        return [isa.LOAD_V.encode(
            dest=self.register(), half=half, **lines, **self.at(self.readable()),
            **self.rows_of_lines(2 - half, lines["lines"]))]

    def set_shape(self) -> list[int]:
        rng = self.rng
        words, height, width = rng.randint(1, 3), rng.randint(1, 6), rng.randint(1, 6)
        pixel = words + rng.choice((0, 0, 1))
        row = pixel * width + rng.choice((0, 0, 3))
        self.shape = {
            "words": words, "pixel": pixel, "row": row, "height": height, "width": width,
            "image": row * height + rng.choice((0, 5)), "stride_y": rng.randint(0, 2),
            "stride_x": rng.randint(1, 2), "out_height": rng.randint(1, 6),
            "out_width": rng.randint(1, 6), "taps_y": rng.randint(1, 3),
            "taps_x": rng.randint(1, 3), "step_y": rng.randint(-2, 2),
            "step_x": rng.randint(-2, 2), "first_y": rng.randint(-3, 3),
            "first_x": rng.randint(-3, 3),
        }
        return [isa.SHAPE.encode(**self.shape)]

    def load_a(self) -> list[int]:
        if not self.shape:
            return []
        rng, rows = self.rng, self.architecture.rows
        count = rng.choice((1, 3, rows, 2 * rows + 1, 20, 40))
        turn, first = rng.randint(0, 1), rng.choice((0, 0, rows, rng.randrange(2 * rows)))
        taps = self.shape["taps_y"] * self.shape["taps_x"]
        length, height = self.shape["words"] * taps, count
        if turn:
            length, height = -(-count // LANES), LANES * length
        stride = length + rng.choice((0, 0, 2))
        tiles = -(-(first + height) // rows)
        if tiles * stride > self.architecture.w2e_words:
            return []
        dest = rng.randint(0, self.architecture.w2e_words - tiles * stride)
        self.rows += (_Operand(dest, stride, first + height, length),)
        return [isa.LOAD_A.encode(
            **self.at(self.readable()), image=rng.choice((0, 0, 1)), count=count, dest=dest,
            y=rng.randrange(self.shape["out_height"]), x=rng.randrange(self.shape["out_width"]),
            stride=stride, first=first, turn=turn)]

    def load_b(self) -> list[int]:
        rng = self.rng
        if rng.random() < 0.5 and self.packed:
            chunks = rng.choice(self.packed)
            form = ChunkFormat(chunks.pattern)
            items, panels = chunks.chunks, rng.randint(1, chunks.panels)
            where, pitch, panel_pitch = chunks.base, form.words, form.words * items
            pattern, k, turn, taps = chunks.pattern, items * form.rows, 0, 1
            first = rng.randint(0, 1) * (items > 1)
            where, items, k = where + first * pitch, items - first, k - first * form.rows
        else:
            pattern, turn, taps = DENSE, rng.randint(0, 1), rng.randint(1, 3)
            items, panels = rng.randint(1, 3 if turn else 24), rng.randint(1, 3)
            where, pitch = self.readable(), rng.choice((1, 2, 17))
            panel_pitch, k = rng.choice((16, 40, 100)), taps * items * (LANES if turn else 1)
        stride = k + rng.choice((0, 0, 3))
        tiles = -(-panels * LANES // self.architecture.cols)
        if tiles * stride > self.architecture.n2s_words:
            return []
        dest = rng.randint(0, self.architecture.n2s_words - tiles * stride)
        loaded = _Operand(dest, stride, panels * LANES, k, pattern)
        cols = self.architecture.cols
        # Indices fit the pattern that they were loaded with, and no other.
        self.columns = (*(old for old in self.columns if old.end(cols) <= dest
                          or loaded.end(cols) <= old.base), loaded)
        return [isa.LOAD_B.encode(
            **self.at(where), dest=dest, stride=stride, n=pattern.n,
            m_log2=pattern.m.bit_length() - 1, turn=turn, panels=panels, panel_pitch=panel_pitch,
            rows_first=int(pattern == DENSE and not turn and rng.random() < 0.5), taps=taps,
            tap_pitch=rng.choice((-20, 0, 33)), items=items, pitch=pitch,
            turn_pitch=rng.choice((1, 2, 9)))]

    def compute(self) -> list[int]:
        """One, or some that add to each other's sums."""
        if not (self.rows and self.columns):
            return []
        rng, architecture = self.rng, self.architecture
        a, b = rng.choice(self.rows[-3:]), rng.choice(self.columns[-3:])
        most = min(a.words * LANES // b.pattern.m, b.words // b.pattern.n)
        if not most:
            return []
        interleave = rng.choice([n for n in range(1, architecture.interleave + 1)
                                 if architecture.interleave % n == 0])
        p_count, q_count = rng.randint(1, min(a.count, 40)), rng.randint(1, b.count)
        parts = rng.choice((1, 1, 1, 2, 3))
        if parts > 1:  # one tile
            p_count = min(p_count, architecture.rows * interleave)
            q_count = min(q_count, architecture.cols * (architecture.interleave // interleave))
        c_stride = p_count + rng.choice((0, 0, 5))
        spare = architecture.out_words - -(-q_count // architecture.cols) * c_stride
        if spare < 0:
            return []
        c_base = rng.randint(0, spare)
        self.results += ((c_base, c_stride, p_count, q_count),)
        return [
            isa.COMPUTE.encode(
                a_base=a.base, a_stride=a.stride, b_base=b.base, b_stride=b.stride,
                c_base=c_base, c_stride=c_stride, groups=rng.randint(1, most), p_count=p_count,
                q_count=q_count, n=b.pattern.n, m_log2=b.pattern.m.bit_length() - 1,
                interleave_rows=interleave, first=int(part == 0), last=int(part == parts - 1))
            for part in range(parts)
        ]

    def vector(self) -> list[int]:
        rng = self.rng
        op, lines = rng.choice(list(VectorOp)), self.lines()
        source = rng.choice(list(Source))
        dest, a, b = self.register(), self.register(), self.register()
        period = rng.choice((0, 1, 3, 16, LINES))
        if op in (VectorOp.SUM, VectorOp.PEAK):
            period = period or 5
            a = a if a != dest else (a + 1) % VECTORS
        if source is Source.VECTOR and period and b == dest:
            b = (b + 1) % VECTORS  # which line of b has been overwritten is nobody's business
        return [isa.VECTOR.encode(
            op=op, dest=dest, a=a, source=source, b=b, immediate=self.number(), period=period,
            relu=rng.randint(0, 1), watch=int(rng.random() < 0.3), keep=rng.randint(0, 1),
            **lines)]

    def drain(self) -> list[int]:
        """The same on results of the array."""
        if not self.results:
            return []
        rng = self.rng
        c_base, c_stride, p_count, q_count = rng.choice(self.results[-3:])
        run = rng.randint(1, -(-q_count // LANES))
        count = min(p_count * run, LINES)
        (word,) = self.vector()
        values = isa.decode(word).values
        values |= {"drain": 1, "c_base": c_base, "c_stride": c_stride, "run": run,
                   "lines": count, "line": rng.randint(0, LINES - count)}
        return [isa.VECTOR.encode(**values)]

    def prune(self) -> list[int]:
        pattern, chunks, slot = self.rng.choice(self.patterns), self.rng.randint(1, 4), (
            self.rng.randint(0, 1))
        self.slots = {**self.slots, slot: _Chunks(pattern, chunks)}
        return [isa.PRUNE.encode(
            a=self.register(), line=self.rng.randint(0, LINES - LANES * chunks), chunks=chunks,
            slot=slot, n=pattern.n, m_log2=pattern.m.bit_length() - 1)]

    def clear(self) -> list[int]:
        return [isa.CLEAR.encode()]

    def store(self) -> list[int]:
        source = self.rng.choice((StoreSource.SINGLE, StoreSource.HALF))
        lines, words = self.lines(), 2 if source is StoreSource.SINGLE else 1
        where = self.rng.randrange(_RESULT, _CHUNKS - 1)
        rows = self.rows_of_lines(words, lines["lines"])
        before, last = divmod(lines["lines"] - 1, rows["run"])
        if where + before * rows["pitch"] + (last + 1) * words > _CHUNKS:
            return []  # packed chunks follow: numbers are no indices
        return [isa.STORE.encode(
            **self.at(where), **lines, source=source, a=self.register(), guard=self.guard(),
            **rows)]

    def store_packed(self) -> list[int]:
        if not self.slots:
            return []
        slot = self.rng.choice(list(self.slots))
        pattern, chunks = self.slots[slot].pattern, self.slots[slot].chunks
        words = ChunkFormat(pattern).words
        if self.next_chunk + words * chunks > _DUMP:
            return []
        where, self.next_chunk = self.next_chunk, self.next_chunk + words * chunks
        guard = self.guard()
        if not guard:
            self.packed += (_Chunks(pattern, chunks, where),)
        return [isa.STORE.encode(
            **self.at(where), a=slot, chunks=chunks, chunk_words=words, pitch=words, guard=guard,
            source=self.rng.choice((StoreSource.PACKED_FF, StoreSource.PACKED_BP)))]

    def register(self) -> int:
        return self.rng.choice((0, 1, 2, 3, self.rng.randrange(VECTORS)))

    def guard(self) -> int:
        return int(self.rng.random() < 0.3)

    def number(self) -> int:
        """FP32 bits: a plain number, or any."""
        plain = np.float32(self.rng.choice((0.0, 1.0, -0.5, 3.25, 1e-3))).view(np.uint32)
        return self.rng.choice((int(plain), self.rng.getrandbits(32)))

    KINDS = (load_v, load_v, set_shape, load_a, load_a, load_b, load_b, compute, compute, vector,
             vector, vector, drain, drain, prune, clear, store, store, store_packed)


def _memory(draw: random.Random, patterns: list[NmPattern]) -> tuple[
    npt.NDArray[np.uint8], list[_Chunks]
]:
    """Plain numbers in both precisions, any bits here and there, and packed weights."""
    rng = np.random.default_rng(draw.getrandbits(32))
    size = (_DUMP - _DATA) * LANES
    half = rng.standard_normal(size).astype(np.float16).view(np.uint16)
    single = rng.standard_normal(size // 2).astype(np.float32).view(np.uint16)
    chunk = np.repeat(rng.random(size // 256) < 0.5, 256)
    words = np.where(chunk, half, single)
    words = np.where(rng.random(size) < 0.002, rng.integers(0, 1 << 16, size), words)
    memory = np.zeros(MEMORY_BYTES, np.uint8)
    memory[WORD_BYTES * _DATA : WORD_BYTES * _DUMP] = words.astype(np.uint16).view(np.uint8)
    packed, at = [], _PACKED
    for pattern in patterns:
        chunks, panels = draw.randint(1, 3), draw.randint(1, 3)
        raw = ChunkFormat(pattern).pack(
            rng.standard_normal((LANES * chunks, LANES * panels)).astype(np.float16))
        memory[WORD_BYTES * at :][: raw.nbytes] = np.ascontiguousarray(raw).view(np.uint8).ravel()
        packed.append(_Chunks(pattern, chunks, at, panels))
        at += raw.nbytes // WORD_BYTES
    return memory, packed


def generate(architecture: Architecture, seed: int, length: int, waits: Waits) -> Program:
    """A random legal program of about ``length`` instructions; the seed gives the same again."""
    rng = random.Random(seed)
    patterns = [NmPattern(rng.randint(1, m // 2), m) for m in rng.sample(HARDWARE_M, 3)]
    memory, packed = _memory(rng, patterns)
    bases = [0, *(rng.randrange(_PACKED, _RESULT) for _ in range(isa.BASES - 1))]
    scalars = [float(np.float32(rng.gauss(0, 1))) for _ in range(SCALARS)]
    addresses = [WORD_BYTES * base for base in bases]
    recorder = _Recorder(architecture, memory.copy(), addresses, scalars)
    draw = _Draw(architecture, rng, patterns, recorder, bases, tuple(packed))
    words = _assemble(list(_legal(draw, length)), waits, rng)
    image = np.frombuffer(b"".join(word.to_bytes(WORD_BYTES, "little") for word in words), np.uint8)
    if PROGRAM + image.size > WORD_BYTES * _PACKED:
        raise ValueError(f"a program of {len(words)} words is too long")
    memory[PROGRAM : PROGRAM + image.size] = image
    return Program(words, memory, addresses, scalars)


def _legal(draw: _Draw, length: int) -> Iterator[tuple[int, list[Access]]]:
    """Instructions that the interpreter takes, and what they touch."""
    for _ in range(length):
        for _ in range(_REFUSALS):
            before = replace(draw)
            drawn = draw.rng.choice(_Draw.KINDS)(draw)
            try:
                chosen = [(word, draw.recorder.execute(word) + _touched(word, draw))
                          for word in drawn]
            except ProgramError:
                draw = before
                continue
            if chosen:
                yield from chosen
                break
        else:
            raise AssertionError("no legal instruction found")


def _touched(word: int, draw: _Draw) -> list[Access]:
    """What an instruction, the newest one drawn, touches inside the chip."""
    decoded = isa.decode(word)
    v, kind = decoded.values, decoded.instruction
    rows, cols = draw.architecture.rows, draw.architecture.cols
    if kind is isa.LOAD_V:
        return [Access(f"v{v['dest']}", v["line"], v["line"] + v["lines"], True)]
    if kind is isa.LOAD_A:
        return [Access("rows", v["dest"], draw.rows[-1].end(rows), True)]
    if kind is isa.LOAD_B:
        return [Access("columns", v["dest"], draw.columns[-1].end(cols), True)]
    if kind is isa.COMPUTE:
        a = _Operand(v["a_base"], v["a_stride"], v["p_count"],
                     -(-(v["groups"] << v["m_log2"]) // LANES))
        b = _Operand(v["b_base"], v["b_stride"], v["q_count"], v["groups"] * v["n"])
        c = _Operand(v["c_base"], v["c_stride"], v["q_count"], v["p_count"])
        results = [Access("results", c.base, c.end(cols), True)] if v["last"] else []
        return [Access("rows", a.base, a.end(rows), False),
                Access("columns", b.base, b.end(cols), False), *results]
    if kind is isa.VECTOR:
        lines = v["line"], v["line"] + v["lines"]
        reduces = v["op"] in (VectorOp.SUM, VectorOp.PEAK)
        accesses = [Access(f"v{v['dest']}", *((0, v["period"]) if reduces else lines), True)]
        if v["drain"]:
            c = _Operand(v["c_base"], v["c_stride"], LANES * v["run"], -(-v["lines"] // v["run"]))
            accesses.append(Access("results", c.base, c.end(cols), False))
        else:
            accesses.append(Access(f"v{v['a']}", *lines, False))
        if v["source"] == Source.VECTOR:
            accesses.append(Access(f"v{v['b']}", 0, LINES, False))
        return [*accesses, *([Access("flag", 0, 1, True)] if v["watch"] else [])]
    if kind is isa.PRUNE:
        return [Access(f"v{v['a']}", v["line"], v["line"] + LANES * v["chunks"], False),
                Access("slots", v["slot"], v["slot"] + 1, True)]
    if kind is isa.CLEAR:
        return [Access("flag", 0, 1, True)]
    if kind is isa.STORE:
        guard = [Access("flag", 0, 1, False)] if v["guard"] else []
        if v["source"] in (StoreSource.PACKED_FF, StoreSource.PACKED_BP):
            return [*guard, Access("slots", v["a"], v["a"] + 1, False)]
        return [*guard, Access(f"v{v['a']}", v["line"], v["line"] + v["lines"], False)]
    return []


def _assemble(
    chosen: list[tuple[int, list[Access]]], waits: Waits, rng: random.Random
) -> list[int]:
    """The program's words with their waits, host points, stores of all registers, and the end."""
    words: list[int] = []
    history: dict[Unit, list[list[Access]]] = {unit: [] for unit in Unit}
    for word, accesses in chosen:
        decoded = isa.decode(word)
        unit = decoded.instruction.unit
        fields = decoded.values | _after(unit, accesses, history, waits)
        words.append(decoded.instruction.encode(**fields))
        history[unit].append(accesses)
        sums_stay = decoded.instruction is isa.COMPUTE and not decoded["last"]
        if waits is Waits.FENCES:
            words.append(isa.FENCE.encode())
        elif rng.random() < 0.02 and not sums_stay:
            words.append(rng.choice((isa.HOST.encode(point=rng.getrandbits(16)),
                                     isa.FENCE.encode())))
    dump = [isa.STORE.encode(a=register, lines=LINES, run=LINES,
                             offset=_DUMP + register * _REGISTER) for register in range(VECTORS)]
    return [*words, isa.FENCE.encode(), *dump, isa.END.encode()]


def _after(
    unit: Unit, accesses: list[Access], history: dict[Unit, list[list[Access]]], waits: Waits
) -> dict[str, int]:
    """The header's distances."""
    if waits is Waits.FENCES:
        return {}
    distances = {}
    for other in (other for other in Unit if other not in (unit, Unit.CONTROL)):
        earlier = history[other][::-1]
        if waits is Waits.ALL:
            distances[f"after_{other.name.lower()}"] = 1
            continue
        for distance, theirs in enumerate(earlier, 1):
            if any(mine.conflicts(one) for mine in accesses for one in theirs):
                distances[f"after_{other.name.lower()}"] = min(distance, 15)
                break
    return distances
