"""The whole chip as Verilated RTL: device memory, registers, programs.

:class:`Chip` is the host's side of the chip. Memory and AXI traffic are simulated natively
(``chip_harness.cpp``, ``chip_memory.h``), with no Python in the cycle loop; every breach of the AXI
protocol by the chip is a :class:`ToolError`.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn, Self

import numpy as np
import numpy.typing as npt

from rtl.architecture import Architecture
from rtl.axi import BOUNDARY, Response
from rtl.chunk import WORD_BYTES
from rtl.errors import ParameterError
from rtl.isa import BASES, SCALARS
from rtl.registers import COUNTERS, Control, ErrorCode, Interrupt, Status, offset_of
from sim.build import build_model
from sim.engine import cached_verilog
from sim.interpreter import ProgramError
from sim.toolchain import ToolError

__all__ = ["BusStats", "Chip", "Fault", "MemoryModel"]

_PROGRESS = ("instructions_low", "macs_low", "read_beats_low", "write_beats_low")
_SLICE_SECONDS = 0.3
_FIRST_SLICE, _LONGEST_SLICE = 1 << 10, 1 << 20


@dataclass(frozen=True)
class MemoryModel:
    """The device memory's timing.

    read_latency: cycles from an address accepted to its first beat, at least 1.
    write_latency: cycles from the last beat accepted to the response, at least 1.
    bandwidth: bytes a cycle, reads and writes together; 0: as the bus allows.
    outstanding: bursts each way that may be under way.
    jitter: up to so many cycles more latency, at random.
    stall: how often a channel pauses; 0 to 1, in random phases of more and less.
    seed: of everything random. If not 0, reads of different IDs are also answered in random order,
    and reads and writes take effect at a random point of those that AXI allows.
    """

    read_latency: int = 40
    write_latency: int = 20
    bandwidth: float = 0.0
    outstanding: int = 64
    jitter: int = 0
    stall: float = 0.0
    seed: int = 0

    @classmethod
    def fixed(cls, latency: int = 40) -> MemoryModel:
        """Every access takes ``latency`` cycles; only the bus limits the bandwidth."""
        return cls(read_latency=latency, write_latency=latency)

    @classmethod
    def stalls(cls, seed: int) -> MemoryModel:
        """Pauses, jitter and limits drawn from ``seed``, which is not 0."""
        rng = random.Random(seed)
        return cls(
            read_latency=rng.randint(1, 60), write_latency=rng.randint(1, 60),
            bandwidth=rng.choice((0.0, 6.0, 24.0, 50.5)), outstanding=rng.choice((1, 2, 4, 16)),
            jitter=rng.choice((0, 5, 40)), stall=rng.choice((0.1, 0.3, 0.6)), seed=seed,
        )

    @classmethod
    def paper(cls, architecture: Architecture) -> MemoryModel:
        """The architecture's bandwidth, with latencies of DDR4."""
        return cls(bandwidth=architecture.dram_bytes)

    def arguments(self) -> list[str]:
        """Options of the harness."""
        return [word for name, value in asdict(self).items()
                for word in (f"--{name.replace('_', '-')}", str(value))]


@dataclass(frozen=True)
class Fault:
    """Accesses that touch the bytes ``first`` to ``end - 1`` are answered with ``response``."""

    first: int
    end: int
    response: Response
    kind: Literal["read", "write"] = "read"


@dataclass(frozen=True)
class BusStats:
    """What the memory saw since reset."""

    read_beats: int
    write_beats: int
    read_bursts: int
    write_bursts: int
    most_reads: int
    """Read bursts under way at once, at most."""
    most_writes: int
    """Write bursts under way at once, at most."""
    read_held: int
    """Cycles in which a read beat waited for the chip."""


