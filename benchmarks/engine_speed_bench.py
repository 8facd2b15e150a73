"""The cocotb side of :mod:`benchmarks.engine_speed`: every cycle, Python drives the operand pins.

Runs inside the simulator; leaves cycles and seconds in ``speed.json``.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

from rtl.architecture import PRESETS
from rtl.tile import Tile

__all__ = ["CYCLES", "WORDS", "drive_operands"]

CYCLES = 20_000
WORDS = 64
"""Random operand words, made beforehand: making them is not what is measured."""


@cocotb.test()
async def drive_operands(dut: Any) -> None:
    """Fill both operand buffers, a word a cycle each, while a tile computes."""
    arch = PRESETS["tiny"]
    w2e = [random.getrandbits(len(dut.w2e_data)) for _ in range(WORDS)]
    n2s = [random.getrandbits(len(dut.n2s_data)) for _ in range(WORDS)]
    clk = dut.clk
    w2e_data, w2e_address = dut.w2e_data, dut.w2e_address
    n2s_data, n2s_address = dut.n2s_data, dut.n2s_address
    for handle in (dut.w2e_en, dut.n2s_en, dut.out_en, dut.out_address, dut.tile_valid):
        handle.value = 0
    dut.rst.value = 1
    Clock(clk, 2, "ns").start(start_high=False)
    for _ in range(2):
        await FallingEdge(clk)
    dut.rst.value = 0
    tile = Tile(a_base=0, b_base=0, c_base=0, groups=CYCLES, p_count=arch.rows,
                q_count=arch.cols, rows=arch.rows)
    dut.tile.value, dut.tile_valid.value = tile.pack(), 1
    for _ in range(2 * arch.interleave):
        await FallingEdge(clk)
    dut.tile_valid.value = 0
    dut.w2e_en.value = (1 << arch.rows) - 1
    dut.n2s_en.value = (1 << arch.cols) - 1
    start = time.perf_counter()
    for cycle in range(CYCLES):
        word = cycle % WORDS
        w2e_address.value = n2s_address.value = word
        w2e_data.value = w2e[word]
        n2s_data.value = n2s[word]
        await FallingEdge(clk)
    seconds = time.perf_counter() - start
    assert dut.busy.value, "the array must have worked all the time"
    Path("speed.json").write_text(json.dumps({"cycles": CYCLES, "seconds": seconds}))
