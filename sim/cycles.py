"""The cycle model: closed-form compute cycles of a run of tiles, equal to what the RTL counts.

A segment is a run of ``tiles`` tiles of the same shape and configuration. With passes of L
cycles::

    cycles = start + L * (passes + (tiles - 1) * max(passes, gap)) + finish

``start`` and ``finish`` are latencies of the hardware (:class:`rtl.stce.StceTiming`), ``gap`` the
least distance of two tiles (:class:`rtl.sequencer.SequencerTiming`).
"""

from __future__ import annotations

from dataclasses import dataclass

from rtl.architecture import Architecture
from rtl.stce import StceTiming

__all__ = ["Run"]


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
        timing = StceTiming(architecture)
        if self.stationary:
            gap = timing.sequencer.stationary_gap(self.n)
        else:
            gap = timing.sequencer.drain_gap if self.emits else 0
        total = self.passes + (self.tiles - 1) * max(self.passes, gap)
        finish = (
            timing.finish(self.stationary, self.n) if self.emits else timing.sequencer.skew_tail
        )
        return timing.start(self.stationary) + total * architecture.interleave + finish