class Chip:
    """The chip with ``memory_bytes`` of memory; a context manager that owns its process.

    Parameters
    ----------
    trace: write an FST waveform to this file.
    progress: told when the model has to be built first.
    patience: cycles without any progress after which the chip counts as hanging.

    Raises :class:`ToolError` when the model cannot be built, and from every method when the
    harness stops, with its message.
    """

    def __init__(
        self, architecture: Architecture, memory_bytes: int, *,
        model: MemoryModel = MemoryModel(),
        trace: Path | None = None, progress: Callable[[str], None] | None = None,
        patience: int = 1 << 21,
    ) -> None:
        if memory_bytes <= 0 or memory_bytes % BOUNDARY:
            nearest = max(1, round(memory_bytes / BOUNDARY)) * BOUNDARY
            raise ParameterError("memory_bytes", memory_bytes,
                                 f"must be a multiple of {BOUNDARY}", nearest)
        self.architecture = architecture
        self._patience = patience
        here = Path(__file__)
        executable = build_model(
            cached_verilog(architecture, "sat"), "sat", here.with_name("chip_harness.cpp"),
            headers=[here.with_name("chip_memory.h")],
            defines=[f"BUS_BYTES={architecture.bus_bytes}",
                     f"BURST_BEATS={architecture.burst_beats}"],
            trace=trace is not None, progress=progress,
        )
        with tempfile.NamedTemporaryFile(prefix="nmsat-") as file:
            # Both sides keep the pages when the name is gone.
            self.memory: npt.NDArray[np.uint8] = np.memmap(
                file, np.uint8, "w+", shape=(memory_bytes,))
            self._process = subprocess.Popen(
                [executable, file.name, *model.arguments()], text=True, bufsize=1,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            try:
                self._ask("cycles")  # the file is mapped
                if trace is not None:
                    self._ask(f"trace {trace.absolute()}")
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; ``memory`` stays."""
        process = self._process
        if process.poll() is None:
            try:
                process.communicate("quit\n", timeout=5)  # lets it finish its waveform
            except (subprocess.TimeoutExpired, OSError, ValueError):
                process.kill()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(OSError):  # a command that nobody read
                if pipe is not None:
                    pipe.close()

    def _ask(self, command: str) -> str:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(command + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (OSError, ValueError):
            answer = ""
        if not answer:
            self._fail(command)
        return answer.strip()

    def _fail(self, command: str) -> NoReturn:
        process = self._process
        assert process.stderr is not None
        message = "it was closed" if process.stderr.closed else process.stderr.read().strip()
        reason = message or f"status {process.wait()}"
        raise ToolError(f"the model of the chip stopped at {command!r}: {reason}")

    # Registers.

    def write(self, name: str, value: int) -> None:
        """Write a register, see :data:`rtl.registers.REGISTERS`."""
        answer = self._ask(f"write {offset_of(name)} {value & 0xFFFF_FFFF}")
        if answer != "ok":
            raise ToolError(f"writing {name}: {answer}")

    def read(self, name: str) -> int:
        """Read a register."""
        answer = self._ask(f"read {offset_of(name)}")
        if not answer.isdecimal():
            raise ToolError(f"reading {name}: {answer}")
        return int(answer)

    def counters(self) -> dict[str, int]:
        """All counters by name; consistent while no program runs."""
        return {counter.name: self.read(f"{counter.name}_low")
                | self.read(f"{counter.name}_high") << 32 for counter in COUNTERS}

    @property
    def nonfinite(self) -> bool:
        """The sticky flag."""
        return bool(self.read("status") & Status.NONFINITE)

    # Programs.

    def load(self, program: Sequence[int], address: int) -> None:
        """Put the words of a program into memory."""
        raw = b"".join(word.to_bytes(WORD_BYTES, "little") for word in program)
        self.memory[address : address + len(raw)] = np.frombuffer(raw, np.uint8)

    def start(
        self, address: int, bases: Sequence[int] = (), scalars: Sequence[float] = ()
    ) -> int | None:
        """Run the program at ``address``; returns as :meth:`wait`.

        ``bases`` and ``scalars`` are those of :class:`sim.interpreter.Interpreter`.
        """
        self._write_pair("program", address)
        for n in range(BASES):
            self._write_pair(f"base{n}", bases[n] if n < len(bases) else 0)
        bits = np.zeros(SCALARS, np.float32)
        bits[: len(scalars)] = scalars
        for n, value in enumerate(bits.view(np.uint32)):
            self.write(f"scalar{n}", int(value))
        self.write("interrupt_global", 1)
        self.write("interrupt_enable", Interrupt.DONE | Interrupt.HOST)
        self.write("control", Control.START)
        return self.wait()

    def resume(self) -> int | None:
        """Go on after a host point; returns as :meth:`wait`."""
        self.write("resume", 1)
        return self.wait()

    def wait(self) -> int | None:
        """Let the program run to its next host point, which is returned, or to its end: None.

        Raises :class:`sim.interpreter.ProgramError` with what the chip reports, and
        :class:`ToolError` if the chip hangs.
        """
        self._run_to_interrupt()
        pending = self.read("interrupt_status")
        self.write("interrupt_status", pending)  # writing 1 toggles
        status = self.read("status")
        if pending & Interrupt.DONE:
            done = self.read("control")
            if not done & Control.DONE or not done & Control.IDLE:
                raise ToolError(f"the chip ended, but its CONTROL is {done:#x}")
            if code := status >> 8 & 0xFF:
                raise ProgramError(ErrorCode(code), self.read("error_at"), "says the chip")
            return None
        if pending & Interrupt.HOST and status & Status.WAITING:
            return status >> 16
        raise ToolError(f"an interrupt {pending:#x} without cause, status {status:#x}")

    def _write_pair(self, name: str, value: int) -> None:
        self.write(f"{name}_low", value & 0xFFFF_FFFF)
        self.write(f"{name}_high", value >> 32)

    def _run_to_interrupt(self) -> None:
        cycles, quiet = _FIRST_SLICE, 0
        progress: list[int] = []
        while True:
            began = time.monotonic()
            if self._ask(f"run {cycles}").startswith("interrupt"):
                return
            quiet += cycles
            took = time.monotonic() - began
            # Slices are short in time, so that this process stays responsive and sees hangs.
            cycles = 2 * cycles if took < _SLICE_SECONDS else max(cycles // 2, _FIRST_SLICE)
            cycles = min(cycles, _LONGEST_SLICE, self._patience)
            before, progress = progress, [self.read(name) for name in _PROGRESS]
            if progress != before:
                quiet = 0
            elif quiet >= self._patience:
                raise ToolError(
                    f"the chip hangs: no progress in {quiet} cycles, status "
                    f"{self.read('status'):#x}, instruction {progress[0]}, {self.stats()}")

    # The bench.

    def inject(self, *faults: Fault) -> None:
        """From now on these accesses fail, and no others but those beyond the memory."""
        words = [f"{fault.first} {fault.end} {int(fault.response)} {fault.kind}"
                 for fault in faults]
        self._ask(" ".join(["faults", *words]))

    def idle(self, cycles: int) -> None:
        """Let so many cycles go by."""
        self._ask(f"idle {cycles}")

    @property
    def cycles(self) -> int:
        """Clock cycles simulated since reset."""
        return int(self._ask("cycles"))

    def stats(self) -> BusStats:
        """What the memory saw since reset."""
        return BusStats(*map(int, self._ask("stats").split()))
