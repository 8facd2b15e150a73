"""The vector engine's RTL against numpy, bit for bit, and against its cycle formulas, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from vector_model import Bits, Ran, Script, VectorModel
from vector_reference import (
    Reference,
    Rng,
    clear,
    prune,
    random_instruction,
    random_lines,
    vector,
)

from rtl.architecture import Architecture
from rtl.chunk import LANES, ChunkFormat
from rtl.error_codes import ErrorCode
from rtl.fp import Adder, DivideRoot, Multiplier32
from rtl.isa import LINES, VECTOR, VECTORS, Decoded, Source, VectorOp
from rtl.pattern import HARDWARE_M, NmPattern
from rtl.sore import SoreTiming
from rtl.vector_timing import REDUCTIONS, VectorTiming

WORDS = 512
COLS = (4, 32)
ARCHITECTURES = {cols: Architecture.make(rows=4, cols=cols, out_words=WORDS) for cols in COLS}
TIMING = VectorTiming(ARCHITECTURES[4])
PATTERNS = [NmPattern(n, m) for m in HARDWARE_M for n in range(1, m // 2 + 1)]
DIRECTED = np.array(
    [0x00000000, 0x00000001, 0x007FFFFF, 0x00800000, 0x3F7FFFFF, 0x3F800000, 0x3F800001,
     0x40000000, 0x4B7FFFFF, 0x5F000000, 0x7F000000, 0x7F7FFFFF, 0x7F800000, 0x7F800001,
     0x7FC00000, 0x7FFFFFFF], np.uint32)
INFINITY = 0x7F800000


@pytest.fixture(scope="module", params=COLS)
def any_cols(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@cache
def model(cols: int) -> VectorModel:
    return VectorModel.build(ARCHITECTURES[cols])


class Bench:
    """A script together with what the reference expects of it."""

    def __init__(self, rng: Rng, cols: int = 4, special: float = 0.05) -> None:
        self.rng, self.cols, self.special = rng, cols, special
        self.reference = Reference(ARCHITECTURES[cols])
        self.script = Script()
        self.expected_runs: list[tuple[list[Decoded], list[int], list[int], bool]] = []
        self.expected_registers: list[tuple[int, Bits]] = []
        self.packs: list[dict[tuple[int, int, int], np.ndarray]] = []
        scalars = random_lines(rng, 1)[0]
        results = random_lines(rng, cols * WORDS // LANES, special).reshape(cols, WORDS)
        self.reference.scalars, self.reference.results = scalars, results
        self.script.scalars(scalars)
        self.script.results(results)

    def load(self, register: int, lines: Bits | None = None) -> None:
        """Fill a register."""
        if lines is None:
            lines = random_lines(self.rng, LINES, self.special)
        self.reference.registers[register, : len(lines)] = lines
        self.script.fill(register, lines)

    def settle(self) -> None:
        """Let the fills through."""
        self.run([])

    def run(self, program: Sequence[Decoded], pace: int = 0, mask: int = 0) -> None:
        """Run instructions."""
        errors, flags = [], []
        for instruction in program:
            errors.append(int(self.reference.run(instruction)))
            flags.append(int(self.reference.nonfinite))
        self.script.issue(*program)
        self.script.run(pace, mask)
        self.expected_runs.append((list(program), errors, flags, pace == 0))

    def look(self, *registers: int) -> None:
        """Compare registers."""
        for register in registers:
            self.script.register(register)
            self.expected_registers.append((register, self.reference.registers[register].copy()))

    def look_at_packs(self) -> None:
        """Compare what the pack slots hold."""
        self.script.packs()
        self.packs.append(dict(self.reference.packs))

    def check(self) -> list[Ran]:
        """Play it all and compare; returns the runs."""
        seed = int(self.rng.integers(0, 1 << 32))
        runs, registers, others = model(self.cols).play(self.script, seed)
        timing = VectorTiming(ARCHITECTURES[self.cols])
        assert len(runs) == len(self.expected_runs)
        for ran, (program, errors, flags, steady) in zip(runs, self.expected_runs, strict=True):
            assert ran.error == errors
            if steady:
                assert ran.done == timing.schedule(program)
            # A watched line of a later instruction may come before an earlier ``done`` is seen.
            assert ran.nonfinite[-1:] == flags[-1:]
        pairs = zip(registers, self.expected_registers, strict=True)
        for n, (got, (register, expected)) in enumerate(pairs):
            wrong = np.argwhere(got != expected)
            assert not len(wrong), (
                f"look {n}: register {register} has {len(wrong)} wrong lanes, the first at "
                f"{wrong[0].tolist()}: {got[tuple(wrong[0])]:#x}, not "
                f"{expected[tuple(wrong[0])]:#x}"
            )
        for got, packs in zip(others, self.packs, strict=True):
            for place, words in packs.items():
                assert np.array_equal(got[place][: len(words)], words), place
        return runs


def operands(rng: Rng) -> list[tuple[Bits, Bits]]:
    """Pairs of registers: all directed pairs with all signs, then random ones."""
    values = np.concatenate([DIRECTED, DIRECTED | np.uint32(1 << 31)])
    grid = np.meshgrid(values, values, indexing="ij")
    pairs = [tuple(side.reshape(LINES, LANES) for side in grid)]
    for _ in range(2):
        a, b = rng.integers(0, 1 << 32, (2, LINES, LANES), np.uint32)
        pairs.append((a, b))
        near = (b & np.uint32(0x80FFFFFF)) | (a & np.uint32(0x7F000000))
        pairs.append((a, near))
        pairs.append((random_lines(rng, LINES), random_lines(rng, LINES)))
    return [(a, b) for a, b in pairs]


@pytest.mark.parametrize("op", [op for op in VectorOp if op not in REDUCTIONS])
def test_operations(op: VectorOp, rng: Rng) -> None:
    """Special and random pairs, with and without ReLU, from every source of b."""
    bench = Bench(rng)
    pairs = operands(rng)
    for a, b in pairs:
        bench.load(0, a)
        bench.load(1, b)
        bench.settle()
        for relu in (0, 1):
            scalar, immediate = map(int, rng.integers(0, [LANES, 1 << 32]))
            bench.run([
                vector(op, dest=2, a=0, b=1, relu=relu),
                vector(op, dest=3, a=0, source=Source.SCALAR, b=scalar, relu=relu),
                vector(op, dest=4, a=0, source=Source.IMMEDIATE, immediate=immediate, relu=relu),
            ])
            bench.look(2, 3, 4)
    bench.check()
    print(f"{op.name}: {len(pairs) * 2 * 3 * LINES * LANES} results")


@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions(op: VectorOp, rng: Rng) -> None:
    """Every period, with lines that leave a part round, in strict order."""
    bench = Bench(rng, special=0.002)
    bench.load(0)
    bench.load(5)
    bench.load(1, np.full((LINES, LANES), 1 << 31, np.uint32))
    # Zeros of both signs are equal: what is held stays.
    bench.load(2, rng.integers(0, 2, (LINES, LANES), np.uint32) << np.uint32(31))
    bench.settle()
    for period in range(1, LINES + 1):
        lines = int(rng.integers(1, LINES + 1))
        line = int(rng.integers(0, LINES - lines + 1))
        bench.run([
            vector(op, dest=5, a=0, period=period, keep=period % 2, relu=1),
            vector(op, dest=4, a=0, period=period, line=line, lines=lines),
            vector(op, dest=0, a=0, period=period, line=line, lines=lines, keep=1),
        ])
        bench.look(4, 5)
        bench.load(0)
    # Of -0 alone: +0, and for PEAK -0.
    bench.run([vector(op, dest=6, a=1, period=4), vector(op, dest=7, a=2, period=16)])
    bench.look(6, 7, 0)
    bench.check()
    expected = 0 if op is VectorOp.SUM else 1 << 31
    assert (bench.reference.registers[6, :4] == expected).all()


@pytest.mark.parametrize("pace", [0, 40, 200])
def test_random_programs(any_cols: int, pace: int, rng: Rng) -> None:
    """Dependent instructions back to back: overlaps do not show, and the cycles are known."""
    bench = Bench(rng, any_cols)
    count = overlaps = 0
    timing = VectorTiming(ARCHITECTURES[any_cols])
    for _ in range(40):
        registers = rng.choice(VECTORS, int(rng.integers(2, 5)), replace=False).tolist()
        for register in registers:
            bench.load(register)
        bench.settle()
        program = [random_instruction(rng, registers, ARCHITECTURES[any_cols]) for _ in range(25)]
        overlaps += sum(
            before.instruction is VECTOR is after.instruction and timing.follows(before, after)
            for before, after in pairwise(program)
        )
        bench.run(program, pace)
        bench.look(*registers)
        bench.look_at_packs()
        count += len(program)
    bench.check()
    print(f"{count} instructions, {overlaps} pairs that overlap")
    assert overlaps > 20


def test_chains(rng: Rng) -> None:
    """Every pair of operations, the second on the result of the first, for every overlap."""
    bench = Bench(rng)
    plain = [op for op in VectorOp if op not in REDUCTIONS]
    for register in range(2):
        bench.load(register)
    bench.settle()
    for first in plain:
        for second in plain:
            lines = int(rng.integers(1, 30))
            bench.run([
                vector(first, dest=2, a=0, b=1, lines=lines),
                vector(second, dest=3, a=2, b=1, lines=lines),
                vector(second, dest=2, a=1, b=3, lines=lines),
                vector(VectorOp.SUB, dest=4, a=3, b=2, lines=lines),
            ])
            bench.look(2, 3, 4)
    bench.check()


def test_drain(any_cols: int, rng: Rng) -> None:
    """Blocks of any width out of the result buffers, by rows, with bias and ReLU."""
    bench = Bench(rng, any_cols)
    bench.load(1)
    bench.settle()
    for run in (1, 2, 3, 4, 5, 8, 16):
        tiles = -(-run * LANES // any_cols)
        rows = LINES // run
        if rows * tiles > WORDS:
            continue
        base = int(rng.integers(0, WORDS - rows * tiles + 1))
        place = {"drain": 1, "run": run, "c_base": base, "c_stride": rows, "lines": rows * run}
        bench.run([
            vector(VectorOp.COPY, dest=2, **place),
            vector(VectorOp.ADD, dest=3, b=1, period=run, relu=1, **place),
            vector(VectorOp.SUM, dest=4, period=run, **place),
            vector(VectorOp.SUM, dest=4, period=run, keep=1, **place),
        ])
        bench.look(2, 3, 4)
    bench.check()


def test_drain_beyond_the_end(any_cols: int, rng: Rng) -> None:
    """Lines that need a word beyond the end are not written; the instruction ends with RANGE."""
    bench = Bench(rng, any_cols)
    bench.load(2)
    bench.settle()
    cases = 0
    for base, stride, run in ((WORDS - 3, 0, 1), (WORDS, 0, 1), (WORDS - 1, 1, 2), (7, 200, 4),
                              ((1 << 20) - 1, (1 << 20) - 1, 64), (0, 1 << 17, 64)):
        place = {"drain": 1, "run": run, "c_base": base, "c_stride": stride}
        program = [vector(VectorOp.COPY, dest=2, lines=12, watch=1, **place),
                   vector(VectorOp.ADD, dest=2, a=2, b=2)]
        bench.run(program)
        bench.look(2)
        cases += bench.expected_runs[-1][1][0] == ErrorCode.RANGE
    bench.check()
    assert cases >= 4


def test_fill_and_take_while_computing(rng: Rng) -> None:
    """Fills go on beside the engine, and wait only for the register that it writes to."""
    bench = Bench(rng, special=0)
    for register in (0, 1, 2, 7):
        bench.load(register)
    bench.settle()
    bench.look(0, 1, 7)
    for pace in (0, 100):
        for target in (2, 5):
            half = [vector(op, dest=2, a=0, b=1, lines=32)
                    for op in (VectorOp.ADD, VectorOp.MUL, VectorOp.SUB) * 4]
            lines = random_lines(rng, 32)
            bench.reference.registers[target, 32:] = lines
            bench.script.fill(target, lines, first=32)
            bench.run(half, pace, mask=1 << 0 | 1 << 1 | 1 << 7)
            bench.look(0, 1, 2, 5, 7)
    runs = bench.check()[1:]
    assert [ran.waits > 0 for ran in runs] == [True, False] * 2
    assert runs[0].waits < len(half) * 32 + 1, "the fills came through at the end at the latest"


@pytest.mark.parametrize("special", [0, 0.05])
def test_prune(special: float, rng: Rng) -> None:
    """Every pattern: the packed chunks of W and of W.T, in the slot asked for."""
    bench = Bench(rng, special=special)
    chunks = 0
    for n, pattern in enumerate(PATTERNS):
        bench.load(n % 3)
        bench.settle()
        count = 1 + n % 4
        bench.run([
            prune(pattern, a=n % 3, line=int(rng.integers(0, LINES - LANES * count + 1)),
                  chunks=count, slot=n % 2),
            prune(PATTERNS[-1 - n], a=n % 3, line=0, chunks=4 - n % 4, slot=1 - n % 2),
            vector(VectorOp.ADD, dest=n % 3, a=n % 3, b=n % 3),
        ])
        bench.look_at_packs()
        chunks += count
    bench.check()
    assert chunks > len(PATTERNS)


def test_prune_is_that_of_a_matrix(rng: Rng) -> None:
    """A (64, 16) panel of weights: FF packs it as it stands, BP each chunk of its transpose."""
    weights = rng.standard_normal((LINES, LANES)).astype(np.float32)
    pattern = NmPattern(2, 8)
    script = Script()
    script.fill(3, weights.view(np.uint32))
    script.run()
    script.issue(prune(pattern, a=3, chunks=4, slot=1))
    script.run()
    script.packs()
    _, _, (packs,) = model(4).play(script)
    form, half = ChunkFormat(pattern), weights.astype(np.float16)
    assert np.array_equal(packs[0, 1, :, : form.words], form.pack(half)[0])
    # The panels of W.T are the transposed chunks one by one.
    turned = form.pack(np.ascontiguousarray(half.T))[:, 0]
    assert np.array_equal(packs[1, 1, :, : form.words], turned)


def test_watch_and_clear(rng: Rng) -> None:
    """The sticky flag rises for a watched result alone, in any lane, and falls by CLEAR."""
    bench = Bench(rng, special=0)
    bench.load(0)
    for register, bits in ((1, INFINITY), (2, INFINITY | 1 << 31), (3, 0x7FC00000)):
        lines = random_lines(rng, LINES, 0)
        lines[rng.integers(0, LINES), rng.integers(0, LANES)] = bits
        bench.load(register, lines)
    bench.settle()

    def flags(*program: Decoded) -> list[int]:
        bench.run(program)
        return bench.expected_runs[-1][2]

    for register in (1, 2, 3):
        assert flags(vector(VectorOp.COPY, dest=4, a=register), clear()) == [0, 0]
        assert flags(vector(VectorOp.COPY, dest=4, a=register, watch=1)) == [1]
        assert flags(vector(VectorOp.COPY, dest=4, a=0, watch=1)) == [1]
        assert flags(vector(VectorOp.SUM, dest=4, a=0, period=1, watch=1), clear()) == [1, 0]
        assert flags(vector(VectorOp.DIV, dest=4, a=register, b=0, watch=1), clear()) == [1, 0]
        assert flags(vector(VectorOp.SUM, dest=4, a=register, period=9, watch=1)) == [1]
        assert flags(clear()) == [0]
    # -Inf and ReLU: the result counts. A maximum on the way does not.
    assert flags(vector(VectorOp.COPY, dest=4, a=2, watch=1, relu=1)) == [0]
    assert flags(vector(VectorOp.PEAK, dest=4, a=2, period=1, watch=1)) == [0]
    bench.run([vector(VectorOp.COPY, dest=4, a=1, watch=1)])
    bench.check()
    script = Script()
    for line in random_lines(rng, LINES, 0)[None]:
        script.fill(0, line)
    script.issue(vector(VectorOp.MUL, dest=1, a=0, source=Source.IMMEDIATE, immediate=INFINITY,
                        watch=1, lines=1))
    script.run()
    script.clear()
    (ran,), _, (flag,) = model(4).play(script)
    assert (ran.nonfinite, flag.tolist()) == ([1], [0])


def test_refused(rng: Rng) -> None:
    """What is refused does nothing, says why with its ``done``, and takes two cycles."""
    bench = Bench(rng)
    for register in range(2):
        bench.load(register)
    bench.settle()
    bad = {
        ErrorCode.RANGE: [
            vector(VectorOp.ADD, dest=1, line=1), vector(VectorOp.SUM, dest=1, line=63, lines=2),
            vector(VectorOp.DIV, dest=1, line=33, lines=32),
            prune(NmPattern(2, 8), a=0, line=1, chunks=4),
            prune(NmPattern(1, 2), a=0, line=49, chunks=1),
        ],
        ErrorCode.FIELD: [
            vector(VectorOp.SUM, dest=1), vector(VectorOp.PEAK, dest=1, keep=1),
            prune(NmPattern(2, 2), a=0), prune(NmPattern(5, 8), a=0), prune(NmPattern(8, 8), a=0),
            vector(VectorOp.ADD, dest=1, b=1, period=3),
            vector(VectorOp.ADD, dest=1, b=1, period=3, line=2, lines=9),
        ],
    }
    assert TIMING.refused(vector(VectorOp.ADD, dest=1, b=1, period=3, line=3, lines=9)) == 0
    for code, instructions in bad.items():
        for instruction in instructions:
            assert TIMING.refused(instruction) == code
            assert TIMING.cycles(instruction) == 2
            bench.run([instruction])
            bench.run([
                vector(VectorOp.MUL, dest=1, a=0, b=1, lines=4), instruction, instruction,
                vector(VectorOp.ADD, dest=1, a=1, b=0, lines=4), instruction,
            ])
            assert bench.expected_runs[-1][1] == [0, code, code, 0, code]
            bench.look(1)
    bench.look_at_packs()
    bench.check()


@pytest.mark.parametrize("op", VectorOp)
def test_cycles(any_cols: int, op: VectorOp, rng: Rng) -> None:
    """From ``valid & ready`` to ``done``, written out: issue, then operands, lane and write."""
    bench = Bench(rng, any_cols)
    beats = max(1, 16 // any_cols)
    short = 2 + max(Adder().latency, Multiplier32().latency) + 1 + 1
    long = 2 + DivideRoot().latency + 1 + 1
    depth = long if op in (VectorOp.DIV, VectorOp.SQRT) else short
    for lines in (1, 2, 9, 64):
        for drain in (0, 1):
            a_line = beats if drain else 1
            for period in (1, 3, 8, 11, 64):
                instruction = vector(op, dest=1, lines=lines, drain=drain, period=period, run=64)
                rounds, rest = divmod(lines - 1, period)
                expected = depth + lines * a_line
                if op in REDUCTIONS:
                    expected = depth + rounds * max(depth, period * a_line) + (rest + 1) * a_line
                timing = VectorTiming(ARCHITECTURES[any_cols])
                assert timing.cycles(instruction) == expected
                bench.run([instruction])
    bench.check()


def test_cycles_of_prune(rng: Rng) -> None:
    """PRUNE is SORE's time and five cycles: issue, register, operand, FP16, and the last write."""
    bench = Bench(rng)
    for pattern in PATTERNS:
        for chunks in range(1, 5):
            instruction = prune(pattern, chunks=chunks)
            expected = SoreTiming().cycles(chunks, pattern) + 5
            assert TIMING.cycles(instruction) == expected
            bench.run([instruction])
    assert TIMING.cycles(clear()) == 2
    bench.run([clear()])
    bench.check()
