"""The cycle model of the whole chip with its memory: when everything happens, but no data.

:func:`predict` walks over the program in its order. Every unit works in order and every wait points
backward, so one walk suffices; what a unit costs is the business of its own module:
:mod:`sim.load_cycles`, :mod:`sim.unit_cycles`, and for the bus :mod:`sim.memory_cycles`. All
constants are those of the hardware's own timing objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from rtl import isa
from rtl.architecture import Architecture
from rtl.chunk import WORD_BYTES
from rtl.dispatch import DispatchTiming
from rtl.fetch import DEPTH, longest_burst
from rtl.instruction import Unit
from rtl.isa import Decoded
from rtl.issue import LAG, QUEUE_DEPTH, UNITS
from rtl.write_dma import WriteTiming
from sim.chip import MemoryModel
from sim.load_cycles import LoadCycles
from sim.memory_cycles import DeviceMemory, ReadPort, Receipt, WritePort
from sim.unit_cycles import ComputeCycles, StoreCycles, VectorCycles

__all__ = ["ChipCycles", "UnitCycles", "predict"]

_FEWEST, _MOST = 4, 48
"""Walks with other samples of a random memory, for a long and for a short program."""
_SAMPLED = 2048
"""Instructions of all walks together, between these: a long program has many pauses in itself."""

_NAMES: dict[Unit, str] = {unit: unit.name.lower() for unit in UNITS}


@dataclass(frozen=True)
class UnitCycles:
    """Where a unit's time goes, in cycles.

    busy: it has an instruction under way, as the counter of this name.
    work: of these, what its own throughput needs.
    rest: of these, latencies that nothing hides; for load and store mostly the memory's.
    waits: by unit, for another one whose instruction has to be complete first.
    program: for an instruction that has not been dispatched.
    """

    busy: float
    work: float
    waits: dict[str, float]
    program: float

    @property
    def rest(self) -> float:
        """Busy, but not with what limits the throughput."""
        return max(0.0, self.busy - self.work)

    @property
    def wait(self) -> float:
        """Of all waits for other units, as the counter of this name."""
        return sum(self.waits.values())

    @property
    def bound(self) -> str:
        """What takes most of its time: ``work``, ``rest``, ``program`` or another unit's name."""
        parts = {"work": self.work, "rest": self.rest, "program": self.program, **self.waits}
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True)
class ChipCycles:
    """What the chip's counters will show; ``units`` by name (load, compute, vector, store)."""

    cycles: int
    units: dict[str, UnitCycles]
    read_beats: int
    write_beats: int
    macs: int


class _Unit(Protocol):
    """A unit's own model."""

    work: int

    def take(self, instruction: Decoded, at: float, base: int) -> tuple[float, float]:
        """Cycle in which an instruction offered from ``at`` on is taken, and that of ``done``."""


