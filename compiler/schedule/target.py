"""The machine that a schedule is made for: the array, and what carries data to and from it.

The array is the RTL's, cycle by cycle. Of the paths around it two descriptions exist:

* ``built``: the chip of :mod:`rtl.sat`. A load port and a store port of one 32-byte word a cycle, a
  vector engine of 16 lanes. It keeps arrays up to 16 x 16 busy.
* ``wide``: for each column of the array four bytes loaded a cycle, two stored, and one vector lane;
  for 32 columns four words, two words, 32 lanes. What a 32 x 32 array needs to be kept busy on 2:8
  (``python -m benchmarks.ports``). Up to eight columns it is the chip as built; beyond, it is not
  in the RTL yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from rtl.architecture import Architecture
from rtl.chunk import LANES, WORD_BYTES
from rtl.errors import ParameterError, closest

__all__ = ["PATHS", "Paths", "Target"]

Paths = Literal["wide", "built"]
PATHS: tuple[Paths, ...] = ("wide", "built")


@dataclass(frozen=True)
class Target:
    """An array with the rates of its surroundings, per clock cycle.

    Parameters
    ----------
    architecture: the array and its buffers.
    dram_bytes: bytes of device memory, reads and writes together.
    load_bytes, store_bytes: bytes of the load and of the store port.
    vector_lanes: results that the vector engine takes.
    paths: which description of the surroundings this is.
    interleave: independent sums take turns in a USPE. Without, each addition waits for the one
        before (only for ablations: the RTL always interleaves).
    """

    architecture: Architecture
    dram_bytes: float
    load_bytes: float
    store_bytes: float
    vector_lanes: int
    paths: Paths = "wide"
    interleave: bool = True

    @classmethod
    def of(cls, architecture: Architecture, paths: str = "wide") -> Self:
        """The surroundings of one kind; memory as in the architecture.

        Raises :class:`ParameterError` for paths that are not one of :data:`PATHS`.
        """
        if paths not in PATHS:
            raise ParameterError("paths", paths, f"must be one of {', '.join(PATHS)}",
                                 closest(paths, PATHS) or "wide")
        columns = architecture.cols if paths == "wide" else 0
        return cls(architecture, architecture.dram_bytes, max(WORD_BYTES, 4 * columns),
                   max(WORD_BYTES, 2 * columns), max(LANES, columns),
                   "wide" if paths == "wide" else "built")

    def seconds(self, cycles: float) -> float:
        """Time of ``cycles`` at the architecture's clock."""
        return cycles / (self.architecture.clock_mhz * 1e6)
