"""The corner turn's RTL against numpy's transpose, with and without stalls; latency and rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_model import StreamModel

from rtl.corner_turn import CornerTurn

SIDE = 16


@pytest.fixture(scope="module")
def model() -> StreamModel:
    return StreamModel.build(
        CornerTurn(), A_WORD="turned", A_VALID="turned_valid", A_READY="turned_ready"
    )


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(0, 200), st.integers(0, 511))
def test_transposes(
    model: StreamModel, blocks: int, seed: int, stall_in: int, stall_out: int
) -> None:
    """Every block, whatever waits; also when ready waits for valid."""
    data = np.random.default_rng(seed).integers(0, 1 << 16, (blocks, SIDE, SIDE), np.uint16)
    count = blocks * SIDE
    stall = min(stall_out & 0xFF, 200) | stall_out & 0x100
    turned, _ = model.stream(
        data.reshape(count, SIDE), (count, 0), seed=seed, stalls=(stall_in, stall, 0)
    )
    assert np.array_equal(turned.words, data.transpose(0, 2, 1).reshape(count, SIDE))


def test_latency_and_rate(model: StreamModel) -> None:
    """A word a cycle through any number of blocks, and the last block needs no input behind it."""
    count = 20 * SIDE
    turned, _ = model.stream(np.zeros((count, SIDE), np.uint16), (count, 0))
    assert turned.cycle.tolist() == list(range(SIDE + 1, SIDE + 1 + count))


def test_block_leaves_while_the_next_stalls(model: StreamModel) -> None:
    """Pauses of the input do not hold up what is complete: 16 words leave without a gap."""
    count = 10 * SIDE
    turned, _ = model.stream(
        np.zeros((count, SIDE), np.uint16), (count, 0), seed=1, stalls=(100, 0, 0)
    )
    gaps = np.diff(turned.cycle.reshape(-1, SIDE), axis=1)
    assert gaps.size
    assert (gaps == 1).all()
    assert turned.cycle[-1] > count + 100  # the input did stall


@pytest.mark.parametrize(("width", "side"), [(20, 8), (1, 2), (7, 4)])
def test_other_sizes(width: int, side: int, rng: np.random.Generator) -> None:
    """Transposes whatever the arguments, in Amaranth's simulator."""
    unit = CornerTurn(width, side)
    blocks = rng.integers(0, 1 << width, (3, side, side))
    words, seen = blocks.reshape(-1, side), []

    async def feed(ctx: Any) -> None:
        ctx.set(unit.valid, 1)
        for word in words:
            ctx.set(unit.word, word.tolist())
            await ctx.tick().until(unit.ready)
        ctx.set(unit.valid, 0)

    async def read(ctx: Any) -> None:
        ctx.set(unit.turned_ready, 1)
        for _ in words:
            (word,) = await ctx.tick().sample(unit.turned).until(unit.turned_valid)
            seen.append([word[lane] for lane in range(side)])

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(feed)
    simulator.add_testbench(read)
    simulator.run()
    assert seen == blocks.transpose(0, 2, 1).reshape(-1, side).tolist()
