"""The dispatcher: order, waits, fences and errors, with mock units of random speed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dispatch_bench import UNITS, DispatchBench, Limits, Run
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rtl.architecture import Architecture
from rtl.dispatch import DispatchTiming
from rtl.instruction import Unit
from rtl.isa import (
    CLEAR,
    COMPUTE,
    END,
    FENCE,
    HOST,
    INSTRUCTIONS,
    LOAD_A,
    STORE,
)
from rtl.issue import LAG
from rtl.registers import ErrorCode

TIMING = DispatchTiming()
PHASES = (Phase.reuse, Phase.generate)  # a smaller seed is no simpler
AFTER = [f"after_{unit.name.lower()}" for unit in UNITS]
DENSE = COMPUTE.encode()


def random_program(rng: np.random.Generator, length: int, waits: float) -> list[int]:
    """Instructions of all kinds; ``waits`` is the share of header fields in use."""
    program = []
    weights = rng.dirichlet(np.ones(len(UNITS)) * 2)
    for _ in range(length):
        if rng.random() < 0.05:
            program.append(FENCE.encode() if rng.random() < 0.5
                           else HOST.encode(point=int(rng.integers(1 << 16))))
            continue
        unit = UNITS[rng.choice(len(UNITS), p=weights)]
        kinds = [kind for kind in INSTRUCTIONS if kind.unit is unit]
        after = {name: (1, 2, 3, int(rng.integers(16)))[rng.integers(4)]
                 for name in AFTER if rng.random() < waits}
        program.append(kinds[rng.integers(len(kinds))].encode(**after))
    return [*program, END.encode()]


def complete(bench: DispatchBench, run: Run) -> None:
    """The whole program ran."""
    mine = sorted(n for unit in bench.units.values() for n in unit.mine)
    assert sorted(run.completed) == mine
    assert run.events["instructions"] == len(bench.program)
    assert run.error == ErrorCode.NONE
    assert run.points == [word >> 24 & 0xFFFF for word in bench.program
                          if word & 0xFF == HOST.opcode]


@settings(max_examples=8, phases=PHASES)
@given(
    seed=st.integers(0, 2**32 - 1), waits=st.sampled_from((0.1, 0.4, 1.0)),
    bus_bytes=st.sampled_from((32, 64, 128)),
    limits=st.builds(Limits, stalls=st.sampled_from((0.0, 0.3, 0.8)),
                     longest=st.sampled_from((1, 10, 60))),
)
def test_random_programs(seed: int, waits: float, bus_bytes: int, limits: Limits) -> None:
    """No instruction begins before those that it waits for are complete, and all programs end."""
    rng = np.random.default_rng(seed)
    bench = DispatchBench(limits, rng, Architecture.make(bus_bytes=bus_bytes))
    ran = []

    async def test(ctx: Any) -> None:
        for _ in range(2):
            complete(bench, await bench.run(ctx, random_program(rng, 70, waits)))
            ran.append(True)

    bench.simulate(test)
    assert len(ran) == 2


@pytest.mark.parametrize("slow", [Unit.COMPUTE, Unit.STORE])
def test_laggard(slow: Unit, rng: np.random.Generator) -> None:
    """Counts modulo 256 hold when one queue stands still while others run ahead."""
    load, stuck = LOAD_A.encode(), STORE.encode(after_compute=1, after_load=1)
    # Two slow instructions ahead of the stuck one, then more loads than eight bits can count.
    program = [load, DENSE, DENSE, STORE.encode(after_compute=1), stuck, *[load] * 400,
               STORE.encode(after_load=15), END.encode()]
    limits = Limits(stalls=0.1, longest=4, slow=slow)
    bench = DispatchBench(limits, rng)

    async def test(ctx: Any) -> None:
        limits_cycles = 50 * 4 * 4 + 4 * 400 + 2000
        run = await bench.run(ctx, program, patience=4 * limits_cycles)
        complete(bench, run)
        ahead = sum(cycle < run.taken[4] for n, cycle in run.taken.items() if n > 4)
        assert ahead <= LAG + 1
        assert run.events["store_wait"] > 0

    bench.simulate(test)


def test_lag_is_reached(rng: np.random.Generator) -> None:
    """The laggard's test means something: loads do run ahead as far as the rule lets them."""
    program = [DENSE, STORE.encode(after_compute=1), *[LOAD_A.encode()] * 300, END.encode()]
    limits = Limits(stalls=0.0, longest=1, slow=Unit.COMPUTE, factor=600)
    bench = DispatchBench(limits, rng)

    async def test(ctx: Any) -> None:
        run = await bench.run(ctx, program)
        complete(bench, run)
        ahead = sum(cycle < run.taken[1] for n, cycle in run.taken.items() if n > 1)
        assert LAG <= ahead <= LAG + 1

    bench.simulate(test)


