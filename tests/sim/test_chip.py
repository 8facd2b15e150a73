"""The whole chip against the golden interpreter: programs, memory timings, errors, restarts."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs import CHUNKS, MEMORY_BYTES, PROGRAM, Program, Waits, generate

from rtl import isa
from rtl.architecture import PRESETS, Architecture
from rtl.axi import Response
from rtl.registers import COUNTERS, IDENTITY, REGISTERS, VERSION, Control, ErrorCode
from sim.chip import Chip, Fault, MemoryModel
from sim.interpreter import Interpreter, ProgramError

TINY = PRESETS["tiny"]
LENGTH = 80
WORD = 32
SOURCE, TARGET = 0x1_0000, 0x2_0000
FIXED = MemoryModel.fixed()

OTHERS = [
    Architecture(
        name="wide", rows=2, cols=16, block=16, bus_bytes=32, adder_stages=3, w2e_words=256,
        n2s_words=1024, out_words=512, burst_beats=8, read_beats=16),
    Architecture(
        name="odd", rows=3, cols=2, bus_bytes=128, adder_stages=5, w2e_words=300, n2s_words=3000,
        out_words=700, burst_beats=16, read_beats=64),
]
"""Few and many columns, every width of the bus beside the usual, small buffers."""


class Pair:
    """The chip and the interpreter, which get the same programs one after the other."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.golden = np.zeros(chip.memory.size, np.uint8)
        self.interpreter = Interpreter(chip.architecture, self.golden)

    def run(self, program: Program) -> int:
        """From start to end; memory is compared at every host point. Returns their number."""
        self.golden[:] = self.chip.memory[:] = program.memory
        self.interpreter.bases, self.interpreter.scalars[:] = program.bases, program.scalars
        expected = self.interpreter.start(program.words)
        point = self.chip.start(PROGRAM, program.bases, program.scalars)
        points = 0
        while True:
            assert point == expected
            wrong = np.unique(np.flatnonzero(self.chip.memory != self.golden) // WORD)
            assert not wrong.size, f"{wrong.size} words differ, from {wrong[0]:#x} on"
            if point is None:
                return points
            points += 1
            expected, point = self.interpreter.resume(), self.chip.resume()


@contextmanager
def pair(model: MemoryModel, architecture: Architecture = TINY) -> Iterator[Pair]:
    """Both, with empty memories."""
    with Chip(architecture, MEMORY_BYTES, model=model, patience=1 << 16) as chip:
        yield Pair(chip)


@contextmanager
def chip(model: MemoryModel = FIXED) -> Iterator[Chip]:
    """A chip with random numbers in its memory."""
    with Chip(TINY, 1 << 18, model=model, patience=1 << 15) as made:
        numbers = np.random.default_rng(0).standard_normal(made.memory.size // 4)
        made.memory[:] = numbers.astype(np.float32).view(np.uint8)
        yield made


def run(chip: Chip, *lines: str, address: int = PROGRAM, base: int = SOURCE) -> int | None:
    """Assemble and run; base 0 is the source, base 1 the target, scalar 0 is 2."""
    chip.load([isa.assemble(line) for line in lines], address)
    return chip.start(address, [base, TARGET], [2.0])


DOUBLE = (
    "load_v dest=1 lines=4 run=4",
    "vector op=3 dest=2 a=1 source=1 lines=4 after_load=1",
    "store base=1 a=2 lines=4 run=4 after_vector=1",
    "end",
)


def doubled(chip: Chip) -> bool:
    """Whether DOUBLE has done its work."""
    size = 4 * 64
    source, target = (chip.memory[at : at + size].view(np.float32) for at in (SOURCE, TARGET))
    return bool((target == 2 * source).all())


# Programs.


@settings(max_examples=60)
@given(
    model=st.sampled_from([MemoryModel.fixed(1), FIXED, MemoryModel.paper(TINY)]),
    waits=st.sampled_from(Waits), length=st.integers(1, LENGTH), seed=st.integers(0, 2**32 - 1),
)
def test_random_programs(model: MemoryModel, waits: Waits, length: int, seed: int) -> None:
    """A shorter program of the same seed begins in the same way."""
    with pair(model) as machines:
        machines.run(generate(TINY, seed, length, waits))


@pytest.mark.parametrize("stalls", range(1, 23))
def test_random_programs_under_stalls(stalls: int) -> None:
    """Three programs one after the other, others in every run; their seeds are printed."""
    with pair(MemoryModel.stalls(stalls)) as machines:
        for waits in Waits:
            seed = secrets.randbits(32)
            print(f"generate({seed}, {waits})")
            machines.run(generate(TINY, seed, LENGTH, waits))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", OTHERS, ids=lambda architecture: architecture.name)
def test_random_programs_on_other_architectures(architecture: Architecture) -> None:
    for stalls in range(30):
        with pair(MemoryModel.stalls(stalls) if stalls else FIXED, architecture) as machines:
            seed, waits = secrets.randbits(32), list(Waits)[stalls % 3]
            print(f"generate({seed}, {waits})")
            machines.run(generate(architecture, seed, LENGTH, waits))


def test_random_programs_have_everything() -> None:
    """Every instruction, host points, skipped stores; one seed gives one program."""
    seen, points, skipped = set(), 0, 0
    for seed in range(12):
        program = generate(TINY, seed, LENGTH, Waits.EXACT)
        assert generate(TINY, seed, LENGTH, Waits.EXACT).words == program.words
        seen |= {isa.decode(word).instruction for word in program.words}
        machine = Interpreter(TINY, program.memory.copy(), program.bases, program.scalars)
        point = machine.start(program.words)
        while point is not None:
            points += 1
            point = machine.resume()
        skipped += machine.traffic.stores_skipped
    assert seen == set(isa.INSTRUCTIONS)
    assert points and skipped


class Writes(Interpreter):
    """Counts how often each word of memory is written."""

    def __init__(self, program: Program) -> None:
        super().__init__(TINY, program.memory.copy(), program.bases, program.scalars)
        self.times = np.zeros(MEMORY_BYTES // WORD, np.int64)

    def _write(self, addresses: npt.NDArray[np.int64], words: npt.NDArray[np.uint16]) -> None:
        super()._write(addresses, words)
        self.times[addresses] += 1


def test_random_programs_leave_packed_chunks_alone() -> None:
    """Other numbers there would be no indices, see :func:`sim.golden.accumulate`."""
    packed = 0
    for seed in range(60):
        program = generate(TINY, seed, LENGTH, Waits.EXACT)
        machine = Writes(program)
        point = machine.start(program.words)
        while point is not None:
            point = machine.resume()
        chunks = machine.times[CHUNKS]
        assert chunks.max() <= 1, seed
        packed += int(chunks.sum())
    assert packed


def test_exact_waits_are_quicker_than_fences() -> None:
    """Units do work side by side."""
    cycles = []
    for waits in (Waits.EXACT, Waits.ALL, Waits.FENCES):
        with pair(FIXED) as machines:
            machines.run(generate(TINY, 7, LENGTH, waits))
            cycles.append(machines.chip.counters()["cycles"])
    assert cycles == sorted(cycles)
    assert cycles[0] < 0.8 * cycles[2]


def test_memory_beyond_4_gb() -> None:
    """Base registers, program address and the bus have 64 bits."""
    far = 5 << 30
    with Chip(TINY, far + (1 << 16)) as machine:
        machine.memory[far : far + 256] = np.arange(64, dtype=np.float32).view(np.uint8)
        machine.load([isa.assemble(line) for line in DOUBLE], far + 0x1000)
        assert machine.start(far + 0x1000, [far, far + 0x2000], [1.0]) is None
        copied = machine.memory[far + 0x2000 : far + 0x2100].view(np.float32)
        np.testing.assert_array_equal(copied, np.arange(64))


# Registers, counters, host points.


def test_identity() -> None:
    with chip() as machine:
        assert machine.read("identity") == IDENTITY
        assert machine.read("version") == VERSION
        assert machine.read("array") == TINY.rows | TINY.cols << 16
        assert machine.read("control") & Control.IDLE


def test_registers_hold_what_is_written() -> None:
    plain = [register.name for register in REGISTERS if register.access == "rw"
             and register.name not in ("control", "interrupt_status")]
    with chip(MemoryModel.stalls(3)) as machine:
        for name in plain:
            machine.write(name, hash(name))
        for name in plain:
            width = {"interrupt_global": 1, "interrupt_enable": 3}.get(name, 32)
            low = 0 if width < 32 else 32 - width
            assert machine.read(name) == hash(name) & (1 << width) - 1 >> low, name


def test_counters_count() -> None:
    with chip() as machine:
        assert run(machine, *DOUBLE) is None
        assert doubled(machine)
        counters = machine.counters()
        assert set(counters) == {counter.name for counter in COUNTERS}
        assert counters["instructions"] == 4
        assert counters["write_beats"] == machine.stats().write_beats == 4
        assert counters["read_beats"] == machine.stats().read_beats
        assert 0 < counters["load_busy"] < counters["cycles"] < machine.cycles
        assert counters["macs"] == counters["host_cycles"] == 0
        assert run(machine, "end") is None  # start clears them
        assert machine.counters()["instructions"] == 1


def test_macs_are_counted() -> None:
    with pair(FIXED) as machines:
        machines.run(generate(TINY, 1, LENGTH, Waits.ALL))
        counters, traffic = machines.chip.counters(), machines.interpreter.traffic
    assert traffic.macs
    assert counters["macs"] == traffic.macs
    assert counters["macs_skipped"] == traffic.macs_skipped
    assert counters["stores_skipped"] == traffic.stores_skipped
    assert counters["instructions"] == sum(traffic.instructions.values())
    assert counters["array_busy"] >= traffic.macs / TINY.pes


def test_at_a_host_point_the_host_may_change_memory() -> None:
    with chip() as machine:
        assert run(machine, *DOUBLE[:3], "host point=513", *DOUBLE) == 513
        assert doubled(machine)
        machine.memory[SOURCE : SOURCE + 256] = machine.memory[SOURCE + 256 : SOURCE + 512]
        assert not doubled(machine)
        machine.idle(1000)
        assert machine.resume() is None
        assert doubled(machine)
        assert machine.counters()["host_cycles"] > 1000


# Errors.


class Case(NamedTuple):
    """A program that fails, and how."""

    lines: tuple[str, ...]
    code: ErrorCode
    at: int


FAILING = [
    Case(("load_v lines=64 line=1", "end"), ErrorCode.RANGE, 0),
    Case(("clear", "load_v offset=8192", "fence", "end"), ErrorCode.READ_DECODE, 1),
    Case(("store base=1 offset=8192", "end"), ErrorCode.WRITE_DECODE, 0),
    Case(("load_v offset=0xFFFFFFFF", "end"), ErrorCode.READ_DECODE, 0),
    Case(("vector lines=2 line=63", "end"), ErrorCode.RANGE, 0),
    Case(("vector drain=1 c_base=0xFFFFF", "end"), ErrorCode.RANGE, 0),
    Case(("prune chunks=4 line=1 m_log2=2", "end"), ErrorCode.RANGE, 0),
    Case(("store lines=9 line=60", "end"), ErrorCode.RANGE, 0),
    Case(("load_a", "end"), ErrorCode.FIELD, 0),
    Case(("shape", "load_a y=1", "end"), ErrorCode.FIELD, 1),
    Case(("shape", "load_a dest=4000", "end"), ErrorCode.RANGE, 1),
    Case(("load_b dest=0xFFFFF", "end"), ErrorCode.RANGE, 0),
    Case(("load_b n=3 m_log2=2", "end"), ErrorCode.FIELD, 0),
    Case(("compute a_base=0xFFFF first=1 last=1", "end"), ErrorCode.RANGE, 0),
    Case(("compute interleave_rows=3 first=1 last=1", "end"), ErrorCode.FIELD, 0),
    Case(("compute first=1 p_count=999", "end"), ErrorCode.FIELD, 0),
    Case(("vector op=10", "end"), ErrorCode.FIELD, 0),
]


@pytest.mark.parametrize("case", FAILING, ids=lambda case: case.lines[-2])
@pytest.mark.parametrize("model", [FIXED, MemoryModel.stalls(4)], ids=str)
def test_errors_are_those_of_the_interpreter(case: Case, model: MemoryModel) -> None:
    """And the next program runs as if nothing had been."""
    with chip(model) as machine:
        with pytest.raises(ProgramError) as expected:
            Interpreter(TINY, machine.memory.copy(), [SOURCE, TARGET]).start(
                [isa.assemble(line) for line in case.lines])
        with pytest.raises(ProgramError) as caught:
            run(machine, *case.lines)
        assert caught.value.code is expected.value.code is case.code
        # A unit's error names the newest instruction dispatched, which may be a later one.
        assert case.at == expected.value.at <= caught.value.at < len(case.lines)
        assert run(machine, *DOUBLE) is None
        assert doubled(machine)


@pytest.mark.parametrize(
    ("word", "code"),
    [(0, ErrorCode.OPCODE), (0xEE, ErrorCode.OPCODE),
     (isa.END.encode() | 1 << 255, ErrorCode.RESERVED),
     (isa.VECTOR.encode() ^ 13 << isa.VECTOR.layout["op"].offset, ErrorCode.FIELD)],
)
def test_words_that_are_no_instruction(word: int, code: ErrorCode) -> None:
    with chip() as machine:
        for good in (0, 1, 2, 9):
            machine.load([isa.CLEAR.encode()] * good + [word], PROGRAM)
            with pytest.raises(ProgramError) as caught:
                machine.start(PROGRAM)
            assert (caught.value.code, caught.value.at) == (code, good)
        assert run(machine, *DOUBLE) is None
        assert doubled(machine)


@pytest.mark.parametrize(("address", "base"), [(PROGRAM + WORD, 0), (PROGRAM + 1, 0),
                                               (PROGRAM, SOURCE + 2)])
def test_addresses_must_be_aligned(address: int, base: int) -> None:
    with chip() as machine:
        with pytest.raises(ProgramError) as caught:
            run(machine, *DOUBLE, address=address, base=base)
        assert caught.value.code is ErrorCode.BASE
        assert machine.stats().read_beats == 0
        assert run(machine, *DOUBLE) is None


BUS = [
    (Fault(SOURCE + 200, SOURCE + 201, Response.SLVERR), ErrorCode.READ_SLAVE),
    (Fault(SOURCE, SOURCE + 64, Response.DECERR), ErrorCode.READ_DECODE),
    (Fault(TARGET, TARGET + 1, Response.SLVERR, "write"), ErrorCode.WRITE_SLAVE),
    (Fault(TARGET + 255, TARGET + 256, Response.DECERR, "write"), ErrorCode.WRITE_DECODE),
    (Fault(PROGRAM, PROGRAM + 1, Response.SLVERR), ErrorCode.FETCH),
    (Fault(PROGRAM + 3 * WORD, PROGRAM + 4 * WORD, Response.DECERR), ErrorCode.FETCH),
]


@pytest.mark.parametrize(("fault", "code"), BUS, ids=str)
@pytest.mark.parametrize(
    "model", [FIXED, *(MemoryModel.stalls(seed) for seed in range(30, 34))], ids=str
)
def test_bus_errors_stop_the_program_cleanly(
    fault: Fault, code: ErrorCode, model: MemoryModel
) -> None:
    """The harness itself checks that nothing is under way at the interrupt."""
    with chip(model) as machine:
        machine.inject(fault)
        for _ in range(2):
            with pytest.raises(ProgramError) as caught:
                run(machine, *DOUBLE)
            assert caught.value.code is code
            assert caught.value.at <= 3
        machine.inject()
        assert run(machine, *DOUBLE) is None
        assert doubled(machine)


def test_an_error_behind_the_end_is_none() -> None:
    """What is fetched ahead and never reached does not matter."""
    with chip() as machine:
        machine.inject(Fault(PROGRAM + 2 * 64, SOURCE, Response.DECERR))
        assert run(machine, *DOUBLE) is None
        assert run(machine, *DOUBLE, address=machine.memory.size - 2 * 64) is None
        assert doubled(machine)


def test_an_error_lets_instructions_under_way_finish() -> None:
    """The store ahead of the bad word is complete in memory when the interrupt comes."""
    with chip(MemoryModel(write_latency=500)) as machine:
        with pytest.raises(ProgramError) as caught:
            run(machine, *DOUBLE[:3], "fence", "clear", "load_v lines=64 line=1", "end")
        assert caught.value.code is ErrorCode.RANGE
        assert doubled(machine)
