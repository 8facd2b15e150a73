"""cocotb tests of the 4 x 4 chip: small programs, memory compared with the interpreter's."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
import numpy.typing as npt
from chip_driver import ARCHITECTURE, Bench
from random_programs import MEMORY_BYTES, PROGRAM, Waits, generate

from rtl import isa
from rtl.chunk import ChunkFormat
from rtl.pattern import NmPattern
from rtl.registers import IDENTITY, REGISTERS, VERSION, ErrorCode
from sim import golden
from sim.interpreter import Interpreter, ProgramError

SIZE = 1 << 16
SOURCE, WEIGHTS, TARGET = 0x4000, 0x6000, 0x8000

DOUBLE = [
    isa.LOAD_V.encode(dest=1, lines=4, run=4),
    isa.VECTOR.encode(op=isa.VectorOp.ADD, dest=2, a=1, b=1, lines=4, after_load=1),
    isa.STORE.encode(base=2, a=2, lines=4, run=4, after_vector=1),
]
END = isa.END.encode()
BAD = isa.LOAD_V.encode(line=1, lines=64)


def numbers(size: int) -> npt.NDArray[np.uint8]:
    """Random FP16 numbers, as bytes."""
    rng = np.random.default_rng(random.getrandbits(32))
    return rng.standard_normal(size // 2).astype(np.float16).view(np.uint8)


async def compare(bench: Bench, program: list[int]) -> None:
    """The program's memory at every host point and at the end."""
    bases = [SOURCE, WEIGHTS, TARGET]
    bench.load_program(program, PROGRAM)
    image = bench.image(SIZE).copy()
    machine = Interpreter(ARCHITECTURE, image, bases)
    expected, point = machine.start(program), await bench.run(PROGRAM, bases)
    while True:
        assert point == expected
        np.testing.assert_array_equal(bench.image(SIZE), image)
        if point is None:
            return
        expected, point = machine.resume(), await bench.resume()


async def failure(bench: Bench) -> ProgramError:
    """What the program in memory stops with."""
    try:
        await bench.run(PROGRAM, [SOURCE, WEIGHTS, TARGET])
    except ProgramError as error:
        return error
    raise AssertionError("no error was reported")


@cocotb.test()
async def random_program(dut: Any) -> None:
    """Instructions of all kinds with exact waits. First, while all buffers are zero."""
    bench = Bench(dut, MEMORY_BYTES, pause=0.3)
    await bench.start()
    program = generate(ARCHITECTURE, random.getrandbits(32), 25, Waits.EXACT)
    image = program.memory.copy()
    bench.load(image)
    machine = Interpreter(ARCHITECTURE, image, program.bases, program.scalars)
    expected = machine.start(program.words)
    point = await bench.run(PROGRAM, program.bases, program.scalars)
    while point is not None:
        assert point == expected
        expected, point = machine.resume(), await bench.resume()
    assert expected is None
    np.testing.assert_array_equal(bench.image(MEMORY_BYTES), image)
    assert max(bench.monitor.most.values()) > 1, "bursts overlap"


@cocotb.test()
async def registers(dut: Any) -> None:
    """Identity, and plain registers hold what is written."""
    bench = Bench(dut, SIZE, pause=0.3)
    await bench.start()
    assert await bench.read("identity") == IDENTITY
    assert await bench.read("version") == VERSION
    values = {register.name: random.getrandbits(32) for register in REGISTERS
              if register.name.startswith(("base", "scalar"))}
    for name, value in values.items():
        await bench.write(name, value)
    for name, value in values.items():
        assert await bench.read(name) == value, name


@cocotb.test()
async def vector_program(dut: Any) -> None:
    """Load, add, store, stop at a host point, and once more."""
    bench = Bench(dut, SIZE)
    await bench.start()
    bench.load(numbers(SIZE))
    await compare(bench, [*DOUBLE, isa.HOST.encode(point=77), *DOUBLE, END])
    assert bench.monitor.counts["m_axi_w"] == 8


@cocotb.test()
async def long_pauses(dut: Any) -> None:
    """The same while hardly anything is taken."""
    bench = Bench(dut, SIZE, pause=0.9)
    await bench.start()
    bench.load(numbers(SIZE))
    await compare(bench, [*DOUBLE, isa.HOST.encode(point=1), *DOUBLE, END])


