"""Device memory of a training step: what lies where, and whether it fits the card.

Activations are kept from their FF to the end of the step, without reuse or recomputation; gradients
of activations share a pool for the two largest at a time, and so do their packed samples. Sizes as
the chip keeps them: activations FP16, weights and optimiser state FP32, packed or FP16 copies of
what GEMMs read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from compiler.chip.optimisers import Optimiser
from compiler.ir import Gemm, Stage, Step, Update, Value
from compiler.schedule.mapper import Infeasible
from compiler.schedule.scheduler import problem_of
from rtl.axi import BOUNDARY
from rtl.chunk import LANES, ChunkFormat
from rtl.pattern import NmPattern

__all__ = ["GRADIENTS", "SAMPLES", "MemoryMap", "Region", "memory_map"]

GRADIENTS = "activation gradients"
"""Region that the gradients of activations share."""
SAMPLES = "sampled gradients"
"""Region that their packed samples share, which WU reads."""


@dataclass(frozen=True)
class Region:
    """``bytes`` from ``start``: a tensor of a ``kind`` that reports group by."""

    name: str
    kind: str
    start: int
    bytes: int


@dataclass(frozen=True)
class MemoryMap:
    """All regions, one behind the other."""

    regions: tuple[Region, ...]

    @property
    def bytes(self) -> int:
        """Size of the whole."""
        return self.regions[-1].start + self.regions[-1].bytes if self.regions else 0

    def by_kind(self) -> dict[str, int]:
        """Bytes of each kind."""
        sums: dict[str, int] = {}
        for region in self.regions:
            sums[region.kind] = sums.get(region.kind, 0) + region.bytes
        return sums

    @cached_property
    def _starts(self) -> dict[str, int]:
        return {region.name: region.start for region in self.regions}

    def start_of(self, name: str) -> int:
        """Byte address of a region; raises :class:`KeyError` if there is none."""
        return self._starts[name]

    def operand(self, gemm: Gemm, value: str) -> int:
        """Byte address at which ``gemm`` finds or puts a value: the copy that its stage reads."""
        if gemm.samples and value == gemm.b:
            return self._starts[SAMPLES]
        if value != gemm.weight:
            return self._starts.get(value, self._starts.get(GRADIENTS, 0))
        packed = f"{value} packed {gemm.stage}"
        return self._starts.get(packed, self._starts.get(f"{value} half", 0))

    def require_capacity(self, gib: float, batch: int | None = None) -> None:
        """Raise :class:`Infeasible` if the map is larger than ``gib`` GiB."""
        if self.bytes <= gib * 2**30:
            return
        kinds = self.by_kind()
        fixed = sum(kinds[kind] for kind in kinds if kind not in ("activations", "gradients"))
        levers = [f"dram_gib={-(-self.bytes // 2**30)} in the architecture"]
        if batch and fixed < gib * 2**30:
            # Regions begin at page boundaries, whatever the batch.
            room = gib * 2**30 - fixed - BOUNDARY * len(self.regions)
            most = int(batch * room / max(1, self.bytes - fixed))
            if most > 0:
                levers.insert(0, f"a batch of at most {most}")
        raise Infeasible("device memory", "device memory", self.bytes / 2**30, gib, "GiB", levers)


def memory_map(step: Step, optimiser: Optimiser) -> MemoryMap:
    """Lay out every tensor of ``step``, each at a page boundary."""
    regions: list[Region] = []
    address = 0
    for name, kind, size in _tensors(step, optimiser):
        regions.append(Region(name, kind, address, size))
        address += -(-size // BOUNDARY) * BOUNDARY
    return MemoryMap(tuple(regions))


def _tensors(step: Step, optimiser: Optimiser) -> Iterator[tuple[str, str, int]]:
    values = step.forward.values
    yield from _weights(step, optimiser)
    largest = second = 0
    for value in values.values():
        if value.kind == "activation" and value.elements:
            yield value.name, "activations", value.elements * min(value.bytes, 2)
            if value.trains:
                second, largest = sorted((second, largest, value.elements * 2))[1:]
    if step.training and largest:
        yield GRADIENTS, "gradients", largest + second
    samples = sorted(round(problem_of(gemm).b_bytes) for _, gemm in step.gemms() if gemm.samples)
    if samples:
        yield SAMPLES, "gradients", sum(samples[-2:])


def _weights(step: Step, optimiser: Optimiser) -> Iterator[tuple[str, str, int]]:
    values: dict[str, Value] = step.forward.values
    updated: set[str] = set()
    for task in step.tasks:
        if isinstance(task, Update):
            updated.add(task.parameter)
            yield task.parameter, "weights", 4 * task.elements
            yield f"grad({task.parameter})", "weight gradients", 4 * task.elements
            for state in range(optimiser.states):
                yield f"{task.parameter} state {state}", "optimiser state", 4 * task.elements
            yield from _copies(task.parameter, task.elements, task.packed, task.half)
    read: dict[str, set[tuple[Stage, NmPattern]]] = {}
    for task in step.tasks:
        if isinstance(task, Gemm) and task.weight is not None and task.weight not in updated:
            read.setdefault(task.weight, set()).add((task.stage, task.pattern))
    for name, uses in read.items():
        packed = tuple(sorted((stage, pattern) for stage, pattern in uses
                              if not pattern.is_dense))
        yield from _copies(name, values[name].elements, packed, len(packed) < len(uses))


def _copies(
    name: str, elements: int, packed: tuple[tuple[Stage, NmPattern], ...], half: bool
) -> Iterator[tuple[str, str, int]]:
    for stage, pattern in packed:
        size = round(2 * elements * ChunkFormat(pattern).words / LANES)
        yield f"{name} packed {stage}", "packed weights", size
    if half:
        yield f"{name} half", "FP16 weights", 2 * elements
