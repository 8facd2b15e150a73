"""The load unit, Verilated, and its log told as the writes of each instruction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from load_reference import Write, execute
from read_model import COLUMN, DONE, ERROR, FILL, IDEAL, ROW, TAKEN, ReadModel, Stall

from rtl.architecture import Architecture
from rtl.isa import BASES, Decoded
from rtl.load import LoadUnit
from rtl.registers import ErrorCode

__all__ = ["ARCHITECTURES", "check", "run", "writes"]

Events = npt.NDArray[Any]

ARCHITECTURES = {
    "tiny": Architecture.make(rows=4, cols=4, w2e_words=300, n2s_words=600),
    "odd": Architecture.make(rows=3, cols=8, bus_bytes=32, burst_beats=64, read_beats=40,
                             w2e_words=300, n2s_words=600),
    "square": Architecture.make(rows=8, cols=16, bus_bytes=128, w2e_words=256, n2s_words=512),
    "wide": Architecture.make(rows=8, cols=32, read_beats=64, w2e_words=300, n2s_words=600),
}


@cache
def model(name: str) -> ReadModel:
    """Its executable."""
    architecture = ARCHITECTURES[name]
    return ReadModel.build(LoadUnit(architecture), architecture, unit=True)


def run(
    name: str, bases: Sequence[int], program: Sequence[Decoded], stall: Stall = IDEAL, seed: int = 1
) -> Events:
    """The log of ``program``, every instruction of which must complete."""
    assert len(bases) == BASES
    job = np.array(bases, np.uint64).tobytes() + b"".join(
        load.encode().to_bytes(32, "little") for load in program
    )
    log = model(name).run(job, stall, seed)
    assert np.count_nonzero(log["kind"] == TAKEN) == len(program)
    assert np.count_nonzero(log["kind"] == DONE) == len(program)
    return log


def writes(name: str, event: Any) -> list[Write]:
    """The writes of one event to the single buffers."""
    kind, unit, address = int(event["kind"]), int(event["value"]), int(event["extra"])
    content = event["data"].tobytes()
    if kind == FILL:
        return [("line", unit, address, content[:64])]
    if kind == ROW:
        rows = range(ARCHITECTURES[name].rows)
        return [("row", row, address, content[:32]) for row in rows if unit >> row & 1]
    bits = int.from_bytes(content, "little")
    return [
        ("column", column, address, (bits >> 20 * column & 0xFFFFF).to_bytes(3, "little"))
        for column in range(ARCHITECTURES[name].cols) if unit >> column & 1
    ]


def check(
    name: str, bases: Sequence[int], program: Sequence[Decoded], stall: Stall = IDEAL, seed: int = 1
) -> int:
    """Runs ``program`` and compares it with the reference; returns the number of writes."""
    log = run(name, bases, program, stall, seed)
    effects = execute(ARCHITECTURES[name], bases, program)
    got = [
        write for event in log[np.isin(log["kind"], (ROW, COLUMN, FILL))]
        for write in writes(name, event)
    ]
    done = log["cycle"][log["kind"] == DONE]
    failed = log[log["kind"] == ERROR]
    position, before = 0, -1
    for number, effect in enumerate(effects):
        part = got[position : position + len(effect.writes)]
        assert sorted(part) == sorted(effect.writes), f"{number}: {program[number]}"
        position += len(effect.writes)
        now = int(done[number])
        errors = failed["value"][(failed["cycle"] > before) & (failed["cycle"] <= now)].tolist()
        codes = [ErrorCode.RANGE] * effect.beyond + [ErrorCode.FIELD] * effect.illegal
        assert errors == codes, f"{number}: {program[number]}"
        before = now
    assert position == len(got)
    return len(got)
