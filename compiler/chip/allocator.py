"""Places in device memory: named, first fit, with reuse of what has been freed.

Each base register has a region of its own that grows from its first word; the regions follow each
other in memory. A program is compiled against offsets only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TypeVar

from compiler.chip.tensors import Place, Tensor
from rtl.axi import BOUNDARY
from rtl.chunk import WORD_BYTES
from rtl.errors import ParameterError

__all__ = ["ALIGNMENT", "DeviceMemory", "Region", "round_up"]

ALIGNMENT = 128
"""Every tensor begins at a multiple of so many bytes: the widest bus beat."""

_STEP = ALIGNMENT // WORD_BYTES

T = TypeVar("T", bound=Tensor)


class Region(IntEnum):
    """What a base register points to."""

    WEIGHTS = 0
    """Weights and optimiser state: they live from step to step."""
    ACTIVATIONS = 1
    """Activations and gradients of one step."""
    DATA = 2
    """Inputs, targets and results of a step."""


@dataclass
class _Space:
    """One region: pieces in use by name, gaps as (start, length) in order, words so far."""

    used: dict[str, tuple[int, int]] = field(default_factory=dict)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    words: int = 0


class DeviceMemory:
    """Hands out places; ``allocate`` returns the tensor with its place filled in."""

    def __init__(self) -> None:
        self._spaces = {region: _Space() for region in Region}

    def allocate(self, region: Region, name: str, tensor: T) -> T:
        """Place ``tensor`` in the first gap that fits.

        Raises :class:`ParameterError` if the name is in use.
        """
        space = self._spaces[region]
        if name in space.used:
            raise ParameterError("name", name, f"is in use in region {region.name}")
        length = -(-tensor.words // _STEP) * _STEP
        start = self._take(space, length)
        space.used[name] = (start, length)
        return replace(tensor, at=Place(int(region), start))

    @staticmethod
    def _take(space: _Space, length: int) -> int:
        for number, (start, free) in enumerate(space.gaps):
            if free >= length:
                space.gaps[number : number + 1] = (
                    [(start + length, free - length)] if free > length else []
                )
                return start
        start = space.words
        space.words += length
        return start

    def free(self, region: Region, name: str) -> None:
        """Give a place back. The program order of its uses is the builder's care, not memory's."""
        space = self._spaces[region]
        if name not in space.used:
            raise ParameterError("name", name, f"is not in use in region {region.name}")
        merged: list[tuple[int, int]] = []
        for start, length in sorted([*space.gaps, space.used.pop(name)]):
            if merged and sum(merged[-1]) == start:
                start, length = merged[-1][0], merged.pop()[1] + length
            merged.append((start, length))
        space.gaps = merged

    def bases(self, start: int = 0) -> list[int]:
        """Byte addresses of the base registers, the first region at ``start``."""
        addresses = []
        for region in Region:
            start = round_up(start)
            addresses.append(start)
            start += self._spaces[region].words * WORD_BYTES
        return addresses

    def size(self, start: int = 0) -> int:
        """Bytes of memory from address 0 to the end of the last region."""
        return self.bases(start)[-1] + self._spaces[list(Region)[-1]].words * WORD_BYTES


def round_up(address: int) -> int:
    """The first byte address from ``address`` on where a burst may begin whatever its length."""
    return -(-address // BOUNDARY) * BOUNDARY
