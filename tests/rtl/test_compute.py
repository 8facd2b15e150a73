"""The compute unit against lists of tiles made from the instruction's definition, any stalls."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Elaboratable
from amaranth.sim import Simulator
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rtl.architecture import PRESETS, Architecture
from rtl.compute import ComputeTiming, ComputeUnit
from rtl.isa import COMPUTE
from rtl.registers import ErrorCode
from rtl.tile import TILE, Tile

ARCHITECTURES = (
    PRESETS["tiny"],
    Architecture.make(rows=3, cols=5, adder_stages=2, w2e_words=40, n2s_words=90, out_words=80),
    Architecture.make(rows=1, cols=2, adder_stages=5, w2e_words=64, n2s_words=128, out_words=64),
)
Block = dict[str, int]
PHASES = (Phase.reuse, Phase.generate)  # a smaller seed is no simpler


def tiles(architecture: Architecture, block: Block) -> list[Tile]:
    """Tiles of an instruction that obeys the rules, row tiles outside."""
    shares = block["interleave_rows"]
    height = architecture.rows * shares
    width = architecture.cols * (architecture.interleave // shares)
    group_words = 16 >> block["m_log2"]
    return [
        Tile(
            a_base=(block["a_base"] + top // architecture.rows * block["a_stride"]) * group_words,
            a_stride=block["a_stride"] * group_words,
            b_base=block["b_base"] + left // architecture.cols * block["b_stride"],
            b_stride=block["b_stride"],
            c_base=block["c_base"] + left // architecture.cols * block["c_stride"] + top,
            c_stride=block["c_stride"],
            groups=block["groups"], n=block["n"], m_log2=block["m_log2"],
            p_count=min(height, block["p_count"] - top),
            q_count=min(width, block["q_count"] - left),
            rows=architecture.rows, interleave_rows=shares,
            first=block["first"], last=block["last"],
        )
        for top in range(0, block["p_count"], height)
        for left in range(0, block["q_count"], width)
    ]


def verdict(architecture: Architecture, block: Block) -> ErrorCode:
    """What the unit must say of an instruction."""
    m = 1 << block["m_log2"]
    dense = (block["n"], m) == (1, 1)
    if not dense and 2 * block["n"] > m:
        return ErrorCode.FIELD
    if architecture.interleave % block["interleave_rows"]:
        return ErrorCode.FIELD
    if not (block["first"] and block["last"]) and len(tiles(architecture, block)) > 1:
        return ErrorCode.FIELD
    rows = -(-block["p_count"] // architecture.rows)
    columns = -(-block["q_count"] // architecture.cols)
    last_a = block["a_base"] + (rows - 1) * block["a_stride"] + -(-block["groups"] * m // 16)
    last_b = block["b_base"] + (columns - 1) * block["b_stride"] + block["groups"] * block["n"]
    last_c = block["c_base"] + (columns - 1) * block["c_stride"] + block["p_count"]
    inside = (last_a <= architecture.w2e_words and last_b <= architecture.n2s_words
              and last_c <= architecture.out_words)
    return ErrorCode.NONE if inside else ErrorCode.RANGE


@dataclass
class Seen:
    """What happened, with the cycle of it."""

    taken: list[int] = field(default_factory=list)
    tiles: list[tuple[int, Tile]] = field(default_factory=list)
    first_valid: int | None = None
    retired: list[int] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    errors: list[ErrorCode] = field(default_factory=list)
    macs: list[tuple[int, int]] = field(default_factory=list)
    most: int = 0


def simulate(
    architecture: Architecture, blocks: list[Block], seed: int = 0, stalls: float = 0.5,
    delay: int = 12, period: int = 1,
) -> Seen:
    """Runs instructions with a mock array: up to 3 tiles, one in ``period`` cycles, in order."""
    unit, rng, seen = ComputeUnit(architecture), np.random.default_rng(seed), Seen()
    assert isinstance(unit, Elaboratable)
    words = [COMPUTE.encode(**block) for block in blocks]

    async def bench(ctx: Any) -> None:
        array: list[tuple[bool, int]] = []  # tiles under way: whether they retire, and when
        offer = False
        for cycle in range(200_000):
            next_word = len(seen.taken)
            offer = next_word < len(words) and (offer or rng.random() >= stalls)
            ctx.set(unit.port.valid, offer)
            ctx.set(unit.port.word, words[next_word] if offer else 0)
            over = bool(array) and array[0][1] <= cycle
            retires = over and array[0][0]
            ctx.set(unit.retired, retires)
            if retires:
                seen.retired.append(cycle)
            ctx.set(unit.busy, bool(array))
            may_take = len(array) < 3 and cycle % period == 0
            ctx.set(unit.tile_ready, may_take and rng.random() >= stalls)
            if ctx.get(unit.port.done):
                seen.done.append(cycle)
            if code := ctx.get(unit.port.error):
                seen.errors.append(ErrorCode(code))
            if ctx.get(unit.counted):
                seen.macs.append((ctx.get(unit.macs), ctx.get(unit.macs_skipped)))
            if ctx.get(unit.tile_valid):
                if seen.first_valid is None:
                    seen.first_valid = cycle
                if ctx.get(unit.tile_ready):
                    tile = ctx.get(unit.tile)
                    values = {name: tile[name] for name in TILE.members}
                    seen.tiles.append((cycle, Tile(**values)))
                    start = array[-1][1] if array else cycle
                    array.append((bool(values["last"]), start + 1 + int(rng.integers(delay))))
            if offer and ctx.get(unit.port.ready):
                seen.taken.append(cycle)
                offer = False
            seen.most = max(seen.most, len(seen.taken) - len(seen.done))
            if over and not array.pop(0)[0]:
                seen.released.append(cycle + 1)
            if len(seen.done) == len(words):
                return
            await ctx.tick()
        pytest.fail(f"{len(words) - len(seen.done)} instructions never completed")

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return seen


def check(architecture: Architecture, blocks: list[Block], seen: Seen) -> None:
    """Tiles, errors and amounts are right, and every ``done`` comes neither early nor late."""
    verdicts = [verdict(architecture, block) for block in blocks]
    legal = [block for block, code in zip(blocks, verdicts, strict=True) if not code]
    assert seen.errors == [code for code in verdicts if code]
    assert [tile for _, tile in seen.tiles] == [
        tile for block in legal for tile in tiles(architecture, block)
    ]
    assert seen.macs == [
        (size * block["n"], size * ((1 << block["m_log2"]) - block["n"]))
        for block in legal
        for size in [block["p_count"] * block["q_count"] * block["groups"]]
    ]
    assert seen.most <= 6
    assert seen.taken == sorted(seen.taken) and seen.done == sorted(set(seen.done))
    retire = ComputeTiming(architecture).retire
    retired, released, sent, before = 0, 0, 0, -1
    for block, code, done in zip(blocks, verdicts, seen.done, strict=True):
        if code:
            assert done > before
        elif block["last"]:
            count = len(tiles(architecture, block))
            retired, sent = retired + count, sent + count
            assert done == max(seen.retired[retired - 1] + retire, before + 1)
        else:
            released, sent = released + 1, sent + 1
            assert done >= seen.released[released - 1]
            assert done > before
            assert all(cycle > done for cycle, _ in seen.tiles[sent:])
        before = done
    assert sent == len(seen.tiles) and retired == len(seen.retired)


def random_block(architecture: Architecture, rng: np.random.Generator, wild: float) -> Block:
    """An instruction; the buffers of the architectures are small, so that some end in RANGE."""
    m_log2 = int(rng.integers(5))
    n = 1 if m_log2 == 0 else int(rng.integers(1, (1 << m_log2) // 2 + 1))
    shares = [s for s in range(1, 6) if architecture.interleave % s == 0]
    block = {
        "a_base": int(rng.integers(8)), "a_stride": int(rng.integers(6)),
        "b_base": int(rng.integers(16)), "b_stride": int(rng.integers(12)),
        "c_base": int(rng.integers(16)), "c_stride": int(rng.integers(12)),
        "groups": int(rng.integers(1, 6)), "p_count": int(rng.integers(1, 40)),
        "q_count": int(rng.integers(1, 40)), "n": n, "m_log2": m_log2,
        "interleave_rows": int(rng.choice(shares)), "first": 1, "last": 1,
    }
    if rng.random() < 0.3:
        block |= {"first": int(rng.integers(2)), "last": int(rng.integers(2)), "p_count": 1,
                  "q_count": 1}
    if rng.random() < wild:
        name = str(rng.choice(["n", "m_log2", "interleave_rows", "groups", "a_base",
                               "b_base", "c_base", "a_stride", "b_stride", "c_stride", "last"]))
        rule = next(f for f in COMPUTE.fields if f.name == name)
        block[name] = int(rng.integers(rule.low, rule.top + 1))
    return block


@settings(max_examples=25, phases=PHASES)
@given(seed=st.integers(0, 2**32 - 1), which=st.sampled_from(range(len(ARCHITECTURES))),
       stalls=st.sampled_from((0.0, 0.3, 0.8)), delay=st.sampled_from((1, 4, 40)))
def test_random_programs(seed: int, which: int, stalls: float, delay: int) -> None:
    architecture, rng = ARCHITECTURES[which], np.random.default_rng(seed)
    blocks = [random_block(architecture, rng, 0.4) for _ in range(12)]
    check(architecture, blocks, simulate(architecture, blocks, seed, stalls, delay))


PLAIN = {
    "a_base": 1, "a_stride": 3, "b_base": 2, "b_stride": 5, "c_base": 0, "c_stride": 9, "groups": 2,
    "p_count": 9, "q_count": 10, "n": 2, "m_log2": 3, "interleave_rows": 2, "first": 1, "last": 1,
}
TINY = PRESETS["tiny"]


@pytest.mark.parametrize(
    ("code", "change"),
    [
        (ErrorCode.NONE, {}),
        (ErrorCode.FIELD, {"interleave_rows": 3}),
        (ErrorCode.FIELD, {"interleave_rows": 5}),
        (ErrorCode.FIELD, {"n": 5}),
        (ErrorCode.FIELD, {"n": 1, "m_log2": 0, "last": 0}),
        (ErrorCode.FIELD, {"n": 2, "m_log2": 0}),
        (ErrorCode.FIELD, {"n": 2, "m_log2": 1}),
        (ErrorCode.NONE, {"n": 1, "m_log2": 1}),
        (ErrorCode.FIELD, {"first": 0}),
        (ErrorCode.NONE, {"first": 0, "p_count": 8, "q_count": 8}),
        (ErrorCode.FIELD, {"last": 0, "p_count": 9, "q_count": 8}),
        (ErrorCode.FIELD, {"last": 0, "p_count": 8, "q_count": 9}),
        # The last word of each buffer, and the first beyond it.
        (ErrorCode.NONE, {"a_base": TINY.w2e_words - 2 * 3 - 1}),
        (ErrorCode.RANGE, {"a_base": TINY.w2e_words - 2 * 3}),
        (ErrorCode.NONE, {"b_base": TINY.n2s_words - 2 * 5 - 4}),
        (ErrorCode.RANGE, {"b_base": TINY.n2s_words - 2 * 5 - 3}),
        (ErrorCode.NONE, {"c_base": TINY.out_words - 2 * 9 - 9}),
        (ErrorCode.RANGE, {"c_base": TINY.out_words - 2 * 9 - 8}),
        (ErrorCode.RANGE, {"groups": (1 << 20) - 1}),
        (ErrorCode.RANGE, {"p_count": 0xFFFF}),
        (ErrorCode.RANGE, {"a_stride": 0xFFFF}),
        (ErrorCode.RANGE, {"b_stride": 0xFFFFF}),
        (ErrorCode.RANGE, {"c_stride": 0xFFFFF}),
    ],
)
def test_rules(code: ErrorCode, change: Block) -> None:
    """Each rule, right at its bound; what stands before and after runs as ever."""
    block = PLAIN | change
    assert verdict(TINY, block) == code
    blocks = [PLAIN, block, PLAIN]
    seen = simulate(TINY, blocks)
    assert seen.errors == [code] * bool(code)
    check(TINY, blocks, seen)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (9, 10), (30, 3), (3, 50)])
def test_start(p: int, q: int) -> None:
    """From the instruction to the first tile, and to the next instruction."""
    block = PLAIN | {"p_count": p, "q_count": q}
    seen = simulate(TINY, [block, block], stalls=0)
    timing = ComputeTiming(TINY)
    assert seen.first_valid is not None
    assert seen.first_valid - seen.taken[0] == timing.start(p, q)
    assert seen.taken[1] - seen.taken[0] == timing.check(p, q) + 1
    assert len(seen.tiles) == 2 * len(tiles(TINY, block))


@pytest.mark.parametrize("period", [1, 2, 3])
def test_tiles_follow_each_other(period: int) -> None:
    """The array takes a tile whenever it can, also from the next instruction if it is checked."""
    block = PLAIN | {"p_count": 32, "q_count": 4, "groups": 1, "interleave_rows": 1}
    seen = simulate(TINY, [block] * 4, stalls=0, delay=1, period=period)
    cycles = [cycle for cycle, _ in seen.tiles]
    assert len(cycles) == 32
    gaps = [b - a for a, b in itertools.pairwise(cycles)]
    assert {gap for n, gap in enumerate(gaps, 1) if n % 8} == {period}
    # A tile takes ``period`` cycles here, so that 8 of them last longer than the check or not.
    between = {gap for n, gap in enumerate(gaps, 1) if n % 8 == 0}
    checked_in_time = ComputeTiming(TINY).check(32, 4) < 8 * period
    assert (between == {period}) == (checked_in_time and period > 1)
