"""The write DMA's RTL: AXI rules, memory contents, bursts, order of completion, rate."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from write_model import IDEAL, RESPONSE, STALLS, Log, Memory, Stall, WriteModel

from rtl.architecture import Architecture
from rtl.axi import BOUNDARY
from rtl.registers import ErrorCode
from rtl.write_dma import Burst, WriteDma, WriteTiming

Rng = np.random.Generator
Store = list[int]
"""Addresses of the words up to a flush; none: a blank."""

SHAPES = [(32, 64), (64, 1), (128, 16)]
"""Bytes of the bus, longest burst."""

_RECORD = np.dtype([("word", "u1", 32), ("flags", "u4"), ("address", "u4", 2)])
FLUSH, BLANK = 1, 2


@cache
def model(bus: int, beats: int) -> WriteModel:
    """The DMA with that bus and bursts up to that length."""
    architecture = Architecture.make(rows=4, cols=4, bus_bytes=bus, burst_beats=beats)
    return WriteModel.build(WriteDma(architecture), architecture)


def records(rng: Rng, stores: Sequence[Store]) -> tuple[bytes, Memory]:
    """What the harness drives, with random words, and memory afterwards."""
    memory: Memory = {}
    made = np.zeros(sum(max(len(store), 1) for store in stores), _RECORD)
    made["word"] = rng.integers(0, 256, made["word"].shape)
    number = 0
    for store in stores:
        for address in store:
            made[number]["address"] = address & 0xFFFFFFFF, address >> 32
            memory[address] = made[number]["word"].tobytes()
            number += 1
        number += not store
        made[number - 1]["flags"] = FLUSH if store else BLANK
    return made.tobytes(), memory


def draw(rng: Rng) -> Store:
    """A store as the unit might make it, or one that it never makes."""
    base = int(rng.integers(0, 1 << 30))
    if rng.integers(3) == 0:  # around the end of a page
        base = base // 128 * 128 + 128 - int(rng.integers(1, 9))
    length = int(rng.choice([1, 2, 3, 5, 17, 40, 130]))
    match int(rng.integers(6)):
        case 0:
            return []
        case 1:
            return [base + n * 3 // 2 for n in range(length)]
        case 2:
            return [base + int(step) for step in rng.integers(0, 6, length)]
        case 3:
            row, pitch = int(rng.integers(1, 9)), int(rng.integers(0, 40))
            return [base + n // row * pitch + n % row for n in range(length)]
        case _:
            return list(range(base, base + length))


def expected(timing: WriteTiming, stores: Sequence[Store]) -> list[list[Burst]]:
    """The bursts of each store, by the spec object."""
    return [timing.bursts(store) for store in stores]


def check(made: WriteModel, log: Log, stores: Sequence[Store], memory: Memory) -> None:
    """Memory, bursts, and that each flush is done after the responses to all before it."""
    wanted = expected(WriteTiming(made.architecture), stores)
    assert log.memory == memory
    assert [(burst.address, burst.beats) for burst in log.bursts] == [
        (burst.address, burst.beats) for bursts in wanted for burst in bursts]
    assert len(log.done) == len(stores)
    ends = np.cumsum([len(bursts) for bursts in wanted])
    taken = log.taken[np.cumsum([max(len(store), 1) for store in stores]) - 1]
    for done, end, last in zip(log.done, ends, taken, strict=True):
        assert done > last
        assert done > max((burst.b for burst in log.bursts[:end]), default=-1)


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize(("bus", "beats"), SHAPES)
def test_stores(rng: Rng, bus: int, beats: int, stall: str) -> None:
    """Stores of all kinds, with a subordinate of every temper."""
    made = model(bus, beats)
    stores = [draw(rng) for _ in range(120)]
    given, memory = records(rng, stores)
    log = made.run(given, int(rng.integers(1 << 32)), STALLS[stall])
    check(made, log, stores, memory)
    print(f"{bus}-byte bus, {stall}: {len(log.bursts)} bursts, {len(log.taken)} words")
    assert len(log.bursts) > 100


@pytest.mark.parametrize(("bus", "beats"), SHAPES)
def test_bursts_are_as_long_as_they_may_be(rng: Rng, bus: int, beats: int) -> None:
    """The spec object: neighbours join unless they would break a limit. No two could be one."""
    timing = WriteTiming(Architecture.make(bus_bytes=bus, burst_beats=beats))
    joints = 0
    for _ in range(300):
        for left, right in pairwise(timing.bursts(draw(rng))):
            end = left.address + left.beats * bus
            assert right.address != end or left.beats == beats or end % BOUNDARY == 0
            joints += 1
    assert joints > 300


@pytest.mark.parametrize(("bus", "beats"), SHAPES)
def test_timing(rng: Rng, bus: int, beats: int) -> None:
    """One store at a time on an ideal bus: AW, last beat and ``done`` when the formulas say."""
    made = model(bus, beats)
    timing = WriteTiming(made.architecture)
    compared = 0
    for response in (1, 7):
        for _ in range(25):
            store = draw(rng)
            given, memory = records(rng, [store])
            log = made.run(given, 1, Stall(latency=response))
            check(made, log, [store], memory)
            start = int(log.taken[0])
            assert log.taken.tolist() == list(range(start, start + len(log.taken)))
            bursts = timing.bursts(store)
            if bursts:
                assert [sent.aw_offered - start for sent in log.bursts] == [
                    burst.last_word + timing.launch for burst in bursts]
                last = timing.last_beat(bursts)
                assert log.bursts[-1].w - start == last
                assert log.done[0] - start == last + response + timing.answer
            else:
                assert log.done[0] - start == timing.blank
            compared += 1
    assert compared == 50


@pytest.mark.parametrize(("bus", "beats"), SHAPES)
@pytest.mark.parametrize("length", [1, 4, 100])
def test_sustained_rate(rng: Rng, bus: int, beats: int, length: int) -> None:
    """A word a cycle without a gap, while responses take a while: one word a store and more."""
    made = model(bus, beats)
    places = rng.integers(0, 1 << 30, 2000 // length)
    stores = [list(range(place, place + length)) for place in places.tolist()]
    given, memory = records(rng, stores)
    log = made.run(given, 1, Stall(latency=20))
    check(made, log, stores, memory)
    assert np.all(np.diff(log.taken) == 1)
    assert len(log.taken) == 2000


def test_several_are_outstanding(rng: Rng) -> None:
    """Slow responses: as many bursts as the limit allows are on their way, and no more."""
    made = model(128, 16)
    stores = [[place] for place in rng.integers(0, 1 << 40, 200).tolist()]
    given, memory = records(rng, stores)
    log = made.run(given, 1, Stall(latency=300))
    check(made, log, stores, memory)
    most = max(sum(one.aw <= burst.aw < one.b for one in log.bursts) for burst in log.bursts)
    assert most == WriteTiming(made.architecture).outstanding


def test_data_waits_for_no_address_to_be_taken(rng: Rng) -> None:
    """The rule against deadlock: W comes with AW, and goes on when AW has not been taken."""
    made = model(32, 64)
    given, memory = records(rng, [list(range(10))])
    log = made.run(given, 1, Stall(mode="w"))
    assert log.memory == memory
    assert len(log.bursts) == 1
    burst = log.bursts[0]
    assert burst.w_offered == burst.aw_offered
    assert burst.aw > burst.w == burst.w_offered + 9


@pytest.mark.parametrize("stall", ["ideal", "all"])
def test_errors(rng: Rng, stall: str) -> None:
    """Bad responses strobe their code in the next cycle, each; the rest goes on as ever."""
    codes = {0: None, 1: None, 2: ErrorCode.WRITE_SLAVE, 3: ErrorCode.WRITE_DECODE}
    made = model(64, 1)
    answers = rng.integers(0, 4, 150).tolist()
    stores = [[int(rng.integers(1 << 20)) | answer << (RESPONSE - 5)] for answer in answers]
    given, memory = records(rng, stores)
    log = made.run(given, int(rng.integers(1 << 32)), STALLS[stall])
    check(made, log, stores, memory)
    assert log.errors == [
        (burst.b + 1, codes[answer])
        for burst, answer in zip(log.bursts, answers, strict=True) if codes[answer] is not None]
    assert len(log.errors) > 40
    assert len({code for _, code in log.errors}) == 2


def test_nothing_without_a_word() -> None:
    """No offer on any channel before the first word, nor a ``done``."""
    log = model(64, 1).run(b"", 1, IDEAL)
    assert (log.bursts, len(log.done), log.errors) == ([], 0, [])
