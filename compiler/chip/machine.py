"""Two machines that run a compiled training step: the golden interpreter and the RTL.

Both own device memory and a host; neither knows what it computes. After the same steps their
memories must be equal word for word.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np
from torch import Tensor

from compiler.chip.tensors import Image
from compiler.chip.training_step import TrainingStep
from sim.chip import Chip, MemoryModel
from sim.interpreter import Interpreter

__all__ = ["GoldenMachine", "Machine", "RtlMachine", "differing_words"]


class Machine(ABC):
    """Device memory, a host for the host points, and steps one after the other."""

    def __init__(self, step: TrainingStep, image: Image) -> None:
        self.compiled, self.image = step, image
        self.runtime = step.runtime()
        self.steps = 0

    def step(
        self, images: Tensor, targets: Tensor, stop: Callable[[str], None] | None = None
    ) -> float:
        """One training step; returns its loss. ``stop`` is told the name of each host point.

        Raises :class:`sim.interpreter.ProgramError` if the program stops with an error.
        """
        self.steps += 1
        self.compiled.feed(self.image, self.runtime, images, targets)
        point = self._start(self.compiled.scalars(self.steps))
        while point is not None:
            if stop is not None:
                stop(self.compiled.points[point].name)
            self.runtime.run(point, self.image)
            point = self._resume()
        self.runtime.finish(self.nonfinite)
        return self.compiled.mean_loss(self.image, self.runtime)

    @property
    @abstractmethod
    def nonfinite(self) -> bool:
        """Some gradient of the last step was Inf or NaN, so that it updated nothing."""

    @abstractmethod
    def _start(self, scalars: list[float]) -> int | None:
        """Run the program; returns the host point that it stops at, or None at its end."""

    @abstractmethod
    def _resume(self) -> int | None:
        """Go on after a host point; returns as :meth:`_start`."""


class GoldenMachine(Machine):
    """The golden interpreter."""

    def __init__(self, step: TrainingStep) -> None:
        super().__init__(step, step.image())
        self.chip = Interpreter(step.architecture, self.image.memory, step.bases)

    @property
    def nonfinite(self) -> bool:
        """See :class:`Machine`."""
        return self.chip.nonfinite

    def _start(self, scalars: list[float]) -> int | None:
        self.chip.scalars[:] = scalars
        return self.chip.start(self.compiled.program)

    def _resume(self) -> int | None:
        return self.chip.resume()


class RtlMachine(Machine):
    """The Verilated chip; a context manager, since it owns a process."""

    def __init__(
        self, step: TrainingStep, model: MemoryModel,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.chip = Chip(step.architecture, step.memory_bytes, model=model, progress=progress)
        self.chip.memory[:] = step.image().memory
        super().__init__(step, Image(self.chip.memory, step.bases))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.chip.close()

    @property
    def nonfinite(self) -> bool:
        """See :class:`Machine`."""
        return self.chip.nonfinite

    def _start(self, scalars: list[float]) -> int | None:
        return self.chip.start(self.compiled.program_at, self.compiled.bases, scalars)

    def _resume(self) -> int | None:
        return self.chip.resume()


def differing_words(a: Machine, b: Machine) -> tuple[int, int]:
    """32-bit words of device memory in which two machines differ, and words in all."""
    words = [np.asarray(machine.image.memory).view(np.uint32) for machine in (a, b)]
    return int(np.count_nonzero(words[0] != words[1])), len(words[0])