BAD = {
    "opcode": (0xFF, ErrorCode.OPCODE),
    "zero": (0, ErrorCode.OPCODE),
    "reserved": (CLEAR.encode() | 1 << 255, ErrorCode.RESERVED),
    "field": (DENSE & ~(0xFFFFF << COMPUTE.layout["groups"].offset), ErrorCode.FIELD),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_words(name: str, rng: np.random.Generator) -> None:
    """The word is named; what came before is completed; the next program is clean."""
    word, code = BAD[name]
    bench = DispatchBench(Limits(), rng)

    async def test(ctx: Any) -> None:
        for place in (0, 1, 25):
            head = [w for w in random_program(rng, 40, 0.4) if w & 0xFF > HOST.opcode][:place]
            assert len(head) == place
            run = await bench.run(ctx, [*head, word, *random_program(rng, 10, 0.4)])
            assert (run.error, run.error_at) == (code, place)
            assert set(run.completed) == set(run.taken) == set(run.offered)
            complete(bench, await bench.run(ctx, random_program(rng, 10, 0.4)))

    bench.simulate(test)


def test_unit_errors(rng: np.random.Generator) -> None:
    """The first error of a unit stops the offers, wherever it comes, and is not overwritten."""
    bench = DispatchBench(Limits(), rng)

    async def test(ctx: Any) -> None:
        cut_short = 0
        for _ in range(8):
            program = random_program(rng, 60, 0.5)
            units = [n for n, word in enumerate(program) if word & 0xFF > HOST.opcode]
            faults = {int(n): ErrorCode(int(rng.integers(4, 10)))
                      for n in rng.choice(units, 3, replace=False)}
            run = await bench.run(ctx, program, faults=faults)
            first = [n for n in faults if run.completed.get(n) == run.error_cycle]
            assert run.error in [faults[n] for n in first]
            assert run.error_at == run.events["instructions"] - 1 >= min(first)
            assert set(run.completed) == set(run.taken) == set(run.offered)
            cut_short += len(run.taken) < len(units)
        assert cut_short > 4
        complete(bench, await bench.run(ctx, random_program(rng, 40, 0.5)))

    bench.simulate(test)


def test_fetch_errors(rng: np.random.Generator) -> None:
    """A beat with an error counts only if the program gets there."""
    bench = DispatchBench(Limits(), rng)
    program = random_program(rng, 20, 0.3)

    async def test(ctx: Any) -> None:
        run = await bench.run(ctx, program, bad=frozenset({11}))
        assert (run.error, run.error_at) == (ErrorCode.FETCH, 10)
        assert set(run.completed) == set(run.taken)
        assert bench.memory is not None
        # Words 22 and 23 are prefetched, and never reached.
        run = await bench.run(ctx, program, bad=frozenset({22, 23}))
        complete(bench, run)
        assert bench.memory.delivered > 11

    bench.simulate(test)


def test_bases(rng: np.random.Generator) -> None:
    """Addresses that are not aligned end the program before anything is fetched."""
    bench = DispatchBench(Limits(), rng)
    program = [LOAD_A.encode(), END.encode()]

    async def test(ctx: Any) -> None:
        wrong: list[tuple[int, tuple[int, ...]]] = [(0x1000 + n, ()) for n in (1, 32)]
        wrong += [(0x1000, (0,) * n + (1 << bit,)) for n in range(8) for bit in (0, 4)]
        for address, bases in wrong:
            run = await bench.run(ctx, program, address=address, bases=bases)
            assert (run.error, run.error_at) == (ErrorCode.BASE, 0)
            assert bench.memory is not None
            assert bench.memory.bursts == [] and not run.taken
        complete(bench, await bench.run(ctx, program, bases=(32, 1 << 63, 96)))

    bench.simulate(test)


def test_timing(rng: np.random.Generator) -> None:
    """The constants of :class:`DispatchTiming`, and an instruction a cycle."""
    bench = DispatchBench(Limits(stalls=0.0, longest=1), rng)
    latency = 20

    async def test(ctx: Any) -> None:
        program = [
            LOAD_A.encode(), STORE.encode(), DENSE, CLEAR.encode(),
            STORE.encode(after_load=1), DENSE, CLEAR.encode(), LOAD_A.encode(),
            FENCE.encode(), LOAD_A.encode(), STORE.encode(after_load=1), END.encode(),
        ]
        run = await bench.run(ctx, program, latency=latency)
        complete(bench, run)
        memory = bench.memory
        assert memory is not None and memory.first_valid == TIMING.begin
        first = run.started + TIMING.begin + latency + TIMING.issue
        assert [run.offered[n] for n in range(8)] == list(range(first, first + 8))
        before = max(run.completed[n] for n in range(8))
        assert run.offered[9] == before + TIMING.fence
        assert run.offered[10] == run.completed[9] + TIMING.wake
        assert run.done == run.completed[10] + TIMING.finish

    bench.simulate(test)
