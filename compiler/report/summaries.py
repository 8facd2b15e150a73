"""What reports for people sum up: causes in words, GEMMs by stage, operators, memory by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compiler.report.result import HostRow, LayerRow, Totals
from compiler.schedule.memory_map import MemoryMap

__all__ = [
    "CAUSES", "Cause", "HostGroup", "MemoryRow", "StageRow", "causes", "host_groups", "memory_rows",
    "stage_rows",
]

CAUSES = {
    "ideal": ("computing", "every USPE of the array in use"),
    "leftovers": ("leftover rows and columns", "sizes that tiles do not divide"),
    "spacing": ("short tiles", "the next tile waits for results to leave or weights to arrive"),
    "latency": ("filling the pipeline", "before the first and after the last step of a GEMM"),
    "waiting": ("waiting", "for memory, a port or the vector engine"),
    "exposed": ("loads and stores at the ends", "of GEMMs whose neighbours do not hide them"),
    "updates": ("updates alone", "the optimiser, where no GEMM runs"),
}
"""Name and explanation of each cause in :class:`compiler.schedule.attribution.Attribution`."""


@dataclass(frozen=True)
class Cause:
    """Cycles of one cause in both schedules; widths in per cent of the longer schedule."""

    name: str
    why: str
    sparse: float
    dense: float
    sparse_width: float
    dense_width: float


@dataclass(frozen=True)
class StageRow:
    """All GEMMs of a stage."""

    stage: str
    gemms: int
    cycles: int
    dense_cycles: int
    macs: int
    utilisation: float
    dram_bytes: int


@dataclass(frozen=True)
class MemoryRow:
    """All regions of device memory of one kind, which is its ``name``."""

    name: str
    regions: int
    bytes: int
    share: float
    largest: str
    largest_bytes: int

    @property
    def width(self) -> float:
        """Its part of the whole in per cent."""
        return 100 * self.share


@dataclass(frozen=True)
class HostGroup:
    """All calls of one operator on the host."""

    operator: str
    backward: bool
    calls: int
    bytes: int
    fallback: bool


def causes(totals: Totals) -> Iterator[Cause]:
    """Where the cycles of both schedules go."""
    longer = max(1, totals.cycles, totals.dense_cycles)
    for key, (name, why) in CAUSES.items():
        sparse, dense = totals.attribution[key], totals.dense_attribution[key]
        yield Cause(name, why, sparse, dense, 100 * sparse / longer, 100 * dense / longer)


def stage_rows(layers: Sequence[LayerRow], pes: int) -> Iterator[StageRow]:
    """Sums of each stage that has GEMMs; ``pes`` is the number of USPEs."""
    for stage in ("FF", "BP", "WU"):
        rows = [row for row in layers if row.stage == stage]
        if rows:
            cycles, macs = sum(row.cycles for row in rows), sum(row.macs for row in rows)
            yield StageRow(stage, len(rows), cycles, sum(row.dense_cycles for row in rows), macs,
                           macs / (cycles * pes), sum(row.dram_bytes for row in rows))


def memory_rows(memory: MemoryMap) -> Iterator[MemoryRow]:
    """Kinds of device memory, the largest first."""
    sizes = memory.by_kind()
    total = max(1, sum(sizes.values()))
    for kind in sorted(sizes, key=lambda kind: -sizes[kind]):
        regions = [region for region in memory.regions if region.kind == kind]
        largest = max(regions, key=lambda region: region.bytes)
        yield MemoryRow(kind, len(regions), sizes[kind], sizes[kind] / total, largest.name,
                        largest.bytes)


def host_groups(rows: Sequence[HostRow]) -> Iterator[HostGroup]:
    """Operators of the host, those with the most bytes first."""
    calls: Counter[tuple[str, bool, bool]] = Counter()
    sizes: Counter[tuple[str, bool, bool]] = Counter()
    for row in rows:
        key = (row.operator, row.backward, row.fallback)
        calls[key] += 1
        sizes[key] += row.bytes
    for key in sorted(calls, key=lambda key: (-sizes[key], key)):
        operator, backward, fallback = key
        yield HostGroup(operator, backward, calls[key], sizes[key], fallback)
