"""Emits instructions and works out by itself what each has to wait for.

The four units run side by side, each in order. An instruction that touches what an earlier one of
another unit touches, at least one of the two writing, has to wait for it. The builder finds these
pairs from :func:`compiler.chip.footprint.footprint` and sets the ``after_...`` distances. It knows
by vector clocks what has been waited for already, directly or through a third unit, and leaves such
waits out.
"""

from __future__ import annotations

from collections.abc import Sequence

from compiler.chip.footprint import Access, Resource, footprint
from rtl import isa
from rtl.architecture import Architecture
from rtl.instruction import Instruction, Unit
from rtl.isa import Decoded

__all__ = ["ProgramBuilder"]

_UNITS: tuple[Unit, ...] = tuple(unit for unit in Unit if unit is not Unit.CONTROL)
_AFTER = {unit: f"after_{unit.name.lower()}" for unit in _UNITS}
_FARTHEST = 15
"""Largest distance of a header; waiting for newer instructions than needed is always safe."""
_PRUNE_AT = 256

_Entry = tuple[int, int, int, bool]


class ProgramBuilder:
    """A program in the making.

    Base registers are taken to point to disjoint regions. Use :meth:`emit` for everything,
    :meth:`shape` for ``shape``, :meth:`turn` for registers that take turns, and :meth:`program` at
    the end.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.words: list[int] = []
        self.flip = False
        """Which end of the operand buffers the next GEMM fills first; it turns it over."""
        self.sections: list[tuple[str, int]] = []
        """Names of the parts of the program, and where each begins."""
        self._shape: Decoded | None = None
        self._turns: dict[tuple[int, ...], int] = {}
        self._clocks = {unit: [0] * len(_UNITS) for unit in _UNITS}
        # For every instruction of a unit, what it knew to be complete when it began.
        self._history: dict[Unit, list[tuple[int, ...]]] = {unit: [] for unit in _UNITS}
        self._touched: dict[Unit, dict[Resource, list[_Entry]]] = {
            unit: {resource: [] for resource in Resource} for unit in _UNITS
        }

    def __len__(self) -> int:
        return len(self.words)

    def turn(self, *ring: int) -> int:
        """The next of some registers or slots that take turns."""
        count = self._turns.get(ring, 0)
        self._turns[ring] = count + 1
        return ring[count % len(ring)]

    def section(self, name: str) -> None:
        """Begin a part of the program that can also run as a program of its own."""
        self.sections.append((name, len(self.words)))
        self._shape = None

    def shape(self, **fields: int) -> None:
        """Emit ``shape`` unless it is what the last one said."""
        values = {f.name: fields.get(f.name, f.default) for f in isa.SHAPE.fields}
        if self._shape is None or self._shape.values != values:
            self.emit(isa.SHAPE, **fields)

    def program(self) -> list[int]:
        """The words, with ``end``."""
        return [*self.words, isa.END.encode()]

    def emit(self, instruction: Instruction, **fields: int) -> None:
        """Append an instruction; fields as :meth:`rtl.instruction.Instruction.encode` takes them.

        Raises :class:`rtl.errors.ParameterError` for a value that does not fit its field.
        """
        if instruction.unit is Unit.CONTROL:
            self.words.append(instruction.encode(**fields))
            self._everything_is_complete()
            return
        values = {f.name: fields.get(f.name, f.default) for f in instruction.fields}
        decoded = Decoded(instruction, values)
        if instruction is isa.SHAPE:
            self._shape = decoded
        accesses = footprint(decoded, self._shape, self.architecture)
        unit = instruction.unit
        waits = self._waits(unit, accesses)
        self.words.append(instruction.encode(
            **fields, **{_AFTER[other]: distance for other, distance in waits.items()}
        ))
        number = len(self._history[unit])
        self._history[unit].append(tuple(self._clocks[unit]))
        for access in accesses:
            entries = self._touched[unit][access.resource]
            entries.append((number, access.start, access.stop, access.write))
            if len(entries) % _PRUNE_AT == 0:
                self._prune(unit, entries)

    def _everything_is_complete(self) -> None:
        for clock in self._clocks.values():
            clock[:] = [len(self._history[unit]) for unit in _UNITS]

    def _prune(self, unit: Unit, entries: list[_Entry]) -> None:
        """Forget what every other unit knows to be complete."""
        known = min(clock[unit] for other, clock in self._clocks.items() if other is not unit)
        entries[:] = [entry for entry in entries if entry[0] >= known]

    def _newest_conflict(self, unit: Unit, accesses: Sequence[Access], known: int) -> int:
        """Number of the newest instruction of ``unit`` to wait for; -1 if there is none."""
        newest = -1
        touched = self._touched[unit]
        for resource, start, stop, write in accesses:
            for number, low, high, wrote in reversed(touched[resource]):
                if number < known or number <= newest:
                    break
                if low < stop and start < high and (write or wrote):
                    newest = number
                    break
        return newest

    def _waits(self, unit: Unit, accesses: Sequence[Access]) -> dict[Unit, int]:
        """Distances by unit; the clock of ``unit`` then knows what they imply."""
        clock = self._clocks[unit]
        needs: dict[Unit, int] = {}
        for other in _UNITS:
            if other is not unit:
                newest = self._newest_conflict(other, accesses, clock[other])
                if newest >= 0:
                    needs[other] = newest
        # Complete after the wait: all up to and with this number.
        reached = {
            other: max(newest, len(self._history[other]) - _FARTHEST)
            for other, newest in needs.items()
        }
        for other in list(reached):
            if any(self._history[third][number][other] > needs[other]
                   for third, number in reached.items() if third is not other):
                del reached[other]
        for other, number in reached.items():
            implied = self._history[other][number]
            clock[:] = [max(pair) for pair in zip(clock, implied, strict=True)]
        for other, number in reached.items():
            clock[other] = max(clock[other], number + 1)
        return {other: len(self._history[other]) - number for other, number in reached.items()}
