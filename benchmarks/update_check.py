"""The weight update of a step on the RTL of the chip, held against the golden interpreter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.chip.update_step import UpdateStep
from sim.chip import Chip, MemoryModel
from sim.chip_cycles import predict
from sim.interpreter import Interpreter

__all__ = ["UpdateCheck", "check_update"]


@dataclass(frozen=True)
class UpdateCheck:
    """An update that ran: ``words`` of device memory compared, ``mismatches`` of them differ."""

    step: UpdateStep
    rtl_cycles: int
    model_cycles: int
    words: int
    mismatches: int

    def __str__(self) -> str:
        count = sum(update.values.numel() for update in self.step.updates)
        return (f"{type(self.step.optimiser).__name__} of {count:,} parameters on the chip: "
                f"{self.rtl_cycles:,} cycles (model {self.model_cycles:,}), "
                f"{self.words:,} words of memory, {self.mismatches:,} mismatches")


def check_update(step: UpdateStep) -> UpdateCheck:
    """Run the update on both, with the memory of the paper's card in proportion."""
    arch, model = step.architecture, MemoryModel.paper(step.architecture)
    golden = step.image()
    Interpreter(arch, golden.memory, golden.bases, step.scalars()).start(list(step.program))
    with Chip(arch, step.memory_bytes, model=model) as chip:
        chip.memory[:] = step.image().memory
        chip.start(step.program_at, step.bases, step.scalars())
        cycles = chip.counters()["cycles"]
        words = [memory.view(np.uint32) for memory in (np.array(chip.memory), golden.memory)]
    return UpdateCheck(step, cycles, predict(step.program, arch, model, step.bases).cycles,
                       len(words[0]), int(np.count_nonzero(words[0] != words[1])))
