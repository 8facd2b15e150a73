"""The store unit's RTL against memory as the instruction set describes it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from write_model import RESPONSE, STALLS, Log, Memory, Stall, WriteModel

from rtl.architecture import Architecture
from rtl.isa import BASES, LINES, STORE, VECTORS, StoreSource, decode
from rtl.netlist import to_verilog
from rtl.registers import ErrorCode
from rtl.store import StoreTiming, StoreUnit
from sim.toolchain import find_verilator, find_yosys

Rng = np.random.Generator
BUSES = (32, 64, 128)
_RECORD = np.dtype([("word", "u1", 32), ("nonfinite", "u4")])
_WAIVED = ("DECLFILENAME", "PROCASSINIT", "UNUSEDSIGNAL", "WIDTHEXPAND", "WIDTHTRUNC")


@cache
def model(bus: int) -> WriteModel:
    """The unit on a bus of so many bytes."""
    architecture = Architecture.make(rows=4, cols=4, bus_bytes=bus)
    return WriteModel.build(StoreUnit(architecture), architecture, "UNIT=1")


@dataclass(frozen=True)
class Store:
    """Fields of an instruction, and the sticky flag while it is offered."""

    fields: dict[str, int]
    nonfinite: int = 0

    @property
    def lines(self) -> bool:
        """Whether it reads a vector register."""
        return self.fields["source"] < 2

    @property
    def skipped(self) -> bool:
        return bool(self.fields["guard"] and self.nonfinite)

    @property
    def beyond(self) -> bool:
        """Whether it is out of range."""
        beyond = self.fields["line"] + self.fields["lines"] > LINES
        return self.lines and beyond and not self.skipped


@dataclass(frozen=True)
class World:
    """What the unit reads: base registers, vector registers, pack slots by axis and slot."""

    bases: npt.NDArray[np.uint64]
    vectors: npt.NDArray[np.uint32]
    packs: npt.NDArray[np.uint32]

    @classmethod
    def draw(cls, rng: Rng, specials: npt.NDArray[np.uint32]) -> World:
        """Random, half of the lanes in and around the range of binary16."""
        vectors = rng.integers(0, 1 << 32, (VECTORS, LINES, 16), np.uint32)
        exponents = rng.integers(100, 145, vectors.shape, np.uint32) << np.uint32(23)
        vectors = np.where(rng.integers(2, size=vectors.shape), vectors,
                           vectors & np.uint32(0x807FFFFF) | exponents)
        vectors[0].flat[: len(specials)] = specials
        return cls(rng.integers(0, 1 << 35, BASES, np.uint64) * np.uint64(32),
                   vectors, rng.integers(0, 1 << 32, (2, 2, 4, 16, 8), np.uint32))

    def content(self, store: Store) -> list[tuple[int, bytes]]:
        """Absolute word addresses and words, as the instruction set says."""
        if store.skipped or store.beyond:
            return []
        f = store.fields
        start = int(self.bases[f["base"]]) // 32 + f["offset"]
        if not store.lines:
            chunks = self.packs[f["source"] - 2, f["a"] & 1, : f["chunks"], : f["chunk_words"]]
            return [(start + c * f["pitch"] + w, word.tobytes())
                    for c, chunk in enumerate(chunks) for w, word in enumerate(chunk)]
        words = []
        for i in range(f["lines"]):
            line = self.vectors[f["a"], f["line"] + i]
            row, column = divmod(i, f["run"])
            if f["source"] == StoreSource.SINGLE:
                place = start + row * f["pitch"] + 2 * column
                words += [(place, line[:8].tobytes()), (place + 1, line[8:].tobytes())]
            else:
                with np.errstate(over="ignore", invalid="ignore"):
                    half = line.view(np.float32).astype(np.float16)
                bits = np.where(np.isnan(half), np.uint16(0x7E00), half.view(np.uint16))
                words.append((start + row * f["pitch"] + column, bits.tobytes()))
        return words

    def run(self, bus: int, stores: Sequence[Store], seed: int, stall: Stall) -> Log:
        """Execute ``stores``."""
        records = np.zeros(len(stores), _RECORD)
        for record, store in zip(records, stores, strict=True):
            word = STORE.encode(**store.fields).to_bytes(32, "little")
            record["word"] = np.frombuffer(word, np.uint8)
            record["nonfinite"] = store.nonfinite
        world = self.bases.tobytes() + self.vectors.tobytes() + self.packs.tobytes()
        return model(bus).run(world + records.tobytes(), seed, stall)


def draw(rng: Rng, **fixed: int) -> Store:
    """A legal instruction; lines rarely beyond the end, rows that overlap now and then."""
    lines, line = int(rng.choice([1, 2, 7, 16, 33, 64])), int(rng.integers(LINES))
    if rng.integers(4):
        line = min(line, LINES - lines)
    fields = {
        "base": rng.integers(BASES), "offset": rng.integers(1 << 32), "source": rng.integers(4),
        "a": rng.integers(VECTORS), "line": line, "lines": lines,
        "run": rng.choice([1, 2, 3, 5, 16, 64]), "chunks": rng.integers(1, 5),
        "pitch": rng.choice([0, 1, 4, 33, 0xFFFFFF]), "chunk_words": rng.integers(1, 11),
        "guard": rng.integers(2), "after_vector": rng.integers(16),
    }
    return Store({name: int(value) for name, value in fields.items()} | fixed,
                 int(rng.integers(3) == 0))


@pytest.fixture
def world(rng: Rng, specials: npt.NDArray[np.uint32]) -> World:
    return World.draw(rng, specials)


def check(world: World, bus: int, log: Log, stores: Sequence[Store]) -> int:
    """Memory, order and time of completion, strobes; returns how many words were compared."""
    timing = StoreTiming(Architecture.make(bus_bytes=bus))
    memory: Memory = {}
    contents = [world.content(store) for store in stores]
    for content in contents:
        memory.update(content)
    assert log.memory == memory
    bursts = [timing.write.bursts([address for address, _ in content]) for content in contents]
    assert [(burst.address, burst.beats) for burst in log.bursts] == [
        (burst.address, burst.beats) for group in bursts for burst in group]
    assert len(log.taken) == len(log.done) == len(stores)
    ends = np.cumsum([len(group) for group in bursts])
    for taken, done, end in zip(log.taken, log.done, ends, strict=True):
        assert done > max([taken, *(burst.b for burst in log.bursts[:end])])
    strobes = log.taken + 1
    assert log.skipped.tolist() == [
        cycle for cycle, store in zip(strobes, stores, strict=True) if store.skipped]
    assert [cycle for cycle, code in log.errors if code == ErrorCode.RANGE] == [
        cycle for cycle, store in zip(strobes, stores, strict=True) if store.beyond]
    return len(memory)


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize("bus", BUSES)
def test_stores(rng: Rng, world: World, bus: int, stall: str) -> None:
    """Instructions of all kinds back to back, with a subordinate of every temper."""
    stores = [draw(rng) for _ in range(200)]
    stores[100] = draw(rng, source=StoreSource.HALF, line=LINES - 1, lines=2, guard=0)
    log = world.run(bus, stores, int(rng.integers(1 << 32)), STALLS[stall])
    words = check(world, bus, log, stores)
    skipped, beyond = (sum(getattr(store, name) for store in stores)
                       for name in ("skipped", "beyond"))
    print(f"{bus}-byte bus, {stall}: {words} words, {skipped} skipped, {beyond} out of range")
    assert words > 500 and skipped > 5 and beyond > 0
    assert {code for _, code in log.errors} == {ErrorCode.RANGE}


@pytest.mark.parametrize("source", StoreSource)
def test_whole_source(rng: Rng, world: World, source: StoreSource) -> None:
    """Every word of every register or slot, among them FP32 where rounding is hard."""
    fields = {"base": 0, "guard": 0, "line": 0, "lines": LINES, "run": LINES, "chunks": 4,
              "chunk_words": 10, "pitch": 16}
    stores = [draw(rng, source=source, a=a, offset=a << 12, **fields) for a in range(VECTORS)]
    log = world.run(64, stores, int(rng.integers(1 << 32)), STALLS["all"])
    each = {StoreSource.SINGLE: 2 * LINES, StoreSource.HALF: LINES}.get(source, 40)
    assert check(world, 64, log, stores) == VECTORS * each


def test_guard(rng: Rng, world: World) -> None:
    """A store is skipped only if it is guarded and the flag is set when it is taken."""
    stores = [Store(draw(rng, source=source, guard=guard, line=0).fields, flag)
              for source in range(4) for guard in (0, 1) for flag in (0, 1) for _ in range(5)]
    log = world.run(64, stores, int(rng.integers(1 << 32)), STALLS["all"])
    check(world, 64, log, stores)
    assert len(log.skipped) == 4 * 5


@pytest.mark.parametrize("source", StoreSource)
def test_lines_beyond_the_end(rng: Rng, world: World, source: StoreSource) -> None:
    """The last line that exists, and the first that does not; packed stores have no lines."""
    stores = [draw(rng, source=source, guard=0, line=line, lines=LINES - line + more)
              for line in (1, 30, 63) for more in (0, 1)]
    log = world.run(64, stores, int(rng.integers(1 << 32)), STALLS["all"])
    check(world, 64, log, stores)
    beyond = 3 if source in (StoreSource.SINGLE, StoreSource.HALF) else 0
    assert [code for _, code in log.errors] == [ErrorCode.RANGE] * beyond


def test_bus_errors(rng: Rng, world: World) -> None:
    """Errors of the bus come out with their code, and everything completes."""
    world.bases[:] &= np.uint64((1 << RESPONSE) - 1)
    world.bases[2] |= np.uint64(2 << RESPONSE)
    world.bases[3] |= np.uint64(3 << RESPONSE)
    stores = [draw(rng, guard=0, line=0, base=base % 4) for base in range(60)]
    log = world.run(64, stores, int(rng.integers(1 << 32)), STALLS["all"])
    check(world, 64, log, stores)
    codes = {2: ErrorCode.WRITE_SLAVE, 3: ErrorCode.WRITE_DECODE}
    answers = [(burst.b + 1, burst.address >> RESPONSE) for burst in log.bursts]
    assert log.errors == [(cycle, codes[bits]) for cycle, bits in answers if bits in codes]
    assert {code for _, code in log.errors} == set(codes.values())


@pytest.mark.parametrize("bus", BUSES)
def test_timing(rng: Rng, world: World, bus: int) -> None:
    """One instruction on an ideal bus: first AW and ``done`` when the formulas say."""
    timing = StoreTiming(model(bus).architecture)
    compared = 0
    for response in (1, 9):
        for _ in range(20):
            store = draw(rng)
            log = world.run(bus, [store], 1, Stall(latency=response))
            check(world, bus, log, [store])
            addresses = [address for address, _ in world.content(store)]
            if addresses:
                decoded = decode(STORE.encode(**store.fields))
                base = int(world.bases[store.fields["base"]]) // 32
                assert timing.addresses(decoded, base) == addresses
                assert log.bursts[0].aw_offered - log.taken[0] == timing.first_aw(addresses)
            assert log.done[0] - log.taken[0] == timing.cycles(addresses, response)
            compared += 1
    assert compared == 40


@pytest.mark.parametrize("bus", BUSES)
def test_sustained_rate(rng: Rng, world: World, bus: int) -> None:
    """One word a cycle, from one instruction to the next too, though memory answers late."""
    timing = StoreTiming(model(bus).architecture)
    stores = [draw(rng, line=0, pitch=128, run=64) for _ in range(100)]
    log = world.run(bus, stores, 1, Stall(latency=20))
    check(world, bus, log, stores)
    words = [len(world.content(store)) for store in stores]
    assert np.diff(log.taken).tolist() == [timing.issue(count) for count in words[:-1]]


def test_last_lines_of_one_word_each(rng: Rng, world: World) -> None:
    """Instructions of one word: one is taken every cycle, each is a burst of its own."""
    fields = {"source": StoreSource.HALF, "lines": 1, "guard": 0}
    stores = [draw(rng, line=line, **fields) for line in range(LINES)]
    log = world.run(64, stores, 1, Stall(latency=10))
    check(world, 64, log, stores)
    assert (np.diff(log.taken) == 1).all() and len(log.bursts) == LINES


@pytest.mark.parametrize(("bus", "beats"), [(32, 1), (64, 16), (128, 64)])
def test_lint(bus: int, beats: int, tmp_path: Path) -> None:
    """Verilator -Wall has nothing to say beyond the classes that test_netlist.py waives."""
    find_yosys()
    verilator = find_verilator()
    architecture = Architecture.make(rows=4, cols=4, bus_bytes=bus, burst_beats=beats)
    text = to_verilog(StoreUnit(architecture), "store_unit")
    (tmp_path / "store_unit.v").write_text(text)
    done = subprocess.run(
        [verilator.executable, "--lint-only", "-Wall", "-Wno-fatal", "--top-module", "store_unit",
         *(f"-Wno-{warning}" for warning in _WAIVED), tmp_path / "store_unit.v"],
        env=verilator.environment(), capture_output=True, text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
