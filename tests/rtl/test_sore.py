"""SORE's RTL against the packed chunk format: every pattern, any stalls, measured rate."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_model import Given, StreamModel, Words

from rtl.chunk import ChunkFormat
from rtl.netlist import to_verilog
from rtl.pattern import HARDWARE_M, NmPattern
from rtl.sore import Sore, SoreLane, SoreTiming
from sim.toolchain import ToolError, find_verilator, find_yosys

PATTERNS = [NmPattern(n, m) for m in HARDWARE_M for n in range(1, m // 2 + 1)]
SPECIAL = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x3C00, 0xBC00, 0x7C00, 0xFC00, 0x7C01,
                    0x7E00, 0xFFFF], np.uint16)
TIMING = SoreTiming()
NEVER = 512
"""The harness's stall of a stream that is never ready."""


@pytest.fixture(scope="module")
def model() -> StreamModel:
    ports: dict[str, Any] = {f"{stream}_{name.upper()}": f"{axis}_{name}"
             for stream, axis in (("A", "ff"), ("B", "bp"))
             for name in ("word", "valid", "ready", "last")}
    return StreamModel.build(Sore(), PATTERN=1, **ports)


def chunk(rng: np.random.Generator, kind: str) -> Words:
    """Bits of a dense chunk."""
    if kind == "normal":
        return rng.standard_normal((16, 16)).astype(np.float16).view(np.uint16)
    if kind == "ties":
        return rng.integers(-1, 2, (16, 16)).astype(np.float16).view(np.uint16)
    if kind == "special":
        return rng.choice(SPECIAL, (16, 16))
    if kind == "equal":
        return np.full((16, 16), rng.choice(SPECIAL), np.uint16)
    return rng.integers(0, 1 << 16, (16, 16), np.uint16)


KINDS = ("normal", "ties", "special", "equal", "bits")


def run(
    model: StreamModel, chunks: list[tuple[Words, NmPattern]], seed: int = 0,
    stalls: tuple[int, int, int] = (0, 0, 0),
) -> tuple[Given, Given]:
    """Puts the chunks through and checks every word and every ``last`` of both streams."""
    expected = [
        [ChunkFormat(pattern).pack(weights.view(np.float16))[0, 0] for weights, pattern in side]
        for side in (chunks, [(np.ascontiguousarray(w.T), p) for w, p in chunks])
    ]
    counts = [sum(map(len, words)) for words in expected]
    # Only the first row of a chunk needs its pattern: the others bring something else.
    patterns = np.full((len(chunks), 16), 5 | 1 << 8, np.uint32)
    patterns[:, 0] = [p.n | (p.m.bit_length() - 1) << 8 for _, p in chunks]
    both = model.stream(
        np.concatenate([weights for weights, _ in chunks]), (counts[0], counts[1]), seed=seed,
        patterns=patterns.ravel(), stalls=stalls,
    )
    for axis, stream, words in zip(("ff", "bp"), both, expected, strict=True):
        assert np.array_equal(stream.words, np.concatenate(words)), axis
        ends = np.cumsum([len(chunk_words) for chunk_words in words]) - 1
        assert np.flatnonzero(stream.last).tolist() == ends.tolist(), axis
    return both


