"""The control registers: the whole map, ap_ctrl_hs, interrupts and counters, over AXI4-Lite."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator
from lite_host import LiteHost

from rtl import registers
from rtl.architecture import PRESETS, Architecture
from rtl.axi import Response
from rtl.control import EVENTS, Control
from rtl.registers import COUNTERS, REGISTERS, Interrupt, Status, counter_offset, offset_of

TINY = PRESETS["tiny"]
START, DONE = registers.Control.START, registers.Control.DONE
IDLE, READY = registers.Control.IDLE, registers.Control.READY
PLAIN = [r for r in REGISTERS if r.access == "rw" and r.name not in ("control", "interrupt_status")]
WIDTHS = {"interrupt_global": 1, "interrupt_enable": 3}

Test = Callable[[Any, Control, LiteHost], Awaitable[None]]


def run(test: Test, rng: np.random.Generator, stalls: float = 0.4,
        architecture: Architecture = TINY) -> None:
    """Runs a test bench with a host at the bus."""
    control = Control(architecture)
    ran = []

    async def bench(ctx: Any) -> None:
        await test(ctx, control, LiteHost(ctx, control.bus, rng, stalls))
        ran.append(True)

    simulator = Simulator(control)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert ran


async def strobe(ctx: Any, *signals: Any) -> None:
    """One cycle with all the signals up."""
    for signal in signals:
        ctx.set(signal, 1)
    await ctx.tick()
    for signal in signals:
        ctx.set(signal, 0)


def test_map(rng: np.random.Generator) -> None:
    """Every word of the page: what it reads after reset, or SLVERR, reading and writing."""
    fixed = {
        "control": int(IDLE), "identity": 0x53415431, "version": registers.VERSION,
        "array": 6 << 16 | 3, "pipeline": 4 << 16 | 64,
        "row_words": 2048, "column_words": 32768, "result_words": 1000,
    }
    architecture = Architecture.make(rows=3, cols=6, out_words=1000)
    by_offset = {register.offset: register.name for register in REGISTERS}

    async def test(ctx: Any, control: Control, host: LiteHost) -> None:
        missing = 0
        for offset in range(0, 1 << registers.ADDRESS_BITS, 4):
            value, response = await host.read(offset + int(rng.integers(4)))
            if offset in by_offset:
                assert response == Response.OKAY
                assert value == fixed.get(by_offset[offset], 0), by_offset[offset]
            else:
                missing += 1
                assert response == Response.SLVERR
                if missing < 50:
                    assert await host.write(offset, 0xFFFFFFFF) == Response.SLVERR
        assert missing == 1024 - len(REGISTERS)
        for register in REGISTERS:
            if register.access == "r":
                assert await host.write(register.offset, 0xFFFFFFFF) == Response.OKAY
                assert await host.get(register.offset) == fixed.get(register.name, 0)

    run(test, rng, 0, architecture)


@pytest.mark.parametrize("stalls", [0.0, 0.4, 0.8])
def test_plain_registers(stalls: float, rng: np.random.Generator) -> None:
    """Random reads and writes with random strobes, and what the chip gets of them."""
    async def test(ctx: Any, control: Control, host: LiteHost) -> None:
        held = dict.fromkeys((r.name for r in PLAIN), 0)
        for _ in range(250):
            register = PLAIN[rng.integers(len(PLAIN))]
            if rng.random() < 0.4:
                assert await host.get(register.offset) == held[register.name]
                continue
            value, strobes = int(rng.integers(1 << 32)), int(rng.integers(16))
            assert await host.write(register.offset, value, strobes) == Response.OKAY
            mask = sum(0xFF << 8 * n for n in range(4) if strobes >> n & 1)
            mask &= (1 << WIDTHS.get(register.name, 32)) - 1
            held[register.name] = held[register.name] & ~mask | value & mask

        def pair(name: str) -> int:
            return held[f"{name}_high"] << 32 | held[f"{name}_low"]

        assert ctx.get(control.program) == pair("program")
        for n in range(8):
            assert ctx.get(control.bases[n]) == pair(f"base{n}")
        for n in range(16):
            assert ctx.get(control.scalars[n]) == held[f"scalar{n}"]

    run(test, rng, stalls)


def test_start_and_done(rng: np.random.Generator) -> None:
    """START clears itself, IDLE follows, DONE and READY stay until they are read."""
    async def test(ctx: Any, control: Control, host: LiteHost) -> None:
        at = offset_of("control")
        assert await host.write(at, 0xFFFFFFFF, 0xE) == Response.OKAY  # START is in lane 0
        assert await host.get(at) == IDLE
        await host.put(at, int(DONE | IDLE | READY))
        assert await host.get(at) == IDLE

        starts = 0

        async def start() -> None:
            nonlocal starts
            ctx.set(control.bus.awaddr, at)
            ctx.set(control.bus.wdata, 1)
            ctx.set(control.bus.wstrb, 0xF)
            ctx.set(control.bus.awvalid, 1)
            ctx.set(control.bus.wvalid, 1)
            ctx.set(control.bus.bready, 1)
            for cycle in range(8):
                if ctx.get(control.start):
                    starts += 1
                    assert cycle == 2, "two cycles after the write is taken"
                await ctx.tick()
                ctx.set(control.bus.awvalid, 0)
                ctx.set(control.bus.wvalid, 0)
                if starts:
                    ctx.set(control.running, 1)
            ctx.set(control.bus.bready, 0)

        await start()
        assert starts == 1
        assert await host.get(at) == 0  # running: neither START nor IDLE
        assert await host.get(offset_of("status")) == Status.RUNNING
        ctx.set(control.running, 0)
        await strobe(ctx, control.done, control.ready_again)
        assert await host.get(at) == DONE | IDLE | READY
        assert await host.get(at) == IDLE

        # A start during a run is kept for afterwards.
        ctx.set(control.running, 1)
        await host.put(at, int(START))
        assert await host.get(at) == START
        assert not ctx.get(control.start)
        ctx.set(control.running, 0)
        assert ctx.get(control.start)
        await ctx.tick()
        assert not ctx.get(control.start)

    run(test, rng)


def test_done_is_never_lost(rng: np.random.Generator) -> None:
    """DONE in any cycle of a read is seen, by this read or by the next, and once."""
    async def test(ctx: Any, control: Control, host: LiteHost) -> None:
        at, bus = offset_of("control"), control.bus
        by_this = 0
        for when in range(6):
            ctx.set(bus.araddr, at)
            ctx.set(bus.arvalid, 1)
            ctx.set(bus.rready, 1)
            seen = 0
            for cycle in range(6):
                ctx.set(control.done, cycle == when)
                if ctx.get(bus.rvalid):
                    seen += bool(ctx.get(bus.rdata) & DONE)
                await ctx.tick()
                ctx.set(bus.arvalid, 0)
            ctx.set(control.done, 0)
            ctx.set(bus.rready, 0)
            by_this += seen
            seen += sum([bool(await host.get(at) & DONE) for _ in range(2)])
            assert seen == 1, f"done in cycle {when}"
        assert 0 < by_this < 6

    run(test, rng)


def test_status_and_resume(rng: np.random.Generator) -> None:
    """STATUS and ERROR_AT show what the dispatcher says; RESUME is a strobe for each write."""
    async def test(ctx: Any, control: Control, host: LiteHost) -> None:
        for _ in range(20):
            flags, error, point, place = (int(rng.integers(1 << n)) for n in (3, 4, 16, 32))
            ctx.set(control.running, flags & 1)
            ctx.set(control.waiting, flags >> 1 & 1)
            ctx.set(control.nonfinite, flags >> 2)
            ctx.set(control.error, error)
            ctx.set(control.point, point)
            ctx.set(control.error_at, place)
            assert await host.get(offset_of("status")) == point << 16 | error << 8 | flags
            assert await host.get(offset_of("error_at")) == place
        resumed = 0
        bus = control.bus
        for strobes, value in ((0xF, 0), (1, 5), (8, 0), (0, 1)):
            ctx.set(bus.awaddr, offset_of("resume"))
            ctx.set(bus.wdata, value)
            ctx.set(bus.wstrb, strobes)
            ctx.set(bus.bready, 1)
            for cycle in range(6):
                ctx.set(bus.awvalid, cycle == 1)
                ctx.set(bus.wvalid, cycle == 0)
                resumed += ctx.get(control.resume)
                await ctx.tick()
            ctx.set(bus.bready, 0)
        assert resumed == 3, "a write without strobes writes nothing"
        assert await host.get(offset_of("resume")) == 0

    run(test, rng)


def test_interrupts(rng: np.random.Generator) -> None:
    """Events set status bits when enabled or not, 1 toggles, and the line is what both say."""
    async def test(ctx: Any, control: Control, host: LiteHost) -> None:
        events = {Interrupt.DONE: control.done, Interrupt.READY: control.ready_again,
                  Interrupt.HOST: control.host}
        line, enable, status = False, 0, 0
        levels = set()
        for _ in range(120):
            kind = rng.integers(4)
            if kind == 0:
                line = bool(rng.integers(2))
                await host.put(offset_of("interrupt_global"), int(line))
            elif kind == 1:
                enable = int(rng.integers(8))
                await host.put(offset_of("interrupt_enable"), enable)
            elif kind == 2:
                toggled = int(rng.integers(8))
                await host.put(offset_of("interrupt_status"), toggled)
                status ^= toggled
            else:
                bit = list(events)[rng.integers(3)]
                await strobe(ctx, events[bit])
                status |= bit
            assert ctx.get(control.interrupt) == (line and bool(status & enable))
            levels.add(ctx.get(control.interrupt))
            assert await host.get(offset_of("interrupt_status")) == status
        assert levels == {0, 1}

        # An event in the very cycle of a toggle is not lost.
        await host.put(offset_of("interrupt_status"), status)
        ctx.set(control.host, 1)
        for _ in range(2):
            await host.put(offset_of("interrupt_status"), int(Interrupt.HOST))
        ctx.set(control.host, 0)
        assert await host.get(offset_of("interrupt_status")) == Interrupt.HOST

    run(test, rng)


def test_counters(rng: np.random.Generator) -> None:
    """Random events against sums, then cleared by start; carries into the high halves."""
    async def test(ctx: Any, control: Control, host: LiteHost) -> None:
        sums = dict.fromkeys((counter.name for counter in COUNTERS), 0)
        amounts = ("macs", "macs_skipped")
        for _ in range(400):
            running, waiting, counted = (bool(rng.integers(2)) for _ in range(3))
            events = {
                name: int(rng.integers(1 << 48)) if name in amounts else int(rng.integers(2))
                for name in EVENTS.members if name != "counted"
            }
            ctx.set(control.running, running)
            ctx.set(control.waiting, waiting)
            ctx.set(control.events, {**events, "counted": counted})
            await ctx.tick()
            for name, amount in events.items():
                sums[name] += amount if counted or name not in amounts else 0
            sums["cycles"] += running and not waiting
            sums["host_cycles"] += waiting
        ctx.set(control.running, 0)
        ctx.set(control.waiting, 0)
        ctx.set(control.events, dict.fromkeys(EVENTS.members, 0))
        assert all(sums.values()) and sums["macs"] >> 32

        async def total(name: str) -> int:
            at = counter_offset(name)
            return await host.get(at + 4) << 32 | await host.get(at)

        for name, expected in sums.items():
            assert await total(name) == expected, name
        await host.put(offset_of("control"), int(START))
        for name in sums:
            assert await total(name) == 0, name

    run(test, rng)
