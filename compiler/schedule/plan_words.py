"""``program.bin``: a schedule as 512-bit words, one a task, declared once as instructions are.

The words say for every GEMM what the scheduler decided: sizes, pattern, dataflow, tile shape,
blocks, order of loops, addresses. They are to a whole network what the paper's offline scheduling
hands to its accelerator. They stand above the chip's own instruction set (:mod:`rtl.isa`), whose
programs have no loops: a driver expands a word into tiles, block by block, as
:mod:`benchmarks.sampled_layers` does for the layers that it runs on the RTL.

A convolution's geometry is a word of its own ahead of its GEMM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from compiler.ir import Gemm, HostTask, Update, Window
from compiler.schedule.memory_map import MemoryMap
from compiler.schedule.problem import Problem
from compiler.schedule.scheduler import Placed, Schedule
from compiler.schedule.target import Target
from compiler.schedule.tiling import Tiling
from rtl.chunk import WORD_BYTES
from rtl.errors import ParameterError
from rtl.instruction import Field
from rtl.pattern import DENSE, NmPattern

__all__ = [
    "PLAN_BYTES", "WORDS", "PlanWord", "WordKind", "decode_plan", "encode_plan", "plan_text",
    "tiling_of",
]

PLAN_BYTES = 64
"""Bytes of a word."""

_STAGES = ("FF", "BP", "WU")
_VERSION = 1


@dataclass(frozen=True)
class WordKind:
    """One kind of word: its fields from the lowest bit on, behind 8 bits of opcode."""

    name: str
    opcode: int
    doc: str
    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        if 8 + sum(field.width for field in self.fields) > 8 * PLAN_BYTES:
            raise AssertionError(f"{self.name} does not fit")


def _address(name: str, doc: str) -> Field:
    return Field(name, 40, f"{doc}, in words of {WORD_BYTES} bytes.")


BEGIN = WordKind("begin", 1, "The first word: what the program was made for.", (
    Field("version", 8, "Of this format.", 1),
    Field("rows", 12, "Rows of the array.", 1), Field("cols", 12, "Columns of the array.", 1),
    Field("interleave", 4, "Sums that share a USPE.", 1),
    Field("words", 32, "Words that follow, without end."),
    Field("memory", 40, "Words of device memory in use."),
))
WINDOW = WordKind("window", 2, "Geometry of the convolution whose GEMM follows.", (
    *(Field(f"{what}_{axis}", width, f"{doc}, {way}.") for what, width, doc in (
        ("kernel", 8, "Kernel positions"), ("stride", 8, "Input pixels from an output to the next"),
        ("dilation", 8, "Input pixels from a kernel position to the next"),
        ("size", 16, "Input pixels"), ("out", 16, "Output pixels"))
      for axis, way in (("y", "down"), ("x", "across"))),
    *(Field(f"pad_{side}", 8, f"Zeros {side} of the input; negative: pixels left out.", -128)
      for side in ("left", "right", "top", "bottom")),
))
GEMM = WordKind("gemm", 3, "C (P, Q) = A (P, K) @ B (K, Q), `batch` times.", (
    Field("layer", 16, "Number of the layer; counted with the parameters, as they come."),
    Field("stage", 2, "FF 0, BP 1, WU 2.", 0, 2),
    Field("p", 36, "Rows of A, as it runs.", 1), Field("q", 36, "Columns of B.", 1),
    Field("k", 36, "Length of the reduction.", 1), Field("batch", 24, "GEMMs.", 1),
    Field("taps", 12, "Kernel positions along K.", 1),
    Field("n", 4, "N of the pattern; 1 for dense.", 1),
    Field("m_log2", 3, "log2 of M; 0 for dense.", 0, 4),
    Field("stationary", 1, "WS, else OS."), Field("swapped", 1, "The product runs transposed."),
    Field("paired", 1, "OS: a tile is L independent pairs."),
    Field("interleave_rows", 3, "OS: row tiles of a tile.", 1),
    Field("rows_outer", 1, "Rows are the outer loop."),
    Field("inline", 1, "B lies dense and is pruned when read."),
    Field("p_block", 28, "Rows of a block.", 1), Field("q_block", 28, "Columns of a block.", 1),
    Field("group_block", 28, "Groups of K of a block.", 1),
    Field("vector_ops", 4, "Operations on each line of results.", 1),
    Field("epilogue_words", 4, "Words loaded for each line of results."),
    Field("single", 1, "Results are stored as FP32."),
    _address("a", "Operand A"), _address("b", "Operand B"), _address("c", "Result C"),
    Field("sampled", 1, "B is the packed sample that the host has drawn of a gradient."),
))
UPDATE = WordKind("update", 4, "The optimiser on one parameter, pruning what it writes.", (
    Field("layer", 16, "Number of the parameter."),
    Field("elements", 40, "Elements of the parameter.", 1),
    Field("copies", 2, "Packed copies written.", 0, 2),
    Field("half", 1, "An FP16 copy is written."),
    Field("n", 4, "N of the pattern of packed copies.", 1),
    Field("m_log2", 3, "log2 of M.", 0, 4),
    _address("weights", "Master weights"),
))
HOST = WordKind("host", 5, "The host works on device memory.", (
    Field("point", 24, "Number of the stop."), Field("backward", 1, "It is a gradient."),
    Field("bytes", 48, "Bytes that it moves."),
))
END = WordKind("end", 6, "The step is done.", ())

WORDS = (BEGIN, WINDOW, GEMM, UPDATE, HOST, END)
"""All kinds of words."""
_BY_OPCODE = {kind.opcode: kind for kind in WORDS}


@dataclass(frozen=True)
class PlanWord:
    """One word: its kind and the values of its fields."""

    kind: WordKind
    values: dict[str, int]

    def __getitem__(self, name: str) -> int:
        return self.values[name]

    def encode(self) -> bytes:
        """The word; raises :class:`ParameterError` for a value outside its field."""
        word, offset = self.kind.opcode, 8
        for field in self.kind.fields:
            value = field.check(self.values.get(field.name, field.default))
            word |= (value & ((1 << field.width) - 1)) << offset
            offset += field.width
        return word.to_bytes(PLAN_BYTES, "little")

    def __str__(self) -> str:
        shown = (f"{name}={value}" for name, value in self.values.items() if value)
        return " ".join([self.kind.name, *shown])


def decode_plan(raw: bytes) -> list[PlanWord]:
    """The words of a program.

    Raises :class:`ParameterError` for a file that is not one: length, first word, opcode, field.
    """
    if len(raw) % PLAN_BYTES or not raw:
        raise ParameterError("program.bin", len(raw), f"must be a multiple of {PLAN_BYTES} bytes",
                             max(1, len(raw) // PLAN_BYTES) * PLAN_BYTES)
    words = []
    for at in range(0, len(raw), PLAN_BYTES):
        word = int.from_bytes(raw[at : at + PLAN_BYTES], "little")
        kind = _BY_OPCODE.get(word & 0xFF)
        if kind is None:
            raise ParameterError("program.bin", word & 0xFF,
                                 f"word {at // PLAN_BYTES} has an unknown opcode")
        word >>= 8
        values = {}
        for field in kind.fields:
            value = word & ((1 << field.width) - 1)
            word >>= field.width
            if field.signed and value >> (field.width - 1):
                value -= 1 << field.width
            values[field.name] = field.check(value)
        if word:
            raise ParameterError("program.bin", at // PLAN_BYTES,
                                 f"word has bits set above the fields of {kind.name}")
        words.append(PlanWord(kind, values))
    if words[0].kind is not BEGIN or words[-1].kind is not END:
        raise ParameterError("program.bin", words[0].kind.name, "must go from begin to end")
    if words[0]["version"] != _VERSION:
        raise ParameterError("program.bin", words[0]["version"], "is not the version of this "
                             "release", _VERSION)
    return words


def encode_plan(schedule: Schedule, memory: MemoryMap) -> bytes:
    """The program of a schedule whose tensors lie as in ``memory``."""
    encoder = _Encoder(schedule, memory)
    body = [word for placed in schedule.placed for word in encoder.words(placed)]
    machine = schedule.target.architecture
    first = PlanWord(BEGIN, {
        "version": _VERSION, "rows": machine.rows, "cols": machine.cols,
        "interleave": machine.interleave, "words": len(body),
        "memory": -(-memory.bytes // WORD_BYTES),
    })
    return b"".join(word.encode() for word in (first, *body, PlanWord(END, {})))


def plan_text(raw: bytes) -> str:
    """A program as text, one word a line, for reading and for comparing two of them."""
    return "\n".join(str(word) for word in decode_plan(raw)) + "\n"


def tiling_of(word: PlanWord, target: Target) -> Tiling:
    """The tiling that a ``gemm`` word stands for."""
    problem = Problem(
        word["p"], word["q"], word["k"], word["batch"], word["taps"],
        NmPattern(word["n"], 1 << word["m_log2"]), word["vector_ops"], word["epilogue_words"],
        4 if word["single"] else 2, bool(word["inline"]), bool(word["sampled"]),
    )
    return Tiling(
        target, problem, bool(word["stationary"]), word["p_block"], word["q_block"],
        word["group_block"], word["interleave_rows"], bool(word["paired"]),
        bool(word["rows_outer"]), bool(word["swapped"]),
    )


class _Encoder:
    """Words of tasks, with layers and parameters numbered as they come."""

    def __init__(self, schedule: Schedule, memory: MemoryMap) -> None:
        self._memory = memory
        self._windows = {product.name: product.window
                         for product in schedule.step.forward.products if product.window}
        self._numbers: dict[str, int] = {}

    def words(self, placed: Placed) -> Iterator[PlanWord]:
        """The words of one task."""
        task = placed.task
        if isinstance(task, HostTask):
            yield PlanWord(HOST, {"point": placed.index, "backward": int(task.backward),
                                  "bytes": task.bytes})
        elif isinstance(task, Update):
            yield self._update(task)
        elif placed.mapped is not None:
            window = self._windows.get(task.layer)
            if window is not None:
                yield _window(window)
            yield self._gemm(task, placed.mapped.tiling)

    def _number(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers))

    def _update(self, update: Update) -> PlanWord:
        pattern = update.packed[0][1] if update.packed else DENSE
        return PlanWord(UPDATE, {
            "layer": self._number(update.parameter), "elements": update.elements,
            "copies": len(update.packed), "half": int(update.half), "n": pattern.n,
            "m_log2": pattern.m.bit_length() - 1,
            "weights": self._memory.start_of(update.parameter) // WORD_BYTES,
        })

    def _gemm(self, gemm: Gemm, tiling: Tiling) -> PlanWord:
        problem = tiling.problem
        return PlanWord(GEMM, {
            "layer": self._number(gemm.layer), "stage": _STAGES.index(gemm.stage),
            "p": problem.p, "q": problem.q, "k": problem.k, "batch": problem.batch,
            "taps": problem.taps, "n": problem.pattern.n,
            "m_log2": problem.pattern.m.bit_length() - 1, "stationary": int(tiling.stationary),
            "swapped": int(tiling.swapped), "paired": int(tiling.paired),
            "interleave_rows": tiling.interleave_rows, "rows_outer": int(tiling.rows_outer),
            "inline": int(problem.inline), "p_block": tiling.p_block, "q_block": tiling.q_block,
            "group_block": tiling.group_block, "vector_ops": problem.vector_ops,
            "epilogue_words": problem.epilogue_words, "single": int(problem.result_bytes == 4),
            **{name: self._memory.operand(gemm, value) // WORD_BYTES
               for name, value in (("a", gemm.a), ("b", gemm.b), ("c", gemm.c))},
            "sampled": int(problem.sampled),
        })


def _window(window: Window) -> PlanWord:
    pairs = {"kernel": window.conv.kernel, "stride": window.conv.stride,
             "dilation": window.conv.dilation, "size": window.size, "out": window.out_size}
    values = {f"{name}_{axis}": value for name, pair in pairs.items()
              for axis, value in zip("yx", pair, strict=True)}
    sides = zip(("left", "right", "top", "bottom"), window.conv.padding, strict=True)
    return PlanWord(WINDOW, values | {f"pad_{side}": zeros for side, zeros in sides})
