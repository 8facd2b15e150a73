"""A program in the making with its memory, to be run on the golden interpreter.

Whatever a generated program does not set up itself is filled with ones, which are NaN, so that
nothing can depend on what happens to lie there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from compiler.chip.allocator import DeviceMemory, Region
from compiler.chip.builder import ProgramBuilder
from compiler.chip.races import find_races
from compiler.chip.tensors import Image, Tensor
from rtl.architecture import Architecture
from rtl.axi import BOUNDARY
from rtl.chunk import WORD_BYTES
from sim.interpreter import Interpreter

__all__ = ["ChipRun"]

T = TypeVar("T", bound=Tensor)


class ChipRun:
    """Place tensors, emit code into ``builder``, make the ``image``, store inputs, and run."""

    def __init__(self, architecture: Architecture) -> None:
        self.builder = ProgramBuilder(architecture)
        self.space = DeviceMemory()
        self._placed = 0

    def place(self, tensor: T, region: Region = Region.ACTIVATIONS) -> T:
        """Allocate a tensor under a number as its name."""
        self._placed += 1
        return self.space.allocate(region, str(self._placed), tensor)

    def image(self) -> Image:
        """Memory with room for everything allocated."""
        size = self.space.size(BOUNDARY)
        memory = np.full(-(-size // WORD_BYTES) * WORD_BYTES, 0xFF, np.uint8)
        return Image(memory, self.space.bases(BOUNDARY))

    def run(self, image: Image, scalars: Sequence[float] = ()) -> Interpreter:
        """Run the program to its end; it must be free of races."""
        program, architecture = self.builder.program(), self.builder.architecture
        races = find_races(program, architecture)
        if races:
            raise AssertionError(f"{len(races)} races, the first {races[0]}")
        chip = Interpreter(architecture, image.memory, image.bases, scalars)
        for state in (chip.w2e, chip.n2s_values, chip.out, chip.vectors, chip.pack):
            state.view(np.uint8)[:] = 0xFF
        chip.start(program)
        return chip
