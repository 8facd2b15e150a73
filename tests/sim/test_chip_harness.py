"""The chip's native harness on a stand-in for the chip: memory timing, and every protocol check."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rtl.architecture import PRESETS
from rtl.axi import Response
from rtl.errors import ParameterError
from rtl.registers import ErrorCode
from sim import chip
from sim.chip import Chip, Fault, MemoryModel
from sim.interpreter import ProgramError
from sim.toolchain import ToolError, missing_trace_headers

TINY = PRESETS["tiny"]
COPIER = Path(__file__).with_name("copier.v").read_text()
SIZE = 1 << 16
SOURCE, TARGET = 0x1000, 0x8000
BEAT = TINY.bus_bytes
PAUSES = MemoryModel(stall=0.6, seed=5)

# In the order of the copier's localparams.
DEFECTS = dict(enumerate((
    "AR: the payload changed before ready", "AR: valid fell before ready",
    "AW: the payload changed before ready", "AW: valid fell before ready",
    "W: the payload changed before ready", "W: valid fell before ready",
    "AR: a burst of 17 beats; at most 16", "AR: burst type 0 is not INCR",
    "AR: beats of 128 bytes on a bus of 64", "W: WLAST is 1 in beat 7 of 8",
    "W: WLAST is 0 in beat 8 of 8", "W: a strobe outside the beat", "AW: the ID is not 0",
    "interrupt: a write is under way", "interrupt: a data read is under way",
    "AXI4-Lite: B without a write", "AXI4-Lite R: the payload changed before ready",
    "AXI4-Lite R: valid fell before ready",
    "AXI4-Lite: no answer to a read of register 0xc", "the chip hangs: no progress in ",
), 1))


@pytest.fixture
def copier(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Chip]:
    """Makes a chip that is the stand-in."""
    monkeypatch.setattr(chip, "cached_verilog", lambda architecture, top: COPIER)

    def make(model: MemoryModel, patience: int = 1 << 20) -> Chip:
        made = Chip(TINY, SIZE, model=model, patience=patience)
        made.memory[:] = np.random.default_rng(0).integers(0, 256, SIZE)
        return made

    return make


def copy(
    machine: Chip, bursts: int, beats: int, defect: int = 0, source: int = SOURCE,
    target: int = TARGET,
) -> None:
    """Run the stand-in; its scalars are integers."""
    scalars = np.array([bursts, beats, defect], np.uint32).view(np.float32)
    assert machine.start(0, [source, target], [*scalars]) is None


def check(machine: Chip, bursts: int, beats: int) -> None:
    size = bursts * beats * BEAT
    expected = np.random.default_rng(0).integers(0, 256, SIZE).astype(np.uint8)
    expected[TARGET : TARGET + size] = expected[SOURCE : SOURCE + size]
    np.testing.assert_array_equal(machine.memory, expected)


@pytest.mark.parametrize(
    "model",
    [MemoryModel.fixed(1), MemoryModel.fixed(), MemoryModel.paper(TINY), PAUSES,
     *(MemoryModel.stalls(seed) for seed in range(1, 13))],
    ids=str,
)
def test_data_arrives_whatever_the_timing(
    copier: Callable[..., Chip], model: MemoryModel
) -> None:
    with copier(model) as machine:
        copy(machine, 20, 8)
        check(machine, 20, 8)
        stats = machine.stats()
        assert (stats.read_beats, stats.write_beats) == (160, 160)
        assert (stats.read_bursts, stats.write_bursts) == (20, 20)
        assert stats.most_reads <= model.outstanding
        assert stats.most_writes <= model.outstanding
        assert machine.counters()["macs"] == 0
        copy(machine, 1, 1)  # and again
        assert machine.stats().read_beats == 161


def cycles(copier: Callable[..., Chip], model: MemoryModel, bursts: int, beats: int) -> int:
    """Of a copy; what the host does costs the same every time."""
    with copier(model) as machine:
        copy(machine, bursts, beats)
        return machine.cycles


def test_latency_is_what_was_asked_for(copier: Callable[..., Chip]) -> None:
    base = cycles(copier, MemoryModel(1, 1), 1, 4)
    assert cycles(copier, MemoryModel(31, 1), 1, 4) == base + 30
    assert cycles(copier, MemoryModel(1, 18), 1, 4) == base + 17


def test_beats_follow_each_other_without_a_gap(copier: Callable[..., Chip]) -> None:
    """One read and one write more are two beats more, under any latency that is hidden."""
    for model in (MemoryModel(1, 1), MemoryModel(50, 50)):
        assert cycles(copier, model, 10, 16) - cycles(copier, model, 9, 16) == 32


@pytest.mark.parametrize("bandwidth", [6.0, 24.0, 37.5])
def test_bandwidth_is_what_was_asked_for(
    copier: Callable[..., Chip], bandwidth: float
) -> None:
    model = MemoryModel(bandwidth=bandwidth)
    extra = cycles(copier, model, 30, 16) - cycles(copier, model, 10, 16)
    assert extra == pytest.approx(2 * 20 * 16 * BEAT / bandwidth, abs=BEAT / bandwidth + 2)


def test_outstanding_bursts_are_limited(copier: Callable[..., Chip]) -> None:
    with copier(MemoryModel(read_latency=100, write_latency=100, outstanding=3)) as machine:
        copy(machine, 20, 4)
        assert (machine.stats().most_reads, machine.stats().most_writes) == (3, 3)
    with copier(MemoryModel(read_latency=100, write_latency=100)) as machine:
        copy(machine, 20, 4)
        assert machine.stats().most_reads == 20


def provoke(machine: Chip, defect: int) -> None:
    """Give the defect every occasion to show."""
    copy(machine, 20, 8, defect)
    for _ in range(300):
        machine.read("version")


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_breach_of_the_protocol_is_found(
    copier: Callable[..., Chip], defect: int
) -> None:
    with copier(PAUSES, patience=1 << 14) as machine:
        with pytest.raises(ToolError) as caught:
            provoke(machine, defect)
        assert DEFECTS[defect] in str(caught.value)


@pytest.mark.parametrize(
    ("source", "target", "channel"),
    [(0x1000 - 7 * BEAT, TARGET, "AR"), (SOURCE, 0x9000 - 15 * BEAT, "AW")],
)
def test_no_burst_crosses_4_kb(
    copier: Callable[..., Chip], source: int, target: int, channel: str
) -> None:
    with copier(MemoryModel()) as machine:
        said = rf"{channel}: the burst at 0x\w+ crosses 4 KB"
        with pytest.raises(ToolError, match=said):
            copy(machine, 2, 8, source=source, target=target)


def test_nothing_is_valid_in_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = COPIER.replace("AT_RESET = 0", "AT_RESET = 1")
    monkeypatch.setattr(chip, "cached_verilog", lambda architecture, top: broken)
    with pytest.raises(ToolError, match="valid is high in reset"):
        Chip(TINY, SIZE)


def code(machine: Chip, **options: int) -> tuple[ErrorCode, int]:
    """What a copy of two bursts of two beats reports."""
    with pytest.raises(ProgramError) as caught:
        copy(machine, 2, 2, **options)
    return caught.value.code, caught.value.at


def test_beyond_the_memory_there_is_none(copier: Callable[..., Chip]) -> None:
    with copier(MemoryModel()) as machine:
        assert code(machine, source=SIZE - 2 * BEAT) == (ErrorCode.READ_DECODE, 0)
        assert code(machine, target=SIZE - 2 * BEAT) == (ErrorCode.WRITE_DECODE, 0)
        assert code(machine, target=SIZE) == (ErrorCode.WRITE_DECODE, 0)


def test_faults_hit_what_they_name(copier: Callable[..., Chip]) -> None:
    with copier(MemoryModel()) as machine:
        last = SOURCE + 4 * BEAT - 1
        machine.inject(Fault(last, last + 1, Response.SLVERR))
        assert code(machine) == (ErrorCode.READ_SLAVE, 0)
        machine.inject(Fault(last + 1, last + 100, Response.SLVERR),
                       Fault(TARGET, TARGET + 1, Response.DECERR))
        copy(machine, 2, 2)
        machine.inject(Fault(0, 1, Response.DECERR, "write"),
                       Fault(TARGET, TARGET + 1, Response.SLVERR, "write"))
        before = machine.memory[TARGET : TARGET + BEAT].copy()
        assert code(machine, source=SOURCE + 0x400) == (ErrorCode.WRITE_SLAVE, 0)
        np.testing.assert_array_equal(machine.memory[TARGET : TARGET + BEAT], before)
        machine.inject()
        copy(machine, 2, 2)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_process_ends_with_the_context(copier: Callable[..., Chip]) -> None:
    with copier(MemoryModel()) as machine:
        process = machine._process.pid
        assert alive(process)
    assert not alive(process)
    assert machine.memory.size == SIZE
    with pytest.raises(ToolError, match=r"stopped at 'cycles': it was closed$"):
        _ = machine.cycles
    machine = copier(MemoryModel())
    with pytest.raises(ZeroDivisionError), machine:
        _ = machine.cycles / 0
    assert not alive(machine._process.pid)


def test_unreadable_commands_are_told(copier: Callable[..., Chip]) -> None:
    with copier(MemoryModel()) as machine:
        with pytest.raises(ToolError, match="no such command: sing"):
            machine._ask("sing")
        with pytest.raises(ToolError):
            machine.read("status")


@pytest.mark.parametrize("size", [0, -4096, 100, 4097])
def test_memory_is_whole_pages(size: int) -> None:
    with pytest.raises(ParameterError, match=r"memory_bytes=.*must be a multiple of 4096.*4096"):
        Chip(TINY, size)


def test_a_waveform_is_complete_even_after_a_breach(
    copier: Callable[..., Chip], tmp_path: Path
) -> None:
    if missing := missing_trace_headers():
        pytest.skip(f"waveforms need {' '.join(missing)}")
    for defect in (0, 14):
        path = tmp_path / f"{defect} wave.fst"
        with Chip(TINY, SIZE, trace=path) as machine:
            if defect:
                with pytest.raises(ToolError):
                    copy(machine, 2, 2, defect)
            else:
                copy(machine, 2, 2)
        assert path.stat().st_size > 500