class _Fetch:
    """When each instruction is there for the dispatcher."""

    def __init__(self, architecture: Architecture, port: ReadPort, address: int) -> None:
        self._port = port
        self._words = architecture.bus_bytes // WORD_BYTES
        self._beat = address // architecture.bus_bytes
        self._burst = longest_burst(architecture)
        self._asked = DispatchTiming().begin - 1.0
        self._times: list[float] = []
        self._pops: list[float] = []
        self._more()

    def _more(self) -> None:
        """Ask for all bursts for which there is room."""
        while True:
            beats = self._burst - self._beat % self._burst
            used = len(self._times) + beats - DEPTH
            if used > len(self._pops):
                return
            if used > 0:
                self._asked = max(self._asked, self._pops[used - 1] + 1)
            through, found = self._port.burst(self._asked, beats, program=True)
            self._asked = through + 1
            self._beat += beats
            self._times += [beat + self._port.back for beat in found]

    def at(self, number: int) -> float:
        """When instruction ``number`` is at the fetch unit's output, with none ahead of it."""
        return self._times[number // self._words] + DispatchTiming().fetch.deliver

    def taken(self, number: int, cycle: float) -> None:
        """The dispatcher took it."""
        if number % self._words == self._words - 1:
            self._pops.append(cycle)
            self._more()

    def host(self, cycle: float) -> None:
        """At a host point time stands still, while what has been asked for arrives."""
        self._times = [min(time, cycle) for time in self._times]

    def stopped(self) -> float:
        """When the last beat is in and has been forgotten."""
        return self._times[-1] + 1


@dataclass(frozen=True)
class _Entry:
    """An instruction in a queue: offered from ``at`` on, but after the ``needs``.

    stores: how many precede it. They are looked at first: what bandwidth they take makes the loads
    late that it waits for.
    """

    instruction: Decoded
    at: float
    needs: tuple[tuple[Unit, int], ...]
    stores: int


class _Queue:
    """One unit with its queue; an instruction's cycles are worked out when somebody asks.

    So the program, whose fetches share the bus with the loads, is always ahead.
    """

    def __init__(
        self, unit: _Unit, bases: Sequence[int], port: ReadPort | WritePort | None = None
    ) -> None:
        self.unit = unit
        self._bases = bases
        self._port = port
        self._receipts: list[Receipt] = []
        self.entries: list[_Entry] = []
        self._taken: list[float] = []
        self._done: list[float] = []
        self.busy = self._program = 0.0
        self._waits: dict[str, float] = dict.fromkeys(_NAMES.values(), 0.0)

    def taken(self, number: int, others: dict[Unit, _Queue]) -> float:
        """When instruction ``number`` was taken."""
        self._advance(number, others)
        return self._taken[number]

    def done(self, number: int, others: dict[Unit, _Queue]) -> float:
        """When instruction ``number`` was complete, by what is known now."""
        self._advance(number, others)
        late = self._receipts[number].late() if self._receipts else 0.0
        return self._done[number] + late

    def _advance(self, number: int, others: dict[Unit, _Queue]) -> None:
        wake = DispatchTiming().wake
        while len(self._taken) <= number:
            entry = self.entries[len(self._taken)]
            if entry.stores and entry.needs:
                others[Unit.STORE].done(entry.stores - 1, others)
            taken, done = (times[-1] if times else 0.0 for times in (self._taken, self._done))
            at = max(entry.at, taken + 1)
            self._program += max(0.0, entry.at - max(taken + 1, done))
            for unit, needed in entry.needs:
                complete = others[unit].done(needed, others) + wake
                if complete > at:
                    self._waits[_NAMES[unit]] += complete - at
                    at = complete
            values = entry.instruction.values
            base = self._bases[values["base"]] if "base" in values else 0
            start, end = self.unit.take(entry.instruction, at, base)
            self.busy += end - max(start, done)
            self._taken.append(start)
            self._done.append(end)
            if self._port:
                self._receipts.append(self._port.receipt())

    def cycles(self) -> UnitCycles:
        """The account."""
        return UnitCycles(self.busy, self.unit.work, self._waits, self._program)


def predict(
    program: Sequence[int], architecture: Architecture, model: MemoryModel,
    bases: Sequence[int] = (), program_at: int = 0,
) -> ChipCycles:
    """What the counters will show after ``program``, which is not wrong and skips no store.

    For a memory that pauses or is late at random it is the mean of some walks, each with another
    sample of its behaviour, see :mod:`sim.memory_cycles`.

    Parameters
    ----------
    bases: base registers, as for :meth:`sim.chip.Chip.start`.
    program_at: address of the program, of which only the part within a fetch burst matters.
    """
    decoded = [isa.decode(word) for word in program]
    random = bool(model.stall or model.jitter)
    samples = min(max(_SAMPLED // len(program), _FEWEST), _MOST) if random else 1
    walks = [
        _walk(decoded, architecture, DeviceMemory(model, architecture, sample),
              [*bases, *[0] * (isa.BASES - len(bases))], program_at)
        for sample in range(samples)
    ]
    if samples == 1:
        return walks[0]
    return ChipCycles(
        round(fmean(walk.cycles for walk in walks)),
        {name: _mean([walk.units[name] for walk in walks]) for name in walks[0].units},
        round(fmean(walk.read_beats for walk in walks)), walks[0].write_beats, walks[0].macs,
    )


def _mean(units: Sequence[UnitCycles]) -> UnitCycles:
    return UnitCycles(
        fmean(unit.busy for unit in units), units[0].work,
        {name: fmean(unit.waits[name] for unit in units) for name in units[0].waits},
        fmean(unit.program for unit in units),
    )


def _walk(
    program: Sequence[Decoded], architecture: Architecture, memory: DeviceMemory,
    bases: Sequence[int], program_at: int,
) -> ChipCycles:
    timing = DispatchTiming()
    reads = ReadPort(memory)
    writes = WritePort(memory, WriteTiming(architecture))
    compute = ComputeCycles(architecture)
    queues = {
        Unit.LOAD: _Queue(LoadCycles(architecture, reads), bases, reads),
        Unit.COMPUTE: _Queue(compute, bases),
        Unit.VECTOR: _Queue(VectorCycles(architecture), bases),
        Unit.STORE: _Queue(StoreCycles(architecture, writes), bases, writes),
    }
    fetch = _Fetch(architecture, reads, program_at)
    newest: list[tuple[Unit, int]] = []
    left = 0.0
    for number, instruction in enumerate(program):
        popped = max(fetch.at(number), left)
        left = popped + timing.decode
        unit = instruction.instruction.unit
        if unit is Unit.CONTROL:
            complete = [queue.done(len(queue.entries) - 1, queues)
                        for queue in queues.values() if queue.entries]
            left = max(left, max(complete, default=0.0) + timing.wake)
        else:
            queue = queues[unit]
            if len(queue.entries) >= QUEUE_DEPTH:
                room = queue.taken(len(queue.entries) - QUEUE_DEPTH, queues)
                left = max(left, room + 1)
            if number >= LAG:
                other, late = newest[number - LAG]
                if late >= 0:
                    left = max(left, queues[other].taken(late, queues) + 1)
            needs = [(other, len(queues[other].entries) - distance) for other in UNITS
                     if (distance := instruction[f"after_{_NAMES[other]}"])]
            queue.entries.append(_Entry(
                instruction, left + timing.queue,
                tuple((other, needed) for other, needed in needs if needed >= 0),
                0 if unit is Unit.STORE else len(queues[Unit.STORE].entries),
            ))
        newest.append((unit, len(queues[unit].entries) - 1 if unit in queues else -1))
        fetch.taken(number, popped)
        if instruction.instruction is isa.HOST:
            fetch.host(left)
        if instruction.instruction is isa.END:
            break
    ended = max(left + timing.stop + timing.fetch.stop, fetch.stopped())
    return ChipCycles(
        round(ended), {_NAMES[unit]: queue.cycles() for unit, queue in queues.items()},
        reads.beats, writes.beats, compute.macs,
    )
