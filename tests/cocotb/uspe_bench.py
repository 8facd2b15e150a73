"""cocotb tests of one USPE: the dataflows, N:M selection, stalls, and the drain chain.

Every test is a script of words per cycle, a run, and a comparison of the sums that came out.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import cocotb
import numpy as np
import numpy.typing as npt
from operands import PATTERNS, Half, operand
from uspe_driver import ARCHITECTURE, TIMING, Bench, Script, pack

from rtl.fp import Adder
from rtl.fp.format import BINARY32
from rtl.links import PSUM
from rtl.pattern import DENSE, NmPattern
from sim import golden

L: int = ARCHITECTURE.interleave


def bits(values: npt.NDArray[np.float32]) -> list[int]:
    """FP32 bits of an array, flat."""
    return [int(word) for word in values.view(np.uint32).ravel()]


def output_stationary(
    script: Script, a: Half, b: Half, pattern: NmPattern, stall: float
) -> int:
    """Script L sums, sum j of row j of ``a`` and column j of ``b``; returns the closing cycle.

    With probability ``stall`` a step is preceded by a pause of some multiple of L cycles.
    """
    packed = pattern.pack(b)
    groups, n = packed.values.shape[:2]
    padded = np.zeros((L, groups * pattern.m), np.float16)
    padded[:, : a.shape[1]] = a
    cycle = 0
    for count in range(groups * n * L):
        sum_, slot, group = count % L, count // L % n, count // L // n
        while random.random() < stall:
            cycle += L * random.randint(1, 3)
        closes = group == groups - 1 and slot == n - 1
        here = slice(group * pattern.m, (group + 1) * pattern.m)
        script.mac(cycle, padded[sum_, here], first=group == 0 and slot == 0, last=closes)
        script.packed_weight(cycle, packed.values[group, slot, sum_],
                             packed.indices[group, slot, sum_])
        cycle += 1
    return cycle - L


def diagonal(a: Half, b: Half, pattern: NmPattern) -> list[int]:
    """Golden results of :func:`output_stationary`."""
    return [bits(golden.gemm(a[j : j + 1], np.ascontiguousarray(b[:, j : j + 1]), pattern))[0]
            for j in range(L)]


async def check_output_stationary(
    dut: Any, patterns: Iterable[NmPattern], stall: float
) -> None:
    """Random L-fold dot products; without stalls the sums must leave in consecutive cycles."""
    bench = Bench(dut)
    await bench.start()
    sums = 0
    for pattern in patterns:
        for k in (1, pattern.m + 1, 5 * pattern.m, random.randint(1, 100)):
            a, b = operand((L, k), special=0.06), operand((k, L), special=0.06)
            script = Script()
            closing = output_stationary(script, a, b, pattern, stall)
            got = await bench.run(script)
            assert list(got.values()) == diagonal(a, b, pattern), (pattern, k)
            if not stall:
                leaves = closing + TIMING.result + TIMING.drain_hop
                assert list(got) == list(range(leaves, leaves + L)), (pattern, k)
            sums += len(got)
    dut._log.info("%d sums compared", sums)
    assert sums


@cocotb.test()
async def dense_output_stationary(dut: Any) -> None:
    """Dense OS: bits, latency and order."""
    await check_output_stationary(dut, [DENSE] * 20, stall=0)


@cocotb.test()
async def sparse_output_stationary(dut: Any) -> None:
    """Every N:M in OS; what lies opposite a pruned weight may be Inf or NaN."""
    await check_output_stationary(dut, PATTERNS[1:], stall=0)


@cocotb.test()
async def recirculation(dut: Any) -> None:
    """OS with pauses of multiples of L cycles at any point, dense and sparse."""
    await check_output_stationary(dut, [DENSE] * 5 + PATTERNS * 2, stall=0.15)


@cocotb.test()
async def weight_stationary(dut: Any) -> None:
    """Dense and every N:M in WS: groups in turn, the next one's weights loading meanwhile."""
    bench = Bench(dut)
    await bench.start()
    rows, groups, sums = 2 * L, 4, 0
    for pattern in PATTERNS:
        k = groups * pattern.m
        a, b = operand((rows, k), special=0.06), operand((k, 1), special=0.06)
        packed = pattern.pack(b)
        script = Script()
        for slot in range(pattern.n):
            script.packed_weight(slot, packed.values[0, slot, 0], packed.indices[0, slot, 0],
                                 load=1, slot=slot)
        assert await bench.run(script) == {}
        totals = [0] * rows
        for group in range(groups):
            script = Script()
            moving = a[:, group * pattern.m : (group + 1) * pattern.m]
            for row in range(rows):
                block, sum_ = divmod(row, L)
                for slot in range(pattern.n):
                    cycle = (block * pattern.n + slot) * L + sum_
                    script.mac(cycle, moving[row], stationary=1, bank=group % 2, slot=slot,
                               first=slot == 0, last=slot == pattern.n - 1)
                    if slot == 0:
                        # From a result buffer not marked valid, from a neighbour marked.
                        script.psum[cycle + TIMING.operand] = pack(
                            PSUM, valid=group != 0, value=totals[row]
                        )
            for slot in range(pattern.n if group + 1 < groups else 0):
                script.packed_weight(slot, packed.values[group + 1, slot, 0],
                                     packed.indices[group + 1, slot, 0],
                                     load=1, slot=slot, bank=(group + 1) % 2)
            got = await bench.run(script)
            last = (pattern.n - 1) * L + TIMING.result
            expected = [row // L * pattern.n * L + row % L + last for row in range(rows)]
            assert list(got) == expected, pattern
            totals = list(got.values())
        assert totals == bits(golden.gemm(a, b, pattern)), pattern
        sums += rows
    dut._log.info("%d sums compared", sums)


@cocotb.test()
async def weights_pass_on(dut: Any) -> None:
    """A weight for a row further south is not stored here, and one in passing never is."""
    bench = Bench(dut)
    await bench.start()
    script = Script()
    two, three = np.float16(2), np.float16(3)
    script.packed_weight(0, two, 0, load=1, hops=0)
    script.packed_weight(1, three, 0, load=1, hops=1)
    script.packed_weight(2, three, 0)
    script.mac(4, np.ones(1, np.float16), stationary=1, first=1, last=1)
    assert list((await bench.run(script)).values()) == bits(np.array([2], np.float32))


@cocotb.test()
async def drain_order(dut: Any) -> None:
    """Own sums leave first; those of the rows further north follow without a gap."""
    bench = Bench(dut)
    await bench.start()
    for above in (1, 2, 3):
        a, b = operand((L, 7), special=0), operand((7, L), special=0)
        script = Script()
        closing = output_stationary(script, a, b, DENSE, stall=0)
        # The row above started a cycle earlier, and its sums took L + 1 cycles to pass it.
        enters = closing + TIMING.result
        north = [random.getrandbits(32) for _ in range(above * L)]
        for position, word in enumerate(north):
            script.partial_sum(enters + L + position, word)
        got = await bench.run(script)
        leaves = enters + TIMING.drain_hop
        assert list(got) == list(range(leaves, leaves + L + len(north)))
        assert list(got.values()) == diagonal(a, b, DENSE) + north


@cocotb.test()
async def sums_of_north_pass_while_working(dut: Any) -> None:
    """The drain chain is independent of the accumulation under way."""
    bench = Bench(dut)
    await bench.start()
    a, b = operand((L, 40), special=0), operand((40, L), special=0)
    script = Script()
    closing = output_stationary(script, a, b, DENSE, stall=0)
    words = {cycle: random.getrandbits(32) for cycle in sorted(random.sample(range(120), 60))}
    for cycle, word in words.items():
        script.partial_sum(cycle, word)
    got = await bench.run(script)
    own = closing + TIMING.result + TIMING.drain_hop
    expected = {cycle + TIMING.drain_hop: word for cycle, word in words.items()}
    expected |= {own + j: word for j, word in enumerate(diagonal(a, b, DENSE))}
    assert got == expected


@cocotb.test()
async def weight_stationary_on_any_partial_sum(dut: Any) -> None:
    """WS adds to whatever comes from the north: random FP32 bits, subnormals and NaN included."""
    bench = Bench(dut)
    await bench.start()
    script = Script()
    weight = np.float16(-1.5)
    script.packed_weight(0, weight, 0, load=1)
    moving = operand((64,), special=0.06)
    words = np.array([random.getrandbits(32) for _ in moving], np.uint32)
    words[::4] &= np.uint32(0x807FFFFF)
    for cycle, activation in enumerate(moving):
        script.mac(3 + cycle, np.array([activation]), stationary=1, first=1, last=1)
        script.psum[3 + cycle + TIMING.operand] = pack(PSUM, value=int(words[cycle]))
    with np.errstate(invalid="ignore", over="ignore"):
        products = moving.astype(np.float32) * np.float32(weight)
    expected = Adder().compute(BINARY32.canonical(products.view(np.uint32)), words)
    assert list((await bench.run(script)).values()) == [int(word) for word in expected]
