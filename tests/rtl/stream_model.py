"""A unit that takes 256-bit words, Verilated with ``stream_harness.cpp``."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.lib.wiring import Component

from rtl.netlist import to_verilog
from sim.build import build_model, run_model
from sim.toolchain import find_yosys

__all__ = ["Given", "StreamModel", "Words"]

Words = npt.NDArray[np.uint16]
_PARTS = 8


@dataclass(frozen=True)
class Given:
    """What one output stream gave: ``words`` (count, 16), and for each its ``last``, ``cycle``.

    Cycles count from that of the first word accepted.
    """

    words: Words
    last: npt.NDArray[np.bool_]
    cycle: npt.NDArray[np.int64]


@dataclass(frozen=True)
class StreamModel:
    """An executable; ``parts`` 32-bit parts of the output port of a unit without handshakes."""

    executable: Path
    parts: int

    @classmethod
    def build(cls, unit: Component, *, parts: int = _PARTS, **defines: Any) -> StreamModel:
        """Verilate ``unit``; ``defines`` are those that the harness describes."""
        find_yosys()
        harness = Path(__file__).with_name("stream_harness.cpp")
        settings = [f"{name}={value}" for name, value in {**defines, "PARTS": parts}.items()]
        return cls(
            build_model(to_verilog(unit, "unit"), "unit", harness, defines=settings), parts
        )

    def _run(self, words: Words, patterns: npt.NDArray[np.uint32], *arguments: int) -> bytes:
        records = np.empty((len(words), _PARTS + 1), np.uint32)
        records[:, :_PARTS] = np.ascontiguousarray(words).view(np.uint32)
        records[:, _PARTS] = patterns
        with tempfile.TemporaryDirectory() as name:
            given, got = Path(name) / "input", Path(name) / "output"
            records.tofile(given)
            run_model(self.executable, [given, got, *map(str, arguments)])
            return got.read_bytes()

    def stream(
        self, words: Words, expected: tuple[int, int], *, seed: int = 0,
        patterns: npt.NDArray[np.uint32] | None = None, stalls: tuple[int, int, int] = (0, 0, 0),
    ) -> tuple[Given, Given]:
        """Both streams, until they have given ``expected`` words; stalls of input, A and B."""
        settings = np.zeros(len(words), np.uint32) if patterns is None else patterns
        raw = self._run(words, settings, seed, *stalls, *expected)
        records = np.frombuffer(raw, np.uint32).reshape(-1, 3 + _PARTS)
        a, b = (records[records[:, 0] == stream] for stream in range(2))
        return _given(a), _given(b)

    def free(
        self, words: Words, patterns: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.uint32]:
        """The output port of a unit without handshakes in each cycle, (cycles, parts)."""
        raw = self._run(words, patterns, *[0] * 6)
        return np.frombuffer(raw, np.uint32).reshape(-1, self.parts)


def _given(records: npt.NDArray[np.uint32]) -> Given:
    words = np.ascontiguousarray(records[:, 3:]).view(np.uint16)
    return Given(words, records[:, 2] != 0, records[:, 1].astype(np.int64))
