"""A GEMM as the mapper sees it, and what a way to run it costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from compiler.ceiling import ceil_div
from rtl.chunk import LANES, WORD_BYTES, ChunkFormat
from rtl.pattern import DENSE, NmPattern

__all__ = ["Bound", "Cost", "Problem"]

Bound = Literal["array", "memory", "load port", "store port", "column port", "vector"]


@dataclass(frozen=True)
class Problem:
    """What matters of a GEMM for its tiling; K holds ``taps`` runs of channels, padded each.

    Sizes as in :class:`compiler.ir.Gemm`. ``inline``: B lies in memory as FP16; ahead of this GEMM
    SORE makes the packed copy that the array reads. ``sampled``: so does the host, by drawing; what
    it moves for that is taken from the memory while this GEMM runs.
    """

    p: int
    q: int
    k: int
    batch: int = 1
    taps: int = 1
    pattern: NmPattern = DENSE
    vector_ops: int = 1
    epilogue_words: int = 0
    result_bytes: int = 2
    inline: bool = False
    sampled: bool = False

    @property
    def groups(self) -> int:
        """Groups of M along K; each tap's channels are padded to whole groups."""
        return self.taps * self.pattern.groups(ceil_div(self.k, self.taps))

    @property
    def macs(self) -> int:
        """Multiply-accumulates that the array executes; padding of groups counts."""
        return self.batch * self.p * self.q * self.groups * self.pattern.n

    def swapped(self) -> Problem:
        """The transposed product, ``C^T = B^T @ A^T``."""
        return Problem(self.q, self.p, self.k, self.batch, self.taps, self.pattern,
                       self.vector_ops, self.epilogue_words, self.result_bytes)

    @cached_property
    def a_bytes(self) -> int:
        """Bytes of A as it is streamed, FP16, im2col expanded."""
        return self.batch * self.p * self.groups * self.pattern.m * 2

    @cached_property
    def b_bytes(self) -> float:
        """Bytes of B in memory: FP16, or packed chunks."""
        return self.dense_b_bytes * ChunkFormat(self.pattern).words / LANES

    @property
    def dense_b_bytes(self) -> int:
        """Bytes of B as FP16."""
        return self.batch * self.q * self.groups * self.pattern.m * 2

    @property
    def c_bytes(self) -> int:
        """Bytes of C as stored."""
        return self.batch * self.p * self.q * self.result_bytes

    @property
    def moved_bytes(self) -> float:
        """Traffic if every operand is moved once, im2col expanded."""
        return self.a_bytes + self.b_bytes + self.c_bytes + self.epilogue_bytes

    @property
    def sampling_bytes(self) -> float:
        """Bytes that the host moves to sample B: dense ones read, packed ones written."""
        return self.dense_b_bytes + self.b_bytes if self.sampled else 0.0

    @property
    def epilogue_bytes(self) -> int:
        """Bytes read for what is applied to results on their way out."""
        return self.batch * self.p * ceil_div(self.q, LANES) * self.epilogue_words * WORD_BYTES


@dataclass(frozen=True)
class Cost:
    """Cycles of one GEMM, and where they go.

    Parameters
    ----------
    array: from the first tile to the last result in its buffer, as the RTL counts.
    memory, load, store, column, vector: cycles that each of these is busy; the memory also with
        what the host moves to sample B.
    before, after: loading the first block, draining and storing the last: nothing else runs then,
        unless a neighbour does (:mod:`compiler.schedule.scheduler`).
    overlaps: blocks are double-buffered, so that all of these work side by side.
    read_bytes, written_bytes: traffic of the accelerator with device memory.
    """

    array: int
    memory: int
    load: int
    store: int
    column: int
    vector: int
    before: int
    after: int
    overlaps: bool
    read_bytes: int
    written_bytes: int

    @property
    def busy(self) -> int:
        """Cycles from the first tile's data to the last result, both ends excluded."""
        parts = (self.array, self.memory, self.load, self.store, self.column, self.vector)
        return max(parts) if self.overlaps else self.array + max(parts[1:])

    @property
    def cycles(self) -> int:
        """All cycles, of a GEMM that runs alone."""
        return self.before + self.busy + self.after

    @property
    def bound(self) -> Bound:
        """What the GEMM waits for most."""
        parts: dict[Bound, int] = {
            "array": self.array, "memory": self.memory, "load port": self.load,
            "store port": self.store, "column port": self.column, "vector": self.vector,
        }
        return max(parts, key=lambda name: parts[name])

    @property
    def dram_bytes(self) -> int:
        """Traffic of device memory, both ways."""
        return self.read_bytes + self.written_bytes
