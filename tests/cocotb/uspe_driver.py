"""One USPE, driven by a script: which word is at which port in which cycle."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from amaranth.lib import data
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge
from operands import Half

from rtl.architecture import MAX_M, PRESETS
from rtl.links import PSUM, STEP, weight_word
from rtl.uspe import UspeTiming

ARCHITECTURE = PRESETS["tiny"]
TIMING = UspeTiming(ARCHITECTURE)
WEIGHT = weight_word(ARCHITECTURE)


def pack(layout: data.StructLayout, **fields: int) -> int:
    """A word of ``layout`` as an integer."""
    word = 0
    for name, value in fields.items():
        word |= int(value) << layout[name].offset
    return word


@dataclass
class Script:
    """What is at the west and north ports in each cycle; nothing where nothing is said."""

    step: dict[int, int] = field(default_factory=dict)
    lanes: dict[int, int] = field(default_factory=dict)
    weight: dict[int, int] = field(default_factory=dict)
    psum: dict[int, int] = field(default_factory=dict)

    def mac(self, cycle: int, group: Half, **step: int) -> None:
        """One step on a group of activations; the lanes above it hold noise."""
        lanes = np.frombuffer(random.randbytes(2 * MAX_M), np.uint16).copy()
        lanes[: len(group)] = group.view(np.uint16)
        self.step[cycle] = pack(STEP, valid=1, **step)
        self.lanes[cycle] = int.from_bytes(lanes.tobytes(), "little")

    def packed_weight(self, cycle: int, value: np.float16, index: int, **fields: int) -> None:
        """One packed weight, in passing or with ``load=1``."""
        weight = int(value.view(np.uint16)) | int(index) << 16
        self.weight[cycle] = pack(WEIGHT, weight=weight, **fields)

    def partial_sum(self, cycle: int, bits: int) -> None:
        """One valid sum from the north."""
        self.psum[cycle] = pack(PSUM, valid=1, value=bits)

    @property
    def end(self) -> int:
        """The cycle after the last that says something."""
        return 1 + max(max(port, default=0) for port in
                       (self.step, self.lanes, self.weight, self.psum))


class Bench:
    """The device with its handles looked up once."""

    def __init__(self, dut: Any) -> None:
        self.clk, self.rst = dut.clk, dut.rst
        self.inputs = {"step": dut.west__step, "lanes": dut.west__lanes,
                       "weight": dut.north__weight, "psum": dut.north__psum}
        self.sum = dut.south__psum

    async def start(self) -> None:
        """Clock and reset."""
        for handle in self.inputs.values():
            handle.value = 0
        self.rst.value = 1
        Clock(self.clk, 2, "ns").start(start_high=False)
        for _ in range(3):
            await FallingEdge(self.clk)
        self.rst.value = 0
        await FallingEdge(self.clk)

    async def run(self, script: Script) -> dict[int, int]:
        """Play ``script`` and let everything drain: sums at the south port, by cycle."""
        ports = [(handle, getattr(script, name)) for name, handle in self.inputs.items()]
        tail = TIMING.result + 2 * TIMING.drain_hop
        sums: dict[int, int] = {}
        for cycle in range(script.end + tail):
            word = int(self.sum.value)
            if word & 1:
                sums[cycle] = word >> 1
            for handle, words in ports:
                handle.value = words.get(cycle, 0)
            await FallingEdge(self.clk)
        return sums
