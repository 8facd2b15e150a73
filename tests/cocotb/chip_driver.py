"""The whole chip between cocotbext-axi's master and memory, watched on every channel."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import cocotb
import numpy as np
import numpy.typing as npt
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, RisingEdge, with_timeout
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam

from rtl.architecture import PRESETS
from rtl.axi import BOUNDARY, INCR
from rtl.chunk import WORD_BYTES
from rtl.isa import BASES, SCALARS
from rtl.registers import Control, ErrorCode, Interrupt, Status, offset_of
from sim.interpreter import ProgramError

ARCHITECTURE = PRESETS["tiny"]
BEAT = ARCHITECTURE.bus_bytes
NANOSECONDS = 2  # a cycle
PATIENCE = 50_000  # cycles of a program
ENABLED = Interrupt.DONE | Interrupt.HOST

PAYLOADS = {
    "m_axi_ar": ("addr", "id", "len", "size", "burst"),
    "m_axi_aw": ("addr", "id", "len", "size", "burst"),
    "m_axi_w": ("data", "strb", "last"),
    "m_axi_r": ("id", "last"),
    "m_axi_b": ("id",),
    "s_axi_control_r": ("data", "resp"),
    "s_axi_control_b": ("resp",),
}
"""The channels watched, and what a transfer on them carries."""


def pauses(probability: float) -> Iterator[bool]:
    """A pause generator of cocotbext-axi: one value a cycle."""
    while True:
        yield random.random() < probability


class Monitor:
    """Checks, independently of cocotbext-axi, what AXI asks of the chip."""

    def __init__(self, dut: Any) -> None:
        self._dut = dut
        self.counts: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._lengths: list[int] = []  # beats of the writes whose data is not complete
        self._ahead: list[int] = []    # beats, with WLAST, of data ahead of its address
        self._beats = 0
        for channel, payload in PAYLOADS.items():
            cocotb.start_soon(self._watch(channel, payload))

    async def _watch(self, channel: str, payload: Sequence[str]) -> None:
        valid, ready = (getattr(self._dut, f"{channel}{name}") for name in ("valid", "ready"))
        handles = [getattr(self._dut, f"{channel}{name}") for name in payload]
        held = None
        while True:
            await FallingEdge(self._dut.clk)
            if not valid.value:
                assert held is None, f"{channel}: valid fell before ready"
                continue
            now = [int(handle.value) for handle in handles]
            assert held in (None, now), f"{channel}: the payload changed before ready"
            held = None if ready.value else now
            if held is None:
                self._taken(channel, dict(zip(payload, now, strict=True)))

    def _taken(self, channel: str, transfer: dict[str, int]) -> None:
        self.counts[channel] += 1
        if channel in ("m_axi_ar", "m_axi_aw"):
            beats = transfer["len"] + 1
            assert 1 << transfer["size"] == BEAT
            assert transfer["burst"] == INCR
            assert beats <= ARCHITECTURE.burst_beats
            end = transfer["addr"] // BEAT * BEAT + beats * BEAT - 1
            assert transfer["addr"] // BOUNDARY == end // BOUNDARY, "a burst crosses 4 KB"
        if channel == "m_axi_aw":
            assert transfer["id"] == 0
            self._lengths.append(transfer["len"] + 1)
        if channel == "m_axi_w":
            assert 0 < transfer["strb"] < 1 << BEAT
            self._beats += 1
            if transfer["last"]:
                self._ahead.append(self._beats)
                self._beats = 0
        while self._lengths and self._ahead:
            assert self._lengths.pop(0) == self._ahead.pop(0), "WLAST at the wrong beat"
        if self._lengths:
            assert self._beats < self._lengths[0], "WLAST is missing"
        if channel == "m_axi_r":
            self.counts["last"] += transfer["last"]
        for kind, outstanding in self.outstanding.items():
            assert outstanding >= 0, f"more answers than {kind}"
            self.most[kind] = max(self.most[kind], outstanding)

    @property
    def outstanding(self) -> dict[str, int]:
        """Bursts under way."""
        return {"reads": self.counts["m_axi_ar"] - self.counts["last"],
                "writes": self.counts["m_axi_aw"] - self.counts["m_axi_b"]}


class Bench:
    """The chip, its memory and its host; every channel pauses at random."""

    def __init__(self, dut: Any, size: int, pause: float = 0.0) -> None:
        self.dut = dut
        self.memory = AxiRam(AxiBus.from_prefix(dut, "m_axi"), dut.clk, dut.rst, size=size)
        self.host = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi_control"), dut.clk, dut.rst)
        for side in (self.memory, self.host):
            write, read = side.write_if, side.read_if
            for channel in (write.aw_channel, write.w_channel, write.b_channel, read.ar_channel,
                            read.r_channel):
                if pause:
                    channel.set_pause_generator(pauses(pause))

    async def start(self) -> None:
        """Clock and reset."""
        self.dut.rst.value = 1
        Clock(self.dut.clk, NANOSECONDS, "ns").start(start_high=False)
        for _ in range(3):
            await FallingEdge(self.dut.clk)
        self.dut.rst.value = 0
        self.monitor = Monitor(self.dut)

    async def write(self, name: str, value: int) -> None:
        """Write a register."""
        await self.host.write_dword(offset_of(name), value)

    async def read(self, name: str) -> int:
        """Read a register."""
        return int(await self.host.read_dword(offset_of(name)))

    def load(self, image: npt.NDArray[np.uint8]) -> None:
        """Fill the memory from address 0."""
        self.memory.write(0, image.tobytes())

    def image(self, size: int) -> npt.NDArray[np.uint8]:
        """The memory from address 0."""
        return np.frombuffer(bytes(self.memory.read(0, size)), np.uint8)

    def load_program(self, program: Sequence[int], address: int) -> None:
        """Put a program into memory."""
        self.memory.write(
            address, b"".join(word.to_bytes(WORD_BYTES, "little") for word in program))

    async def run(
        self, address: int, bases: Sequence[int] = (), scalars: Sequence[float] = ()
    ) -> int | None:
        """Start a program; returns its host point or None, raises as the interpreter does."""
        await self._write_pair("program", address)
        for n in range(BASES):
            await self._write_pair(f"base{n}", bases[n] if n < len(bases) else 0)
        for n in range(SCALARS):
            value = np.float32(scalars[n] if n < len(scalars) else 0).view(np.uint32)
            await self.write(f"scalar{n}", int(value))
        await self.write("interrupt_global", 1)
        await self.write("interrupt_enable", ENABLED)
        assert await self.read("control") & Control.IDLE
        await self.write("control", Control.START)
        return await self._wait()

    async def resume(self) -> int | None:
        """Go on after a host point."""
        await self.write("resume", 1)
        return await self._wait()

    async def _write_pair(self, name: str, value: int) -> None:
        await self.write(f"{name}_low", value & 0xFFFF_FFFF)
        await self.write(f"{name}_high", value >> 32)

    async def _wait(self) -> int | None:
        if not self.dut.interrupt.value:
            await with_timeout(RisingEdge(self.dut.interrupt), PATIENCE * NANOSECONDS, "ns")
        pending = await self.read("interrupt_status") & ENABLED
        assert pending in (Interrupt.DONE, Interrupt.HOST)
        await self.write("interrupt_status", pending)
        assert not self.dut.interrupt.value
        assert self.monitor.outstanding["writes"] == 0
        status = await self.read("status")
        if pending == Interrupt.HOST:
            assert status & Status.WAITING
            return status >> 16
        assert self.monitor.outstanding["reads"] == 0
        assert await self.read("control") & (Control.DONE | Control.IDLE) == (
            Control.DONE | Control.IDLE)
        assert not await self.read("control") & Control.DONE, "reading clears it"
        if code := status >> 8 & 0xFF:
            raise ProgramError(ErrorCode(code), await self.read("error_at"), "says the chip")
        return None
