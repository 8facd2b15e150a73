"""The read side of the bus, Verilated with ``read_harness.cpp``, and the memory that it shows."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.lib.wiring import Component

from rtl.architecture import Architecture
from rtl.netlist import to_verilog
from rtl.read_dma import ReadDmaTiming
from sim.build import build_model, run_model
from sim.toolchain import find_yosys

__all__ = [
    "AR", "BEAT", "COLUMN", "DONE", "ERROR", "FILL", "IDEAL", "RESPONSE", "ROW", "STALLS", "TAKEN",
    "WORD", "ReadModel", "Stall", "memory",
]

AR, BEAT, TAKEN, DONE, ERROR, ROW, COLUMN, FILL, WORD = range(1, 10)
_EVENT = np.dtype([("kind", "u4"), ("cycle", "u4"), ("value", "u4"), ("extra", "u4"),
                   ("address", "u8"), ("data", "u1", 120)])
RESPONSE = 40
"""Bit of a byte address from which on the two bits of the response stand."""

Events = npt.NDArray[Any]
Words = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Stall:
    """How the memory moves: chances in 256, and the rest as ``read_harness.cpp`` says."""

    ar: int = 256
    r: int = 256
    valid: int = 256
    take: int = 256
    latency: int = 20
    spread: int = 0


IDEAL = Stall()
STALLS = {
    "ideal": IDEAL,
    "slow bus": Stall(ar=60, r=80, spread=50),
    "slow client": Stall(take=70, valid=100, latency=0),
    "all slow": Stall(ar=128, r=128, valid=60, take=128, latency=3, spread=100),
}


def memory(addresses: npt.ArrayLike) -> Words:
    """The 16 values at each word address, as the harness makes them up."""
    words = np.asarray(addresses, np.uint64).reshape(-1, 1)
    x = words << np.uint64(4) | np.arange(16, dtype=np.uint64)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    return (x >> np.uint64(48)).astype(np.uint16)


@dataclass(frozen=True)
class ReadModel:
    """A read client's executable. The harness checks the rules of the bus."""

    executable: Path

    @classmethod
    def build(cls, device: Component, architecture: Architecture, *, unit: bool) -> ReadModel:
        """Verilate ``device``: the load unit (``unit``) or the read DMA."""
        find_yosys()
        defines = [f"BUS_BYTES={architecture.bus_bytes}",
                   f"BURST_BEATS={ReadDmaTiming(architecture).burst_beats}"]
        harness = Path(__file__).with_name("read_harness.cpp")
        return cls(build_model(to_verilog(device, "dut"), "dut", harness,
                               defines=[*defines, *(["UNIT"] if unit else [])]))

    def run(self, job: bytes, stall: Stall, seed: int = 1) -> Events:
        """All events in their order."""
        with tempfile.TemporaryDirectory() as name:
            given, got = Path(name) / "input", Path(name) / "output"
            given.write_bytes(job)
            run_model(self.executable, [
                given, got, str(seed), str(stall.ar), str(stall.r), str(stall.valid),
                str(stall.take), str(stall.latency), str(stall.spread),
            ])
            return np.fromfile(got, _EVENT)
