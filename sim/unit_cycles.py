"""Compute, vector and store unit in the cycle model."""

from __future__ import annotations

from collections import deque

from rtl import isa
from rtl.architecture import Architecture
from rtl.chunk import LANES, WORD_BYTES
from rtl.compute import ComputeTiming
from rtl.isa import Decoded
from rtl.stce import StceTiming
from rtl.store import StoreTiming
from rtl.vector_timing import VectorTiming
from sim.memory_cycles import WritePort

__all__ = ["ComputeCycles", "StoreCycles", "VectorCycles"]

_MARKS = 4
"""Instructions whose tiles are all in the array and that are not complete: no more are issued."""


class ComputeCycles:
    """Takes compute instructions in order: checker, issuer, and passes of the array.

    Passes are taken to begin with the program; the hardware's run on, so that a tile may start up
    to L - 1 cycles earlier or later.
    """

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture
        self._timing = ComputeTiming(architecture)
        self._stce = StceTiming(architecture)
        self.ready = 0.0
        self.work = self.macs = 0
        self._issued = 0.0
        self._done = deque([0.0] * _MARKS, maxlen=_MARKS)
        self._held = 0.0
        self._start = self._end = self._emitted = self._retired = 0.0
        self._config: tuple[int, int] | None = None

    def take(self, compute: Decoded, at: float, base: int) -> tuple[float, float]:
        """Cycle in which it is taken, not before ``at``, and that of ``done``."""
        arch, sequencer = self._architecture, self._stce.sequencer
        pass_cycles = arch.interleave
        taken = max(at, self.ready)
        p, q, n = compute["p_count"], compute["q_count"], compute["n"]
        checked = max(taken + self._timing.check(p, q), self._issued, self._held)
        self.ready = checked + 1
        rows = compute["interleave_rows"]
        tiles = (-(-p // (arch.rows * rows))
                 * -(-q // (arch.cols * (pass_cycles // rows))))
        length = compute["groups"] * n * pass_cycles
        gap = sequencer.drain_gap * pass_cycles if compute["last"] else 0
        offered = max(checked + 1, self._done[0] + 1)
        accepted = _tick(max(offered, self._start), pass_cycles)
        start = max(accepted + pass_cycles, self._end)
        config = n, compute["m_log2"]
        if self._config != config:
            start = max(start, _tick(self._retired + 1, pass_cycles))
            self._config = config
        elif gap:
            start = max(start, self._emitted + gap - length)
        between = max(length, gap)
        last = start + (tiles - 1) * between
        self._issued = last - between if tiles > 1 else accepted
        self._start, self._end = last, last + length
        if compute["last"]:
            self._emitted = self._end
            self._retired = self._end + self._stce.finish(False, n)
            done = self._retired + self._timing.retire
        else:
            done = self._held = self._end + sequencer.skew_tail + 1
            self._held += 1
        self._done.append(done)
        self.work += tiles * length
        self.macs += compute["groups"] * n * p * q
        return taken, done


def _tick(at: float, cycles: int) -> float:
    """The last cycle of a pass, not before ``at``."""
    return -(-at // cycles) * cycles


class VectorCycles:
    """Takes vector instructions in order; see :class:`rtl.vector_timing.VectorTiming`."""

    def __init__(self, architecture: Architecture) -> None:
        self._timing = VectorTiming(architecture)
        self.ready = 0.0
        self.work = 0
        self._settled = self._quiet = 0.0
        self._before: Decoded | None = None

    def take(self, vector: Decoded, at: float, base: int) -> tuple[float, float]:
        """Cycle in which it is taken, not before ``at``, and that of ``done``."""
        timing = self._timing
        taken = max(at, self.ready)
        if vector.instruction is isa.VECTOR:
            follows = self._before is not None and timing.follows(self._before, vector)
            start = max(taken + 1, self._settled if follows else self._quiet)
            issue, depth = timing.issue(vector), timing.depth(vector["op"])
            self.ready = start + issue - 1
            self._settled, self._quiet = start + depth, self.ready + depth
            self._before = vector
            self.work += issue
            return taken, self._quiet
        self.ready = max(taken + 1, self._quiet)
        if vector.instruction is isa.PRUNE:
            self.ready += timing.prune(vector)
            self.work += vector["chunks"] * LANES
        return taken, self.ready + 1


class StoreCycles:
    """Takes stores in order, none of which is skipped; ``port`` takes its bursts."""

    def __init__(self, architecture: Architecture, port: WritePort) -> None:
        self._timing = StoreTiming(architecture)
        self._port = port
        self.ready = 0.0
        self.work = 0
        self._kept = 0.0

    def take(self, store: Decoded, at: float, base: int) -> tuple[float, float]:
        """Cycle in which it is taken, not before ``at``, and that of ``done``."""
        timing = self._timing
        taken = max(at, self.ready)
        addresses = timing.addresses(store, base // WORD_BYTES)
        word = max(taken + timing.fill, self._kept + 1)
        place = 0
        port = self._port
        for burst in timing.write.bursts(addresses):
            words = burst.last_word - place + 1
            place = burst.last_word + 1
            last = max(word + words - 1, port.room(burst.beats))
            word = port.burst(last + 1, burst.beats)
        self._kept = word - 1
        self.work += len(addresses)
        self.ready = max(taken + len(addresses), self._kept - timing.fill)
        return taken, port.answered + timing.write.answer
