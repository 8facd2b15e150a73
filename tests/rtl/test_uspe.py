"""Latencies of one USPE, measured in Amaranth's simulator, against the formulas that state them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from amaranth.lib import data
from amaranth.sim import Simulator

from rtl.architecture import MAX_N, Architecture
from rtl.links import LANES, PSUM, STEP, weight_word
from rtl.uspe import Uspe, UspeTiming

ONE = 0x3C00
WINDOW = 60

Script = dict[int, dict[str, Any]]
"""Words by cycle and port: step, lanes, weight, psum."""


def architecture(stages: int) -> Architecture:
    """The smallest one that differs in the adder."""
    return Architecture.make(rows=4, cols=4, adder_stages=stages)


def single(number: float) -> int:
    """FP32 bits."""
    return int(np.float32(number).view(np.uint32))


def play(stages: int, script: Script, observe: Callable[[Uspe], Any]) -> list[Any]:
    """Play ``script`` for WINDOW cycles; what ``observe`` selects, in each of them."""
    uspe = Uspe(architecture(stages))
    layouts = {"step": STEP, "lanes": LANES, "weight": weight_word(uspe.architecture),
               "psum": PSUM}
    ports = {"step": uspe.west.step, "lanes": uspe.west.lanes,
             "weight": uspe.north.weight, "psum": uspe.north.psum}
    seen = []

    async def bench(ctx: Any) -> None:
        for cycle in range(WINDOW):
            for name, port in ports.items():
                empty: Any = [] if isinstance(layouts[name], data.ArrayLayout) else {}
                ctx.set(port, script.get(cycle, {}).get(name, empty))
            seen.append(ctx.get(observe(uspe)))
            await ctx.tick()

    simulator = Simulator(uspe)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return seen


def add(script: Script, cycle: int, **words: Any) -> None:
    """One more word in a cycle."""
    script.setdefault(cycle, {}).update(words)


def load(script: Script, cycle: int, value: int, **fields: int) -> None:
    """Store a weight in this USPE."""
    add(script, cycle, weight={"weight": {"value": value, "index": 0}, "load": 1, **fields})


def sums(stages: int, script: Script) -> dict[int, int]:
    """Valid sums at the south port, by cycle."""
    words = play(stages, script, lambda uspe: uspe.south.psum)
    return {cycle: word.value for cycle, word in enumerate(words) if word.valid}


STAGES = pytest.mark.parametrize("stages", [2, 3, 4, 5])


def test_hop() -> None:
    """Step, lanes and weight reach the neighbour ``hop`` cycles later."""
    hop = UspeTiming(architecture(4)).hop
    step = {"valid": 1, "slot": 5, "bank": 1}
    weight = {"weight": {"value": 0x1234, "index": 9}, "load": 1, "hops": 3, "slot": 2}
    script: Script = {7: {"step": step, "lanes": [0x55AA] * 16, "weight": weight}}
    steps = play(4, script, lambda uspe: uspe.east.step)
    assert [cycle for cycle, word in enumerate(steps) if word.valid] == [7 + hop]
    assert (steps[7 + hop].slot, steps[7 + hop].bank) == (5, 1)
    lanes = play(4, script, lambda uspe: uspe.east.lanes)
    assert [cycle for cycle, word in enumerate(lanes) if word[15] == 0x55AA] == [7 + hop]
    weights = play(4, script, lambda uspe: uspe.south.weight)
    passed = weights[7 + hop]
    assert [cycle for cycle, word in enumerate(weights) if word.load] == [7 + hop]
    assert (passed.weight.value, passed.weight.index, passed.slot) == (0x1234, 9, 2)
    assert passed.hops == 2, "one row less to go"


@STAGES
def test_operand_and_result(stages: int) -> None:
    """WS: the partial sum taken is that of ``operand`` cycles later, the sum leaves at ``result``.

    Every cycle offers another partial sum, so the sum that comes out tells which was taken.
    """
    timing = UspeTiming(architecture(stages))
    script: Script = {}
    load(script, 0, ONE)
    for cycle in range(WINDOW):
        add(script, cycle, psum={"valid": 0, "value": single(1000 + cycle)})
    step = {"valid": 1, "first": 1, "last": 1, "stationary": 1}
    add(script, 10, step=step, lanes=[ONE])
    assert sums(stages, script) == {10 + timing.result: single(1001 + 10 + timing.operand)}


@STAGES
def test_stored_weight_is_ready(stages: int) -> None:
    """A weight in one cycle serves a step in the next, in every slot of both banks."""
    for bank in (0, 1):
        script: Script = {}
        expected = []
        for slot in range(MAX_N):
            weight = int(np.float16(2 + slot + 10 * bank).view(np.uint16))
            load(script, slot, weight, bank=bank, slot=slot)
            step = {"valid": 1, "first": 1, "last": 1, "stationary": 1, "bank": bank, "slot": slot}
            add(script, slot + 1, step=step, lanes=[ONE])
            expected.append(single(2 + slot + 10 * bank))
        assert list(sums(stages, script).values()) == expected


@STAGES
def test_drain_hop(stages: int) -> None:
    """A sum from the north passes in ``drain_hop`` cycles, L + 1 of them."""
    hop = UspeTiming(architecture(stages)).drain_hop
    assert hop == stages + 1
    script: Script = {cycle: {"psum": {"valid": 1, "value": 77 + cycle}} for cycle in (3, 4, 20)}
    assert sums(stages, script) == {cycle + hop: 77 + cycle for cycle in (3, 4, 20)}


@STAGES
def test_output_stationary_interleave(stages: int) -> None:
    """OS: L sums take turns in one adder and leave in order, ``result + drain_hop`` later."""
    timing = UspeTiming(architecture(stages))
    script: Script = {}
    k = 3
    for cycle in range(k * stages):
        turn, sum_ = divmod(cycle, stages)
        step = {"valid": 1, "first": turn == 0, "last": turn == k - 1}
        value = int(np.float16(1 + sum_).view(np.uint16))
        add(script, cycle, step=step, lanes=[value],
            weight={"weight": {"value": ONE, "index": 0}})
    leaves = (k - 1) * stages + timing.result + timing.drain_hop
    assert sums(stages, script) == {leaves + j: single(k * (1 + j)) for j in range(stages)}