def test_all_patterns(model: StreamModel, rng: np.random.Generator) -> None:
    """Every pattern after every other, with every kind of contents."""
    order = [pattern for pair in itertools.product(PATTERNS, repeat=2) for pattern in pair]
    chunks = [(chunk(rng, KINDS[n % len(KINDS)]), pattern) for n, pattern in enumerate(order)]
    ff, bp = run(model, chunks)
    print(f"sore: {len(chunks)} chunks, {len(ff.words) + len(bp.words)} packed words")
    assert len(chunks) == 2 * 15**2


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[Words, NmPattern]]:
    """Some chunks with their patterns."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sources = draw(st.lists(
        st.tuples(st.sampled_from(KINDS), st.sampled_from(PATTERNS)), min_size=1, max_size=12
    ))
    return [(chunk(rng, kind), pattern) for kind, pattern in sources]


def test_shallow_lane(rng: np.random.Generator) -> None:
    """A selector of one stage, behind which words arrive soonest after their admission."""
    lane = StreamModel.build(SoreLane(1), PATTERN=1, A_WORD="packed", A_VALID="packed_valid",
                             A_READY="packed_ready", A_LAST="packed_last")
    for seed in range(20):
        chunks = [(chunk(rng, "bits"), PATTERNS[n]) for n in rng.integers(0, len(PATTERNS), 12)]
        expected = np.concatenate([
            ChunkFormat(pattern).pack(weights.T.view(np.float16))[0, 0]
            for weights, pattern in chunks
        ])
        registers = np.repeat([p.n | (p.m.bit_length() - 1) << 8 for _, p in chunks], 16)
        packed, _ = lane.stream(
            np.concatenate([weights for weights, _ in chunks]), (len(expected), 0), seed=seed,
            patterns=registers.astype(np.uint32), stalls=(30 * (seed % 2), 20 * (seed % 4), 0),
        )
        assert np.array_equal(packed.words, expected)
        if seed == 0:
            assert packed.cycle[0] == SoreTiming(1).lane_latency


often = st.sampled_from([0, 3, 30, 120, 200])
shy = st.sampled_from([0, 256])


@settings(max_examples=60)
@given(streams(), st.integers(0, 2**32 - 1), st.tuples(often, often, often), st.tuples(shy, shy))
def test_stalls(
    model: StreamModel, chunks: list[tuple[Words, NmPattern]], seed: int,
    stalls: tuple[int, int, int], waits: tuple[int, int],
) -> None:
    """Pauses of the input and of either output change no word; nor does ready after valid."""
    run(model, chunks, seed, (stalls[0], stalls[1] | waits[0], stalls[2] | waits[1]))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_rate(model: StreamModel, pattern: NmPattern, rng: np.random.Generator) -> None:
    """A chunk each 16 cycles, in a run whose length is what the timing object says."""
    count = 40
    ff, bp = run(model, [(chunk(rng, "bits"), pattern) for _ in range(count)])
    words = ChunkFormat(pattern).words
    for stream, latency in ((ff, TIMING.ff_latency), (bp, TIMING.bp_latency)):
        starts = stream.cycle.reshape(count, words)[:, 0]
        assert starts[0] == latency
        assert (np.diff(starts) == TIMING.chunk_cycles).all()
        assert (np.diff(stream.cycle.reshape(count, words), axis=1) == 1).all()
    assert ff.cycle[-1] + 1 == TIMING.cycles(count, pattern)


@pytest.mark.parametrize(("stuck", "room"), [(0, 4), (1, 2)], ids=["ff", "bp"])
def test_one_stream_is_stuck(model: StreamModel, stuck: int, room: int) -> None:
    """The other one gives all that is inside: four chunks behind FF, two behind BP, not more."""
    pattern = NmPattern(2, 8)
    expected, stalls = [0, 0], [0, 0, 0]
    stalls[1 + stuck] = NEVER
    for chunks in (room, room + 1):
        expected[1 - stuck] = chunks * ChunkFormat(pattern).words
        arguments = np.zeros((16 * chunks, 16), np.uint16), (expected[0], expected[1])
        patterns = np.full(16 * chunks, 2 | 3 << 8, np.uint32)
        if chunks == room:
            model.stream(*arguments, patterns=patterns, stalls=(0, stalls[1], stalls[2]))
        else:
            with pytest.raises(ToolError, match="nothing moves any more"):
                model.stream(*arguments, patterns=patterns, stalls=(0, stalls[1], stalls[2]))


def test_timing() -> None:
    """The formulas in numbers."""
    assert (TIMING.chunk_cycles, TIMING.bp_latency, TIMING.ff_latency) == (16, 20, 37)
    assert TIMING.cycles(1, NmPattern(2, 8)) == 37 + 5
    assert TIMING.cycles(100, NmPattern(8, 16)) == 99 * 16 + 37 + 10


def test_lint(tmp_path: Path) -> None:
    """Clean but for what Amaranth's Verilog cannot avoid (see test_netlist)."""
    find_yosys()
    (tmp_path / "sore.v").write_text(to_verilog(Sore(), "sore"))
    waived = ("DECLFILENAME", "PROCASSINIT", "UNUSEDSIGNAL", "WIDTHEXPAND", "WIDTHTRUNC")
    verilator = find_verilator()
    done = subprocess.run(
        [verilator.executable, "--lint-only", "-Wall", "-Wno-fatal", "--top-module", "sore",
         *(f"-Wno-{name}" for name in waived), tmp_path / "sore.v"],
        env=verilator.environment(), capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
