"""The write side of the bus, Verilated with ``write_harness.cpp``, and what every log must obey."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from amaranth.lib.wiring import Component

from rtl.architecture import Architecture
from rtl.axi import BOUNDARY, INCR
from rtl.chunk import WORD_BYTES
from rtl.netlist import to_verilog
from rtl.write_dma import WriteTiming
from sim.build import build_model, run_model
from sim.toolchain import find_yosys

__all__ = ["IDEAL", "RESPONSE", "STALLS", "Log", "Memory", "Sent", "Stall", "WriteModel"]

AW, W, B, DONE, ERROR, SKIPPED, TAKE = range(1, 8)
_EVENT = np.dtype([("kind", "u4"), ("cycle", "u4"), ("offered", "u4"), ("value", "u4"),
                   ("address", "u8"), ("strobe", "u1", 16), ("data", "u1", 128)])
RESPONSE = 40
"""Bit of a byte address from which on the two bits of the response stand."""

Memory = dict[int, bytes]
"""Words by absolute word address."""


@dataclass(frozen=True)
class Stall:
    """How the subordinate moves: chances in 256, and the rest as ``write_harness.cpp`` says."""

    aw: int = 256
    w: int = 256
    b: int = 256
    valid: int = 256
    latency: int = 1
    mode: str = "free"

    @property
    def arguments(self) -> list[str]:
        """As the harness takes them."""
        return [str(value) for value in
                (self.aw, self.w, self.b, self.valid, self.latency, self.mode)]


IDEAL = Stall()
STALLS = {
    "ideal": IDEAL,
    "all": Stall(aw=100, w=140, b=60, valid=200),
    "idle": Stall(valid=30),
    "aw": Stall(aw=12),
    "w": Stall(w=40, latency=20),
    "b": Stall(b=12, latency=200),
    "both": Stall(aw=128, w=128, mode="both"),
    "aw first": Stall(aw=128, w=200, mode="aw"),
    "w first": Stall(aw=128, w=200, mode="w"),
}


@dataclass(frozen=True)
class Sent:
    """A burst as the bus saw it; cycles are those of the first offer and of the handshakes."""

    address: int
    beats: int
    aw_offered: int
    aw: int
    w_offered: int
    w: int
    b: int


@dataclass(frozen=True)
class Log:
    """Everything that happened, checked against the rules of AXI when it is made."""

    bursts: list[Sent]
    memory: Memory
    done: npt.NDArray[np.int64]
    taken: npt.NDArray[np.int64]
    skipped: npt.NDArray[np.int64]
    errors: list[tuple[int, int]]
    """Cycle and code."""


@dataclass(frozen=True)
class WriteModel:
    """An executable of the store unit or the write DMA."""

    executable: Path
    architecture: Architecture

    @classmethod
    def build(cls, unit: Component, architecture: Architecture, *defines: str) -> WriteModel:
        """Verilate ``unit``."""
        find_yosys()
        harness = Path(__file__).with_name("write_harness.cpp")
        settings = [f"BUS_BYTES={architecture.bus_bytes}", *defines]
        model = build_model(to_verilog(unit, "dut"), "dut", harness, defines=settings)
        return cls(model, architecture)

    def run(self, given: bytes, seed: int, stall: Stall) -> Log:
        """Drive it with ``given``; raises what the harness or a rule of the bus has to say."""
        with tempfile.TemporaryDirectory() as name:
            source, output = Path(name) / "input", Path(name) / "output"
            source.write_bytes(given)
            run_model(self.executable, [source, output, str(seed), *stall.arguments])
            events = np.fromfile(output, _EVENT)
        return self._check(events)

    def _check(self, events: npt.NDArray[np.void]) -> Log:
        by_kind = {kind: events[events["kind"] == kind] for kind in range(1, 8)}
        cycles = {kind: found["cycle"].astype(np.int64) for kind, found in by_kind.items()}
        memory: Memory = {}
        bursts = self._bursts(by_kind, memory)
        self._check_outstanding(bursts)
        return Log(bursts, memory, cycles[DONE], cycles[TAKE], cycles[SKIPPED],
                   [(int(e["cycle"]), int(e["value"])) for e in by_kind[ERROR]])

    def _bursts(self, events: dict[int, npt.NDArray[np.void]], memory: Memory) -> list[Sent]:
        """Each burst against the rules that hold for it alone; ``memory`` gets its words."""
        bus = self.architecture.bus_bytes
        words = bus // WORD_BYTES
        bits = np.unpackbits(events[W]["strobe"], axis=1, bitorder="little")
        strobes = bits[:, :bus].reshape(-1, words, WORD_BYTES)
        present: npt.NDArray[np.bool_] = np.any(strobes, axis=2)
        assert np.array_equal(present, np.all(strobes, axis=2)), "words are written whole"
        assert np.all(np.any(present, axis=1)), "no beat is empty"
        ends = np.flatnonzero(events[W]["value"]) + 1
        starts = np.concatenate([[0], ends]).astype(np.int64)[: len(ends)]
        assert len(events[AW]) == len(ends) == len(events[B])
        assert not len(ends) or ends[-1] == len(events[W]), "the last beat is marked"
        assert not (events[AW]["value"] >> 24).any(), "one ID"
        assert (events[AW]["value"] >> 16 & 0xFF == INCR).all()
        assert (1 << (events[AW]["value"] >> 8 & 0xFF) == bus).all()
        found = []
        for aw, b, start, end in zip(events[AW], events[B], starts, ends, strict=True):
            address, beats = int(aw["address"]), int(aw["value"] & 0xFF) + 1
            assert beats == end - start, "WLAST exactly on the last beat"
            assert beats <= self.architecture.burst_beats
            assert address % bus == 0
            assert address // BOUNDARY == (address + beats * bus - 1) // BOUNDARY
            for number, beat in enumerate(events[W][start:end]):
                for word in np.flatnonzero(present[start + number]):
                    place = (address + number * bus) // WORD_BYTES + int(word)
                    memory[place] = beat["data"][word * WORD_BYTES :][:WORD_BYTES].tobytes()
            first, last = events[W][start], events[W][end - 1]
            sent = Sent(address, beats, int(aw["offered"]), int(aw["cycle"]),
                        int(first["offered"]), int(last["cycle"]), int(b["cycle"]))
            assert sent.w_offered >= sent.aw_offered, "no data before its address is offered"
            found.append(sent)
        return found

    def _check_outstanding(self, bursts: list[Sent]) -> None:
        limit = WriteTiming(self.architecture).outstanding
        assert limit >= 16
        for number, burst in enumerate(bursts):
            if number >= limit:
                assert burst.aw_offered > bursts[number - limit].b
