"""The cycle model: compute cycles of tiles that follow each other, equal to what the RTL counts.

In passes of L cycles, tiles of one configuration start one behind the other, but

* WS: at least ``gap`` after the start of the one before;
* OS: a tile that emits its results ends at least ``gap`` after the last one that did.

A run of ``tiles`` equal tiles, all of which emit, so takes in cycles::

    start + L * (passes + (tiles - 1) * max(passes, gap)) + finish

``start`` and ``finish`` are latencies of the hardware (:class:`rtl.stce.StceTiming`), ``gap`` the
least distance of two tiles (:class:`rtl.sequencer.SequencerTiming`).
"""

from __future__ import annotations

from dataclasses import dataclass

from rtl.architecture import Architecture
from rtl.stce import StceTiming

__all__ = ["Flow", "Run"]


@dataclass(frozen=True)
class Run:
    """``tiles`` equal tiles that follow each other while the engine is otherwise idle.

    Parameters
    ----------
    stationary: WS if true, else OS.
    n: packed weights a group (1 for dense).
    passes: passes of L cycles of each tile.
    tiles: number of tiles, at least 1.
    emits: results leave the array. An OS tile that leaves its sums in the array does not emit.
    """

    stationary: bool
    n: int
    passes: int
    tiles: int
    emits: bool = True

    def cycles(self, architecture: Architecture) -> int:
        """Busy cycles of the engine from taking the first tile to storing the last result."""
        return Flow((self,)).cycles(architecture)


@dataclass(frozen=True)
class Flow:
    """Runs of unequal tiles that follow each other without the engine running empty.

    Parameters
    ----------
    runs: at least one, all of one dataflow and pattern; a single tile is a run of one.
    """

    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        if len({(run.stationary, run.n) for run in self.runs}) != 1:
            raise ValueError("the runs of a flow have one dataflow and one pattern")

    def cycles(self, architecture: Architecture) -> int:
        """Busy cycles of the engine from taking the first tile to storing the last result."""
        timing = StceTiming(architecture)
        stationary, n = self.runs[0].stationary, self.runs[0].n
        gap = timing.sequencer.stationary_gap(n) if stationary else timing.sequencer.drain_gap
        # In passes: the end of the last tile and of the last that emitted, and before what the
        # next must not start (WS) or end and emit (OS).
        end = emitted = free = 0
        for run in self.runs:
            if not run.emits:
                end += run.tiles * run.passes
                continue
            first = max(end, free if stationary else free - run.passes)
            last = first + (run.tiles - 1) * max(run.passes, gap)
            end = emitted = last + run.passes
            free = gap + (last if stationary else end)
        busy = end * architecture.interleave + timing.sequencer.skew_tail
        if emitted:
            busy = max(busy, emitted * architecture.interleave + timing.finish(stationary, n))
        return timing.start(stationary) + busy
