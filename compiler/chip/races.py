"""Checks a finished program for races, from its binary words alone.

Two accesses race if they are of different units, overlap, at least one writes, and the waits of
the program do not order them. What is ordered follows from vector clocks: an instruction begins
after everything that its own unit's earlier instructions waited for, after what its header waits
for, and after what those had waited for in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from compiler.chip.footprint import Access, Resource, footprint
from rtl import isa
from rtl.architecture import Architecture
from rtl.instruction import Unit

__all__ = ["Race", "find_races"]

_UNITS: tuple[Unit, ...] = tuple(unit for unit in Unit if unit is not Unit.CONTROL)


@dataclass(frozen=True)
class Race:
    """Instructions ``first`` and ``second`` of the program touch a resource in no order."""

    first: int
    second: int
    resource: Resource


@dataclass
class _Log:
    """Accesses of one unit to one resource, in order: rows of (place in unit, index in program,
    start, stop, write)."""

    rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty((64, 5), np.int64))
    count: int = 0

    def add(self, row: tuple[int, ...]) -> None:
        if self.count == len(self.rows):
            self.rows = np.concatenate([self.rows, np.empty_like(self.rows)])
        self.rows[self.count] = row
        self.count += 1

    def unordered(self, access: Access, complete: int) -> npt.NDArray[np.int64]:
        """Indices of conflicting instructions that are not known to be complete."""
        begin = int(np.searchsorted(self.rows[: self.count, 0], complete))
        rows = self.rows[begin : self.count]
        clash = (rows[:, 2] < access.stop) & (rows[:, 3] > access.start)
        if not access.write:
            clash &= rows[:, 4] == 1
        found: npt.NDArray[np.int64] = rows[clash, 1]
        return found


def find_races(program: Sequence[int], architecture: Architecture) -> list[Race]:
    """All conflicting pairs of instructions that nothing orders."""
    clocks = {unit: dict.fromkeys(_UNITS, 0) for unit in _UNITS}
    begun: dict[Unit, list[dict[Unit, int]]] = {unit: [] for unit in _UNITS}
    logs = {unit: {resource: _Log() for resource in Resource} for unit in _UNITS}
    shape: isa.Decoded | None = None
    races: set[tuple[int, int, Resource]] = set()
    for index, word in enumerate(program):
        decoded = isa.decode(word)
        unit = decoded.instruction.unit
        if unit is Unit.CONTROL:
            for clock in clocks.values():
                clock.update({other: len(begun[other]) for other in _UNITS})
            continue
        clock = clocks[unit]
        for other in _UNITS:
            distance = decoded[f"after_{other.name.lower()}"]
            complete = len(begun[other]) - distance + 1
            if distance and complete > 0:
                for third, known in begun[other][complete - 1].items():
                    clock[third] = max(clock[third], known)
                clock[other] = max(clock[other], complete)
        if decoded.instruction is isa.SHAPE:
            shape = decoded
        accesses = footprint(decoded, shape, architecture)
        for access in accesses:
            for other in _UNITS:
                if other is not unit:
                    found = logs[other][access.resource].unordered(access, clock[other])
                    races.update((int(first), index, access.resource) for first in found)
        for access in accesses:
            logs[unit][access.resource].add(
                (len(begun[unit]), index, access.start, access.stop, access.write))
        begun[unit].append(dict(clock))
    return [Race(*race) for race in sorted(races)]
