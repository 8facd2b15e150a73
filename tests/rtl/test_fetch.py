"""The fetch unit: words in order whatever the bus does, errors only where they are reached."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator
from bus_memory import BusMemory
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rtl.architecture import Architecture
from rtl.fetch import BURST, DEPTH, Fetch, FetchTiming

TIMING = FetchTiming()
PHASES = (Phase.reuse, Phase.generate)  # a smaller seed is no simpler


class Bench:
    """A fetch unit with a memory of random words."""

    def __init__(self, bus_bytes: int, count: int, longest: int = 16, **memory: Any) -> None:
        rng = np.random.default_rng(count)
        self.words = [int.from_bytes(rng.bytes(32), "little") for _ in range(count)]
        self.fetch = Fetch(Architecture.make(bus_bytes=bus_bytes, burst_beats=longest))
        self.memory = BusMemory(self.fetch, bus_bytes, self.words, **memory)
        self.cycle = 0

    async def tick(self, ctx: Any) -> None:
        self.memory.drive(ctx)
        await ctx.tick()
        self.cycle += 1

    async def start(self, ctx: Any, address: int) -> None:
        assert ctx.get(self.fetch.idle)
        ctx.set(self.fetch.program, address)
        ctx.set(self.fetch.start, 1)
        await self.tick(ctx)
        ctx.set(self.fetch.start, 0)

    async def take(
        self, ctx: Any, count: int, rng: np.random.Generator, stalls: float
    ) -> list[tuple[int, int, int]]:
        """So many words: cycle, word, failed."""
        taken: list[tuple[int, int, int]] = []
        for _ in range(100 * count + 1000):
            if len(taken) == count:
                break
            ready = rng.random() >= stalls
            ctx.set(self.fetch.ready, ready)
            # The memory first: its beat of this cycle must not change the word of this cycle.
            self.memory.drive(ctx)
            if ready and ctx.get(self.fetch.valid):
                taken.append((self.cycle, ctx.get(self.fetch.word), ctx.get(self.fetch.failed)))
            await ctx.tick()
            self.cycle += 1
        ctx.set(self.fetch.ready, 0)
        assert len(taken) == count
        return taken

    async def stop(self, ctx: Any) -> int:
        """Stop; returns the cycles until idle."""
        ctx.set(self.fetch.stop, 1)
        for cycles in range(500):
            # Before the bus moves in this cycle.
            if ctx.get(self.fetch.idle):
                ctx.set(self.fetch.stop, 0)
                assert self.memory.outstanding == 0
                assert not ctx.get(self.fetch.valid)
                return cycles
            await self.tick(ctx)
        pytest.fail("never idle")

    def run(self, bench: Any) -> None:
        simulator = Simulator(self.fetch)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()


@settings(max_examples=20, phases=PHASES)
@given(
    bus_bytes=st.sampled_from((32, 64, 128)), seed=st.integers(0, 2**32 - 1),
    stalls=st.sampled_from((0.0, 0.3, 0.8)), reader=st.sampled_from((0.0, 0.3, 0.9)),
    latency=st.integers(1, 40), longest=st.sampled_from((1, 3, 16)),
)
def test_programs(
    bus_bytes: int, seed: int, stalls: float, reader: float, latency: int, longest: int
) -> None:
    """Three programs after each other, each stopped somewhere: no word of one shows in the next."""
    rng = np.random.default_rng(seed)
    bad = frozenset(int(n) for n in rng.integers(300, size=3))
    base = int(rng.integers(1, 4)) * 4096
    bench = Bench(bus_bytes, 300, longest, base=base, bad=bad, latency=latency, stalls=stalls,
                  rng=rng)
    per_beat = bus_bytes // 32
    compared = []

    async def run(ctx: Any) -> None:
        for _ in range(3):
            first = int(rng.integers(300 // per_beat - 1)) * per_beat
            count = int(rng.integers(1, min(60, 300 - first)))
            await bench.start(ctx, base + 32 * first)
            for n, (_, word, failed) in enumerate(await bench.take(ctx, count, rng, reader), first):
                beat = range(n // per_beat * per_beat, (n // per_beat + 1) * per_beat)
                assert failed == (not bad.isdisjoint(beat))
                assert word == bench.words[n]
                compared.append(n)
            await bench.stop(ctx)

    bench.run(run)
    assert len(compared) >= 3
    assert max(beats for _, _, beats in bench.memory.bursts) <= min(BURST, longest)


def test_end_of_memory() -> None:
    """Prefetching beyond the last word does no harm until the reader gets there."""
    bench, rng = Bench(64, 10), np.random.default_rng(0)

    async def run(ctx: Any) -> None:
        await bench.start(ctx, 0)
        assert not any(failed for _, _, failed in await bench.take(ctx, 10, rng, 0.0))
        assert all(failed for _, _, failed in await bench.take(ctx, 2, rng, 0.0))
        await bench.stop(ctx)

    bench.run(run)
    assert bench.memory.delivered > 5


@pytest.mark.parametrize("bus_bytes", [32, 64, 128])
def test_timing(bus_bytes: int) -> None:
    """The constants, a word a cycle, and no more beats asked for than there is room."""
    latency = 8
    bench, rng = Bench(bus_bytes, 400, latency=latency), np.random.default_rng(0)

    async def run(ctx: Any) -> None:
        await bench.start(ctx, 0)
        for _ in range(60):
            await bench.tick(ctx)
        assert bench.memory.delivered == DEPTH and len(bench.memory.bursts) == 2
        assert bench.memory.first_valid == TIMING.request
        taken = await bench.take(ctx, 16 * bus_bytes // 32, rng, 0.0)
        cycles = [cycle for cycle, _, _ in taken]
        assert cycles == list(range(cycles[0], cycles[0] + len(cycles)))
        for _ in range(60):
            await bench.tick(ctx)
        assert await bench.stop(ctx) == TIMING.stop

    bench.run(run)

    fresh = Bench(bus_bytes, 400, latency=latency)

    async def first_word(ctx: Any) -> None:
        await fresh.start(ctx, 0)
        (cycle, _, _), = await fresh.take(ctx, 1, rng, 0.0)
        asked = fresh.memory.bursts[0][0]
        assert cycle == asked + latency + TIMING.deliver

    fresh.run(first_word)
