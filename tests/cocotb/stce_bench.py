"""cocotb tests of the 4 x 4 engine: fill ports, tile stream, strobes, flags, result port.

GEMMs are laid out by the compiler, driven through the pins, and compared with the golden model
and the cycle model.
"""

from __future__ import annotations

import random
from typing import Any

import cocotb
from operands import PATTERNS
from stce_driver import ARCHITECTURE, Bench, Case

from compiler.array.mapping import GemmShape, Mapping, mappings
from rtl.pattern import DENSE, NmPattern


def random_mapping(pattern: NmPattern, largest: int = 20) -> Mapping:
    """Some mapping of a GEMM whose sizes divide nothing in particular."""
    p, q, groups = (random.randint(1, largest) for _ in range(3))
    k = max(1, groups * pattern.m - random.randrange(pattern.m))
    return random.choice(list(mappings(ARCHITECTURE, GemmShape(p, q, k, pattern))))


@cocotb.test()
async def every_pattern(dut: Any) -> None:
    """All patterns and mappings on odd shapes: bits, flags, and the model's cycles."""
    bench = Bench(dut)
    await bench.start()
    elements = 0
    for pattern in PATTERNS:
        p, q, k = random.randint(1, 12), random.randint(1, 12), random.randint(1, 3 * pattern.m)
        for mapping in mappings(ARCHITECTURE, GemmShape(p, q, k, pattern)):
            case = Case(mapping)
            await bench.fill(case)
            before = int(bench.cycles.value)
            strobes = await bench.work(case.tiles)
            assert int(bench.cycles.value) - before == mapping.cycles(), mapping
            assert [strobe.nonfinite for strobe in strobes] == case.flags(), mapping
            elements += case.check(await bench.read(case.segment.read_words))
    dut._log.info("%d elements compared", elements)


@cocotb.test()
async def smallest(dut: Any) -> None:
    """1 x 1 x 1, and K = 1."""
    bench = Bench(dut)
    await bench.start()
    for shape in (GemmShape(1, 1, 1, DENSE), GemmShape(1, 1, 1, NmPattern(1, 16)),
                  GemmShape(9, 7, 1, DENSE), GemmShape(9, 7, 1, NmPattern(2, 8))):
        for mapping in mappings(ARCHITECTURE, shape):
            case = Case(mapping)
            await bench.fill(case)
            await bench.work(case.tiles)
            case.check(await bench.read(case.segment.read_words))


@cocotb.test()
async def stalled_tiles(dut: Any) -> None:
    """Tiles offered at random times give the same bits and flags."""
    elements = 0
    for stall in (0.5, 0.95, 0.99):
        bench = Bench(dut, stall)
        await bench.start()
        for pattern in random.sample(PATTERNS, 6):
            case = Case(random_mapping(pattern))
            await bench.fill(case)
            strobes = await bench.work(case.tiles)
            assert [strobe.nonfinite for strobe in strobes] == case.flags(), case.mapping
            elements += case.check(await bench.read(case.segment.read_words))
    dut._log.info("%d elements compared", elements)


@cocotb.test()
async def one_stream_of_many(dut: Any) -> None:
    """Both dataflows and several patterns in one tile stream: the configuration changes."""
    elements = 0
    for stall in (0, 0, 0.9):
        bench = Bench(dut, stall)
        await bench.start()
        cases = [Case(random_mapping(DENSE))]
        for pattern in random.sample(PATTERNS, 6):
            cases.append(Case(random_mapping(pattern, 16), cases[-1].end))
        random.shuffle(cases)
        for case in cases:
            await bench.fill(case)
        strobes = await bench.work([tile for case in cases for tile in case.tiles])
        assert [strobe.nonfinite for strobe in strobes] == [
            flag for case in cases for flag in case.flags()
        ]
        for case in cases:
            elements += case.check(await bench.read(case.segment.read_words, case.base.out))
    dut._log.info("%d elements compared", elements)


@cocotb.test()
async def filling_while_working(dut: Any) -> None:
    """The next operands go into other words of the buffers while the engine works."""
    bench = Bench(dut)
    await bench.start()
    case = Case(random_mapping(DENSE, 12))
    await bench.fill(case)
    for pattern in random.sample(PATTERNS, 8):
        following = Case(random_mapping(pattern, 12), case.end)
        filling = cocotb.start_soon(bench.fill(following))
        await bench.work(case.tiles)
        await filling
        case.check(await bench.read(case.segment.read_words, case.base.out))
        case = following
