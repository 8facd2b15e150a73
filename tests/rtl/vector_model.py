"""The vector engine, Verilated with ``vector_harness.cpp``, and scripts to play on it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rtl.architecture import Architecture
from rtl.chunk import LANES
from rtl.isa import LINES, Decoded
from rtl.netlist import to_verilog
from rtl.vector import VectorUnit
from sim.build import build_model, run_model
from sim.toolchain import find_yosys

__all__ = ["Bits", "Ran", "Script", "VectorModel"]

Bits = npt.NDArray[np.uint32]
_PACKS = (2, 2, 4, 16, 2 * LANES // 4)


@dataclass(frozen=True)
class Ran:
    """What a run gave for each instruction, and how many cycles a fill waited."""

    taken: list[int]
    done: list[int]
    error: list[int]
    nonfinite: list[int]
    waits: int


@dataclass
class Script:
    """Commands of the harness, in order; each method that gives something out says so."""

    words: list[Bits] = field(default_factory=list)
    gives: list[tuple[str, int]] = field(default_factory=list)
    queued: int = 0

    def _add(self, command: int, *arguments: npt.ArrayLike) -> None:
        parts = [np.array(part, np.uint32).ravel() for part in (command, *arguments)]
        self.words.append(np.concatenate(parts))

    def scalars(self, values: Bits) -> None:
        """Set the scalar registers."""
        self._add(0, values)

    def results(self, buffers: Bits) -> None:
        """Contents (C, words) of the result buffers."""
        self._add(1, buffers.shape[1], buffers)

    def fill(self, register: int, lines: Bits, first: int = 0) -> None:
        """Queue lines (count, 16) for the fill port."""
        for number, line in enumerate(lines):
            self._add(2, register, first + number, line)

    def issue(self, *instructions: Decoded) -> None:
        """Queue instructions."""
        for instruction in instructions:
            word = instruction.encode()
            self._add(3, [word >> 32 * part & 0xFFFFFFFF for part in range(8)])
        self.queued += len(instructions)

    def run(self, pace: int = 0, mask: int = 0) -> None:
        """Gives :class:`Ran`."""
        self._add(4, pace, mask)
        self.gives.append(("run", 4 * self.queued + 1))
        self.queued = 0

    def register(self, number: int) -> None:
        """Gives the 64 lines of a register."""
        self._add(5, number)
        self.gives.append(("register", LINES * LANES))

    def packs(self) -> None:
        """Gives the pack slots: uint16 (axis, slot, chunk, word, 16)."""
        self._add(6)
        self.gives.append(("packs", int(np.prod(_PACKS))))

    def clear(self) -> None:
        """Clear; gives whether the sticky flag is still set."""
        self._add(7)
        self.gives.append(("flag", 1))


@dataclass(frozen=True)
class VectorModel:
    """An executable of the engine of an architecture."""

    executable: Path

    @classmethod
    def build(cls, architecture: Architecture) -> VectorModel:
        """Verilate it."""
        find_yosys()
        verilog = to_verilog(VectorUnit(architecture), "vector")
        return cls(build_model(
            verilog, "vector", Path(__file__).with_name("vector_harness.cpp"),
            defines=[f"COLS={architecture.cols}", f"OUT_WORDS={architecture.out_words}"],
        ))

    def play(
        self, script: Script, seed: int = 0
    ) -> tuple[list[Ran], list[Bits], list[npt.NDArray[np.unsignedinteger]]]:
        """Runs, registers and the rest (packs, flags) that the script gives, each in order."""
        with tempfile.TemporaryDirectory() as name:
            given, got = Path(name) / "script", Path(name) / "output"
            np.concatenate(script.words).tofile(given)
            run_model(self.executable, [given, got, str(seed)])
            raw = np.fromfile(got, np.uint32)
        runs: list[Ran] = []
        registers: list[Bits] = []
        others: list[npt.NDArray[np.unsignedinteger]] = []
        for kind, size in script.gives:
            block, raw = raw[:size], raw[size:]
            if kind == "run":
                taken, done, error, nonfinite = block[:-1].reshape(-1, 4).T.astype(int).tolist()
                runs.append(Ran(taken, done, error, nonfinite, int(block[-1])))
            elif kind == "register":
                registers.append(block.reshape(LINES, LANES))
            elif kind == "packs":
                others.append(block.view(np.uint16).reshape(*_PACKS[:-1], LANES))
            else:
                others.append(block)
        assert not len(raw)
        return runs, registers, others
