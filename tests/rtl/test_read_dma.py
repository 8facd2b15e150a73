"""The read DMA's RTL: words, bursts, errors, rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from read_model import (
    AR,
    BEAT,
    ERROR,
    IDEAL,
    RESPONSE,
    STALLS,
    TAKEN,
    WORD,
    ReadModel,
    Stall,
    memory,
)

from rtl.architecture import Architecture
from rtl.axi import BOUNDARY
from rtl.chunk import WORD_BYTES
from rtl.read_dma import ReadDma, ReadDmaTiming
from rtl.registers import ErrorCode

Rng = np.random.Generator
Bursts = list[tuple[int, int]]
"""Byte address and beats of each."""

ARCHITECTURES = {
    "32": Architecture.make(bus_bytes=32, burst_beats=64, read_beats=16),
    "64": Architecture.make(bus_bytes=64, burst_beats=16, read_beats=256),
    "128": Architecture.make(bus_bytes=128, burst_beats=64, read_beats=33),
}
_RECORD = np.dtype([("address", "u8"), ("zero", "u4"), ("flush", "u4"), ("mark", "u4"),
                    ("pad", "u4")])


@dataclass(frozen=True)
class Request:
    """One word asked for; ``None`` is a zero word."""

    address: int | None
    flush: bool = False


@cache
def model(name: str) -> ReadModel:
    """Its executable."""
    architecture = ARCHITECTURES[name]
    return ReadModel.build(ReadDma(architecture), architecture, unit=False)


def run(name: str, requests: Sequence[Request], stall: Stall) -> npt.NDArray[Any]:
    """The log, with words and marks checked."""
    records = np.zeros(len(requests), _RECORD)
    for record, (number, request) in zip(records, enumerate(requests), strict=True):
        # The address that comes with a zero request means nothing.
        record["address"] = 12345 + number if request.address is None else request.address
        record["zero"], record["flush"] = request.address is None, request.flush
        record["mark"] = number % 3 == 0
    log = model(name).run(records.tobytes(), stall)
    words = log[log["kind"] == WORD]
    assert len(words) == len(requests)
    expected = memory(records["address"]) * (1 - records["zero"][:, None]).astype(np.uint16)
    got = np.ascontiguousarray(words["data"][:, :WORD_BYTES]).view(np.uint16)
    assert np.array_equal(got, expected)
    assert np.array_equal(words["value"], records["mark"])
    return log


def bursts_of(log: npt.NDArray[Any]) -> Bursts:
    """The bursts in their order."""
    asked = log[log["kind"] == AR]
    return list(zip(asked["address"].tolist(), asked["value"].tolist(), strict=True))


def coalesced(name: str, requests: Sequence[Request]) -> Bursts:
    """The bursts that the requests must become, if nothing ever waits for a tag."""
    architecture = ARCHITECTURES[name]
    size = architecture.bus_bytes
    longest = min(architecture.burst_beats, architecture.read_beats // 2)
    bursts: Bursts = []
    joins = False
    for request in requests:
        if request.address is not None:
            beat = request.address * WORD_BYTES // size * size
            start, beats = bursts[-1] if joins else (0, 0)
            if joins and beat == start + (beats - 1) * size:
                pass
            elif joins and beat == start + beats * size and beats < longest and beat % BOUNDARY:
                bursts[-1] = start, beats + 1
            else:
                bursts.append((beat, 1))
            joins = True
        joins = joins and not request.flush
    return bursts


def random_requests(rng: Rng, count: int) -> list[Request]:
    """Runs of ascending words, repeats, jumps, zero words and flushes."""
    requests = []
    address = int(rng.integers(1 << 30))
    for _ in range(count):
        kind = rng.random()
        if kind < 0.06:
            address = int(rng.integers(1 << 35)) | int(rng.integers(1 << 20)) << 38
        elif kind < 0.12:
            address += int(rng.integers(-4, 9))
        elif kind < 0.9:
            address += 1
        requests.append(Request(None if rng.random() < 0.15 else address, rng.random() < 0.03))
    return requests


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_words_and_bursts(name: str, stall: str, rng: Rng) -> None:
    """Every word, whatever stalls; the rules of the bus are checked by the harness."""
    requests = [*random_requests(rng, 3000), Request(int(rng.integers(1 << 30)), True)]
    log = run(name, requests, STALLS[stall])
    bursts = bursts_of(log)
    assert sum(beats for _, beats in bursts) == np.count_nonzero(log["kind"] == BEAT)
    assert not np.any(log["kind"] == ERROR)
    if (name, stall) == ("64", "ideal"):
        # Deep enough that no burst is cut short for want of tags.
        assert bursts == coalesced(name, requests)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_longest_bursts(name: str) -> None:
    """A long run is cut at the longest burst and at 4 KB, nowhere else."""
    first = BOUNDARY // WORD_BYTES * 7 - 5
    requests = [*map(Request, range(first, first + 600)), Request(first + 600, True)]
    bursts = bursts_of(run(name, requests, Stall(latency=0)))
    assert bursts == coalesced(name, requests)
    longest = ReadDmaTiming(ARCHITECTURES[name]).burst_beats
    assert max(beats for _, beats in bursts) == longest


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_open_burst_behind_full_tags(name: str) -> None:
    """More zero words than there are tags: the burst that the first word opened leaves anyway."""
    requests = [Request(1000), *[Request(None)] * 3000, Request(1001), Request(None, True)]
    assert len(bursts_of(run(name, requests, IDEAL))) == 2


def test_flush_by_a_zero_word() -> None:
    """A flush seals the open burst also if it comes with a zero word; the beat is read again."""
    requests = [Request(64), Request(None, True), Request(65, True), Request(None, True),
                Request(66, True)]
    assert bursts_of(run("64", requests, IDEAL)) == [(2048, 1), (2048, 1), (2112, 1)]


@pytest.mark.parametrize("response", [0, 1, 2, 3])
def test_errors(response: int) -> None:
    """SLVERR and DECERR are reported, and the words come; EXOKAY is no error."""
    bad = response << (RESPONSE - 5)
    log = run("64", [*map(Request, range(8)), *(Request(bad + n) for n in range(4)),
                     Request(99, True)], STALLS["slow bus"])
    codes = {0: [], 1: [], 2: [ErrorCode.READ_SLAVE] * 2, 3: [ErrorCode.READ_DECODE] * 2}
    assert log["value"][log["kind"] == ERROR].tolist() == codes[response]


@pytest.mark.parametrize("words", [1, 5, 20])
def test_latency(words: int) -> None:
    """The two latencies as the timing object gives them."""
    timing = ReadDmaTiming(ARCHITECTURES["64"])
    log = run("64", [Request(n, n == words - 1) for n in range(words)], IDEAL)
    cycle = {kind: int(log["cycle"][log["kind"] == kind][0]) for kind in (TAKEN, BEAT, WORD)}
    asked = int(log["extra"][log["kind"] == AR][0])
    assert asked - cycle[TAKEN] == timing.issue(words)
    assert cycle[WORD] - cycle[BEAT] == timing.back


@pytest.mark.parametrize("name", ["64", "128"])
def test_rate(name: str) -> None:
    """A word a cycle, also when every word opens a burst of its own."""
    for step in (1, 1000):
        log = run(name, [Request(n * step) for n in range(2000)] + [Request(5, True)],
                  Stall(latency=10 if step == 1 else 0))
        cycles = log["cycle"][log["kind"] == WORD]
        assert cycles[1999] - cycles[0] == 1999