@cocotb.test()
async def sparse_layer(dut: Any) -> None:
    """im2col of a 3 x 3 convolution times packed 2:8 weights, ReLU, FP16 results."""
    bench = Bench(dut, SIZE, pause=0.2)
    await bench.start()
    height, width, taps, channels = 3, 4, 9, 16
    pattern, rows, k = NmPattern(2, 8), 12, taps * channels
    image = np.concatenate([np.zeros(SOURCE, np.uint8), numbers(SIZE - SOURCE)])
    weights = np.random.default_rng(1).standard_normal((k, 16)).astype(np.float16)
    packed = np.ascontiguousarray(ChunkFormat(pattern).pack(weights)).view(np.uint8).ravel()
    image[WEIGHTS : WEIGHTS + packed.size] = packed
    bench.load(image)
    form = ChunkFormat(pattern)
    await compare(bench, [
        isa.SHAPE.encode(
            words=1, pixel=1, row=width, image=width * height, height=height, width=width,
            out_height=height, out_width=width, stride_y=1, stride_x=1, taps_y=3, taps_x=3,
            step_y=1, step_x=1, first_y=-1, first_x=-1),
        isa.LOAD_A.encode(count=rows, stride=taps),
        isa.LOAD_B.encode(base=1, n=2, m_log2=3, items=taps, pitch=form.words, stride=k // 4),
        isa.COMPUTE.encode(
            a_stride=taps, b_stride=k // 4, c_stride=rows, groups=k // 8, p_count=rows,
            q_count=16, n=2, m_log2=3, first=1, last=1, after_load=1),
        isa.VECTOR.encode(
            op=isa.VectorOp.COPY, dest=1, lines=rows, drain=1, c_stride=rows, run=1, relu=1,
            after_compute=1),
        isa.STORE.encode(base=2, source=isa.StoreSource.HALF, a=1, lines=rows, run=rows,
                         after_vector=1),
        END,
    ])
    pixels = image[SOURCE:][: 2 * rows * channels].view(np.float16).reshape(height, width, -1)
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)))
    columns = np.stack([padded[y : y + height, x : x + width] for y in range(3)
                        for x in range(3)], 2).reshape(rows, k)
    expected = np.maximum(golden.gemm(columns, weights, pattern), 0).astype(np.float16)
    got = bench.image(SIZE)[TARGET:][: 32 * rows].view(np.float16).reshape(rows, 16)
    np.testing.assert_array_equal(got, expected)


@cocotb.test()
async def errors_and_restarts(dut: Any) -> None:
    """Every kind of stop reports its code and leaves a chip that works."""
    bench = Bench(dut, SIZE, pause=0.3)
    await bench.start()
    bench.load(numbers(SIZE))
    cases = [
        ([*DOUBLE, 0xEE], ErrorCode.OPCODE, 3),
        ([END | 1 << 200], ErrorCode.RESERVED, 0),
        ([*DOUBLE, isa.FENCE.encode(), BAD, isa.FENCE.encode(), END], ErrorCode.RANGE, 4),
        ([isa.LOAD_B.encode(n=3, m_log2=2), isa.FENCE.encode(), END], ErrorCode.FIELD, 0),
    ]
    for program, code, at in cases:
        bench.load_program(program, PROGRAM)
        error = await failure(bench)
        assert (error.code, error.at) == (code, at)
        await compare(bench, [*DOUBLE, END])


@cocotb.test()
async def memory_errors(dut: Any) -> None:
    """SLVERR from cocotbext-axi on data, stores and program."""
    bench = Bench(dut, SIZE)
    await bench.start()
    bench.load(numbers(SIZE))
    bench.load_program([*DOUBLE, END], PROGRAM)
    reads, writes = bench.memory.read_if, bench.memory.write_if
    for channel, name, code in ((reads, "_read", ErrorCode.READ_SLAVE),
                                (writes, "_write", ErrorCode.WRITE_SLAVE),
                                (reads, "_read", ErrorCode.FETCH)):
        first = PROGRAM if code is ErrorCode.FETCH else SOURCE
        original = getattr(channel, name)

        async def fails(address: int, data: Any, first: int = first,
                        original: Any = original) -> Any:
            if address >= first:
                raise ValueError("out of order")
            return await original(address, data)

        setattr(channel, name, fails)
        assert (await failure(bench)).code is code
        delattr(channel, name)
    await compare(bench, [*DOUBLE, END])
