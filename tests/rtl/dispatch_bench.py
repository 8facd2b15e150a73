"""A dispatcher with memory and four mock units that check what they are given, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from amaranth.sim import Simulator
from bus_memory import BusMemory

from rtl.architecture import PRESETS, Architecture
from rtl.dispatch import DISPATCH_EVENTS, Dispatch
from rtl.instruction import Unit
from rtl.isa import HOST, IllegalWord, decode
from rtl.registers import ErrorCode

__all__ = ["UNITS", "DispatchBench", "Limits", "Run"]

UNITS = (Unit.LOAD, Unit.COMPUTE, Unit.VECTOR, Unit.STORE)
CAPACITY = 8


@dataclass(frozen=True)
class Limits:
    """How the mocks behave: shares of stalled cycles, and the longest an instruction takes."""

    stalls: float = 0.3
    longest: int = 20
    slow: Unit | None = None
    """A unit whose instructions take ``factor`` times as long."""
    factor: int = 50


@dataclass
class Run:
    """What happened to a program; instructions by their number in it, with cycles."""

    offered: dict[int, int] = field(default_factory=dict)
    taken: dict[int, int] = field(default_factory=dict)
    completed: dict[int, int] = field(default_factory=dict)
    points: list[int] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=lambda: dict.fromkeys(
        DISPATCH_EVENTS.members, 0))
    started: int = 0
    error_cycle: int | None = None
    done: int | None = None
    error: ErrorCode = ErrorCode.NONE
    error_at: int = 0


class _MockUnit:
    """Takes instructions in order, several at a time, and completes them in order."""

    def __init__(self, bench: DispatchBench, unit: Unit) -> None:
        self._bench, self._unit = bench, unit
        self._port = getattr(bench.dispatch, unit.name.lower())
        self._under_way: list[tuple[int, int]] = []  # number, earliest completion
        self._shown: int | None = None
        self.mine: list[int] = []

    @property
    def busy(self) -> bool:
        return bool(self._under_way)

    def begin(self, program: list[int]) -> None:
        """A new program; whatever waited in the queue is gone."""
        assert not self._under_way and self._shown is None
        self.mine = []
        for number, word in enumerate(program):
            try:
                if decode(word).instruction.unit is self._unit:
                    self.mine.append(number)
            except IllegalWord:
                return

    def drive(self, ctx: Any, cycle: int) -> None:
        bench, port, run = self._bench, self._port, self._bench.result
        limits, rng = bench.limits, bench.rng
        assert ctx.get(bench.dispatch.events[f"{self._unit.name.lower()}_busy"]) == self.busy
        finishes = self.busy and self._under_way[0][1] <= cycle
        fault = bench.faults.get(self._under_way[0][0]) if finishes else None
        ctx.set(port.done, finishes)
        ctx.set(port.error, fault or ErrorCode.NONE)
        ready = len(self._under_way) < CAPACITY and rng.random() >= limits.stalls
        ctx.set(port.ready, ready)
        if finishes:
            run.completed[self._under_way.pop(0)[0]] = cycle
            if fault and run.error_cycle is None:
                run.error_cycle = cycle
        if not ctx.get(port.valid):
            assert self._shown is None, "an offer was taken back"
            return
        word = ctx.get(port.word)
        assert self._shown in (None, word), "an offer changed"
        count = sum(number in run.taken for number in self.mine)
        number = self.mine[count]
        if self._shown is None:
            self._check(number, word, cycle)
            run.offered[number] = cycle
        self._shown = None if ready else word
        if ready:
            run.taken[number] = cycle
            slow = limits.factor if limits.slow is self._unit else 1
            longest = 1 + int(rng.integers(limits.longest))
            start = self._under_way[-1][1] if self._under_way else cycle
            self._under_way.append((number, max(start + 1, cycle + slow * longest)))

    def _check(self, number: int, word: int, cycle: int) -> None:
        """The instruction is the next one, and everything that it waits for is complete."""
        bench = self._bench
        run = bench.result
        assert word == bench.program[number]
        assert run.error_cycle is None or run.error_cycle >= cycle, "offered after an error"
        decoded = decode(word)
        for unit in UNITS:
            distance = decoded[f"after_{unit.name.lower()}"]
            ahead = [n for n in bench.units[unit].mine if n < number]
            needed = ahead[: max(0, len(ahead) - (distance - 1))] if distance else []
            assert distance != 1 or needed == ahead
            for other in needed:
                assert run.completed[other] < cycle, f"{number} began before {other} was complete"
        for n in range(number):
            if decode(bench.program[n]).instruction.unit is Unit.CONTROL:
                assert all(run.completed[other] < cycle
                           for unit in UNITS for other in bench.units[unit].mine if other < n)


class DispatchBench:
    """Programs one after the other on the same dispatcher."""

    def __init__(
        self, limits: Limits, rng: np.random.Generator, architecture: Architecture = PRESETS["tiny"]
    ) -> None:
        self.limits, self.rng, self.architecture = limits, rng, architecture
        self.dispatch = Dispatch(architecture)
        self.units = {unit: _MockUnit(self, unit) for unit in UNITS}
        self.program: list[int] = []
        self.faults: dict[int, ErrorCode] = {}
        self.result = Run()
        self.memory: BusMemory | None = None
        self._cycle = 0

    async def run(
        self, ctx: Any, program: list[int], *, faults: dict[int, ErrorCode] | None = None,
        bad: frozenset[int] = frozenset(), address: int = 0x1000, bases: tuple[int, ...] = (),
        patience: int = 20_000, latency: int = 6,
    ) -> Run:
        """Run a program; ``faults`` are errors that units report as instructions complete."""
        dispatch, stalls = self.dispatch, self.limits.stalls
        self.program, self.faults, self.result = program, faults or {}, Run()
        self.memory = BusMemory(dispatch, self.architecture.bus_bytes, program, address, bad,
                                latency, stalls, self.rng)
        for unit in UNITS:
            self.units[unit].begin(program)
        assert not ctx.get(dispatch.running)
        ctx.set(dispatch.program, address)
        for n, base in enumerate(bases):
            ctx.set(dispatch.bases[n], base)
        ctx.set(dispatch.start, 1)
        self.result.started = self._cycle
        await self._tick(ctx)
        ctx.set(dispatch.start, 0)
        ctx.set(dispatch.program, 0)
        for _ in range(patience):
            assert ctx.get(dispatch.running)
            if await self._tick(ctx):
                break
        else:
            raise AssertionError(f"no end: {len(self.result.completed)} instructions completed")
        assert not ctx.get(dispatch.running) and not self.memory.outstanding
        self.result.error = ErrorCode(ctx.get(dispatch.error))
        self.result.error_at = ctx.get(dispatch.error_at)
        for n in range(len(bases)):
            ctx.set(dispatch.bases[n], 0)
        return self.result

    async def _tick(self, ctx: Any) -> bool:
        """One cycle; returns whether the program ended in it."""
        dispatch, run = self.dispatch, self.result
        assert self.memory is not None
        for unit in UNITS:
            self.units[unit].drive(ctx, self._cycle)
        self.memory.drive(ctx)
        waiting = ctx.get(dispatch.waiting)
        ctx.set(dispatch.resume, waiting and self.rng.random() < 0.2)
        done = ctx.get(dispatch.done)
        assert ctx.get(dispatch.ready_again) == done
        host = ctx.get(dispatch.host)
        events = ctx.get(dispatch.events)
        for name in DISPATCH_EVENTS.members:
            run.events[name] += events[name]
        if done:
            assert not any(unit.busy for unit in self.units.values())
            run.done = self._cycle
        await ctx.tick()
        self._cycle += 1
        if host:
            run.points.append(ctx.get(dispatch.point))
            assert ctx.get(dispatch.waiting)
            hosts = [n for n, word in enumerate(self.program) if word & 0xFF == HOST.opcode]
            here = hosts[len(run.points) - 1]
            assert all(n in run.completed for unit in self.units.values() for n in unit.mine
                       if n < here)
            assert not any(n in run.offered for unit in self.units.values() for n in unit.mine
                           if n > here)
        return bool(done)

    def simulate(self, bench: Any) -> None:
        """Run a test bench."""
        simulator = Simulator(self.dispatch)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()
