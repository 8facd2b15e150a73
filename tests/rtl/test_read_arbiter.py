"""The read arbiter's RTL in Amaranth's simulator: priority, routing, handshakes, latencies."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from rtl.architecture import Architecture
from rtl.axi import INCR
from rtl.read_arbiter import ReadArbiter

Rng = np.random.Generator
Bursts = list[tuple[int, int]]
"""Address and length field of each."""


@dataclass
class Seen:
    """What happened: cycle and bursts at the port, cycle and beats at the clients."""

    bursts: list[tuple[int, int, int, int]] = field(default_factory=list)
    beats: list[list[tuple[int, int, int, int]]] = field(default_factory=lambda: [[], []])
    offered: list[list[int]] = field(default_factory=lambda: [[], []])
    sent: list[int] = field(default_factory=list)


def beat(address: int, number: int) -> tuple[int, int]:
    """Data and response of a beat."""
    return address * 1000 + number, (address + number) % 4


def play(bus: int, wanted: tuple[Bursts, Bursts], rng: Rng, pace: float = 1.0) -> Seen:
    """Both clients ask for their bursts; everything moves with chance ``pace`` in a cycle."""
    arbiter = ReadArbiter(Architecture.make(bus_bytes=bus))
    axi, clients = arbiter.axi, (arbiter.program, arbiter.data)
    waiting, seen = [deque(bursts) for bursts in wanted], Seen()
    total = sum(length + 1 for bursts in wanted for _, length in bursts)

    async def bench(ctx: Any) -> None:
        answers: deque[tuple[int, int, int, bool]] = deque()
        asking, answering = [False, False], False
        held: tuple[int, ...] | None = None
        for cycle in range(20 * total + 200):
            for number, client in enumerate(clients):
                asking[number] = bool(waiting[number]) and (asking[number] or rng.random() < pace)
                ctx.set(client.ar_valid, asking[number])
                if asking[number]:
                    ctx.set(client.ar_address, waiting[number][0][0])
                    ctx.set(client.ar_length, waiting[number][0][1])
                ctx.set(client.r_ready, rng.random() < pace)
            answering = bool(answers) and (answering or rng.random() < pace)
            ctx.set(axi.rvalid, answering)
            if answering:
                identity, address, number, last = answers[0]
                data, response = beat(address, number)
                ctx.set(axi.rid, identity)
                ctx.set(axi.rdata, data)
                ctx.set(axi.rresp, response)
                ctx.set(axi.rlast, last)
            # No output of the port follows one of its inputs within the cycle.
            outputs = ctx.get(axi.arvalid), ctx.get(axi.rready)
            ctx.set(axi.arready, 1)
            assert outputs == (ctx.get(axi.arvalid), ctx.get(axi.rready))
            ctx.set(axi.arready, rng.random() < pace)
            assert outputs == (ctx.get(axi.arvalid), ctx.get(axi.rready))

            payload = ctx.get(axi.arid), ctx.get(axi.araddr), ctx.get(axi.arlen)
            assert held is None or (outputs[0] and payload == held)
            held = payload if outputs[0] and not ctx.get(axi.arready) else None
            if outputs[0] and ctx.get(axi.arready):
                assert ctx.get(axi.arsize) == bus.bit_length() - 1
                assert ctx.get(axi.arburst) == INCR
                seen.bursts.append((cycle, *payload))
                length = payload[2]
                answers += [(*payload[:2], n, n == length) for n in range(length + 1)]
            for number, client in enumerate(clients):
                if asking[number] and ctx.get(client.ar_ready):
                    seen.offered[number].append(cycle)
                    waiting[number].popleft()
                    asking[number] = False
                if ctx.get(client.r_valid) and ctx.get(client.r_ready):
                    seen.beats[number].append((cycle, ctx.get(client.r_data),
                                               ctx.get(client.r_error), ctx.get(client.r_last)))
            if answering and outputs[1]:
                seen.sent.append(cycle)
                answers.popleft()
                answering = False
            if sum(map(len, seen.beats)) == total:
                return
            await ctx.tick()

    simulator = Simulator(arbiter)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return seen


@pytest.mark.parametrize("pace", [1.0, 0.6, 0.25])
def test_bursts_and_beats(pace: float, rng: Rng) -> None:
    """Every burst once and in order, every beat to who asked for it."""
    wanted: tuple[Bursts, Bursts] = (
        [(2 * n * 64 + 64, int(rng.integers(5))) for n in range(25)],
        [((1 << 63) + 2 * n * 64, int(rng.integers(5))) for n in range(60)],
    )
    seen = play(64, wanted, rng, pace)
    for number, bursts in enumerate(wanted):
        assert [burst[2:] for burst in seen.bursts if burst[1] == number] == bursts
        expected = [(*beat(address, n), n == length)
                    for address, length in bursts for n in range(length + 1)]
        assert [one[1:] for one in seen.beats[number]] == expected
    assert len(seen.bursts) == 85


@pytest.mark.parametrize("bus", [32, 128])
def test_priority_latency_and_rate(bus: int, rng: Rng) -> None:
    """The program goes first; a burst and a beat a cycle; one cycle either way."""
    seen = play(bus, ([(n, 0) for n in range(10)], [(n, 1) for n in range(10)]), rng)
    assert [burst[1] for burst in seen.bursts] == [0] * 10 + [1] * 10
    cycles = [burst[0] for burst in seen.bursts]
    assert cycles == list(range(cycles[0], cycles[0] + 20))
    assert cycles == [cycle + 1 for offered in seen.offered for cycle in offered]
    arrived = [one[0] for beats in seen.beats for one in beats]
    assert arrived == [cycle + 1 for cycle in seen.sent]
    assert arrived == list(range(arrived[0], arrived[0] + 30))
