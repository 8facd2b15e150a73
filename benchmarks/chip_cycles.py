"""Cycles of a training step on the RTL of the chip, beside the cycle model and a checked-in record.

``python -m benchmarks.chip_cycles`` runs the tiny plain network's step, dense and BDWP 2:8, on the
4 x 4 chip, first every operation as a program of its own, then the whole step, with a memory that
answers after 40 cycles. The record (``benchmarks/chip_cycles.json``) says what they took when
somebody last looked: a test fails on a change beyond 1 % in either direction. ``--record`` writes
it anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.table import Table

from algorithms import sparsify
from benchmarks.console import one_line_errors, stdout
from compiler.chip.machine import RtlMachine
from compiler.chip.optimisers import Sgd
from compiler.chip.training_step import TrainingStep, compile_step
from models.plain import PLAIN_SIZES, plain_net
from rtl import isa
from rtl.architecture import NOT_IN_RTL, PRESETS
from rtl.instruction import Unit
from sim.chip import MemoryModel
from sim.chip_cycles import predict

__all__ = [
    "ALLOWED_CHANGE", "MODEL", "PATTERNS", "RECORD", "WHOLE", "Measured", "compiled", "guard",
    "measure", "record",
]

RECORD = Path(__file__).with_suffix(".json")
MODEL = MemoryModel.fixed(40)
ALLOWED_CHANGE = 0.01
"""Relative change of RTL cycles against the record that needs a new record."""

PATTERNS = ("dense", "2:8")
WHOLE = "whole step"
_BATCH = 4
_ARCH = PRESETS["tiny"]


@dataclass(frozen=True)
class Measured:
    """One program: what the RTL took and what the model says."""

    pattern: str
    name: str
    rtl: int
    model: int

    @property
    def key(self) -> str:
        """Name in the record."""
        return f"{self.pattern} {self.name}"

    @property
    def gap(self) -> float:
        """The model's error, relative to the RTL."""
        return self.model / self.rtl - 1


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_BATCH, 1, 8, 8, generator=generator).half().float()
    return images, F.one_hot(torch.arange(_BATCH), 10).float()


def compiled(pattern: str) -> TrainingStep:
    """The step of the tiny plain network."""
    model = plain_net(PLAIN_SIZES["tiny"], 0)
    sparsify(model, "dense" if pattern == "dense" else "bdwp", pattern)
    return compile_step(model, _batch()[0], _ARCH, optimiser=Sgd(0.05, 0.9, 1e-4),
                        loss_scale=256.0)


def programs(step: TrainingStep) -> Iterator[tuple[str, list[int]]]:
    """Every operation that has instructions of a unit, and the whole step."""
    end = isa.END.encode()
    for section in step.sections:
        part = step.program[section.start : section.stop]
        if any(isa.decode(word).instruction.unit is not Unit.CONTROL for word in part):
            yield section.name, [*part, end]
    yield WHOLE, list(step.program)


def measure(pattern: str, model: MemoryModel = MODEL, times: int = 1) -> list[Measured]:
    """All programs of one pattern; with ``times`` the mean over so many runs of each."""
    step = compiled(pattern)
    found = []
    with RtlMachine(step, model) as machine:
        machine.compiled.feed(machine.image, machine.runtime, *_batch())
        chip, scalars = machine.chip, step.scalars(1)
        for name, program in programs(step):
            cycles = []
            for _ in range(times):
                chip.load(program, step.program_at)
                chip.start(step.program_at, step.bases, scalars)
                cycles.append(chip.counters()["cycles"])
            predicted = predict(program, _ARCH, model, step.bases, step.program_at)
            found.append(Measured(pattern, name, round(sum(cycles) / times), predicted.cycles))
    return found


def guard() -> str:
    """Changes with the architecture, the memory, or any program: the record is then another's."""
    digest = hashlib.sha256(repr((_ARCH.model_dump(exclude=set(NOT_IN_RTL)), MODEL)).encode())
    for pattern in PATTERNS:
        for word in compiled(pattern).program:
            digest.update(word.to_bytes(32, "little"))
    return digest.hexdigest()[:16]


def record(rows: Sequence[Measured]) -> None:
    """Write the record."""
    content = {"guard": guard(), "cycles": {row.key: row.rtl for row in rows}}
    RECORD.write_text(json.dumps(content, indent=1) + "\n")


def _table(rows: Sequence[Measured], known: dict[str, int]) -> Table:
    table = Table(title=f"tiny plain network, batch {_BATCH}, on the {_ARCH.rows} x {_ARCH.cols} "
                        f"chip, memory of {MODEL.read_latency} cycles")
    table.add_column("program")
    for name in ("pattern", "RTL cycles", "model", "gap", "record", "change"):
        table.add_column(name, justify="right")
    for row in rows:
        before = known.get(row.key)
        change = "" if before is None else f"{row.rtl / before - 1:+.2%}"
        table.add_row(row.name, row.pattern, f"{row.rtl:,}", f"{row.model:,}", f"{row.gap:+.2%}",
                      "" if before is None else f"{before:,}", change)
        if row.name == WHOLE:
            table.add_section()
    return table


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or write the record with ``--record``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--record", action="store_true", help="write what the RTL takes now")
    options = parser.parse_args(argv)
    rows = [row for pattern in PATTERNS for row in measure(pattern)]
    if options.record:
        record(rows)
    known = json.loads(RECORD.read_text())["cycles"] if RECORD.is_file() else {}
    stdout().print(_table(rows, known))
    return 0


if __name__ == "__main__":
    sys.exit(main())
