"""Where the cycles of a schedule go: from all USPEs busy to the clock on the wall."""

from __future__ import annotations

from dataclasses import dataclass, fields

from compiler.schedule.scheduler import Placed, Schedule

__all__ = ["Attribution", "attribute", "attribute_gemm"]


@dataclass(frozen=True)
class Attribution:
    """Cycles by cause; they add up to all of them.

    Parameters
    ----------
    ideal: executed multiply-accumulates over the number of USPEs.
    leftovers: rows and columns of tiles that sizes which do not divide leave unused.
    spacing: tiles too short for their results to leave, or their weights to arrive, in time.
    latency: filling and emptying the pipeline of the array, once a GEMM.
    waiting: for memory, ports or the vector engine while the array could go on.
    exposed: first loads and last stores that no neighbour covers.
    updates: the optimiser where nothing else runs.
    """

    ideal: float = 0
    leftovers: float = 0
    spacing: float = 0
    latency: float = 0
    waiting: float = 0
    exposed: float = 0
    updates: float = 0

    def __add__(self, other: Attribution) -> Attribution:
        return Attribution(*(getattr(self, one.name) + getattr(other, one.name)
                             for one in fields(self)))

    @property
    def cycles(self) -> float:
        """The sum."""
        return float(sum(getattr(self, one.name) for one in fields(self)))

    def shares(self) -> dict[str, float]:
        """Each cause relative to the sum."""
        total = self.cycles or 1
        return {one.name: getattr(self, one.name) / total for one in fields(self)}


def attribute_gemm(placed: Placed) -> Attribution:
    """The cycles of one placed GEMM; of another task, none."""
    if placed.mapped is None:
        return Attribution()
    tiling = placed.mapped.tiling
    cost, array = tiling.cost, tiling.array_cycles
    ideal = tiling.problem.macs / tiling.architecture.pes
    return Attribution(
        ideal, tiling.pass_cycles - ideal, array - tiling.latency - tiling.pass_cycles,
        tiling.latency, cost.busy - array, placed.cycles - cost.busy,
    )


def attribute(schedule: Schedule) -> Attribution:
    """The cycles of a whole step."""
    total = Attribution()
    for placed in schedule.gemms:
        total += attribute_gemm(placed)
    return total + Attribution(updates=schedule.cycles - total.cycles)
