"""Design-space exploration: every point of a grid scheduled, costed, and ranked.

A point is an architecture with a pattern. Of each workload it has the cycles of the best schedule,
pruned and dense; over all workloads the geometric mean of the time of a step, of the speed-up and
of the energy; the shares of a VU9P that it takes.

A point is on the Pareto front if it fits the device and no other that fits is as good in step time,
largest share and energy, and better in one of them. They are compared to three digits, more than
the estimates are worth; of points that are then the same, the one with the slowest memory stands
for all. Accuracy is no part of this: it decides which patterns to ask for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import geometric_mean
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from compiler.explore import energy, resources
from compiler.explore.activity import step_counts
from compiler.explore.fan_out import Progress, fan_out
from compiler.explore.grid import Case, Grid, Refused, Sizes
from compiler.ir import Step
from compiler.schedule.mapper import Infeasible
from compiler.schedule.memory_map import memory_map
from compiler.schedule.scheduler import Options, schedule
from compiler.schedule.target import Target
from rtl.architecture import Architecture
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

__all__ = ["Exploration", "Figures", "Point", "Steps", "explore", "pareto_front"]

Steps = Mapping[str, Mapping[NmPattern, tuple[Step, Step]]]
"""Workload to pattern to its training step, pruned and dense."""


class Figures(BaseModel):
    """One workload on one point."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: str = Field(description="Name of the workload.")
    cycles: int = Field(description="Cycles of a training step.")
    dense_cycles: int = Field(description="Cycles of the dense step on the same architecture.")
    speedup: float = Field(description="Dense cycles over cycles.")
    seconds: float = Field(description="Time of a step at the architecture's clock.")
    joules: float = Field(description="Energy of a step; an estimate.")
    watts: float = Field(description="Average power over a step; an estimate.")


class Point(Sizes):
    """An architecture with a pattern. Means are geometric, over all workloads."""

    pattern: str = Field(description="N:M, or dense.")
    workloads: tuple[Figures, ...] = Field(description="Each workload.")
    seconds: float = Field(description="Mean time of a step.")
    speedup: float = Field(description="Mean speed-up over dense on the same architecture.")
    joules: float = Field(description="Mean energy of a step; an estimate.")
    watts: float = Field(description="Mean of the average power; an estimate.")
    shares: dict[str, float] = Field(description="Shares of a VU9P: LUT, FF, DSP, BRAM36.")
    fits: bool = Field(description="No share is above 1.")
    pareto: bool = Field(description="On the Pareto front of step time, largest share, energy.")

    @property
    def largest_share(self) -> float:
        """Share of the resource that is scarcest."""
        return max(self.shares.values())

    @property
    def objectives(self) -> tuple[float, float, float]:
        """What is minimised: step time, largest share, energy."""
        return self.seconds, self.largest_share, self.joules


class Exploration(BaseModel):
    """All points, best first: those that fit, the Pareto front first, by the time of a step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workloads: tuple[str, ...] = Field(description="Workloads that the means are over.")
    paths: str = Field(description="Description of ports and vector engine: wide or built.")
    clock_mhz: float = Field(description="Clock of every architecture.")
    points: tuple[Point, ...] = Field(description="In the order of the ranking.")
    infeasible: tuple[Refused, ...] = Field(description="Points that some workload has no mapping "
                                                        "for, in the order of the grid.")
    illegal: tuple[Refused, ...] = Field(description="Combinations that are no architecture.")

    @property
    def front(self) -> tuple[Point, ...]:
        """The Pareto front, fastest first."""
        return tuple(point for point in self.points if point.pareto)


def explore(
    steps: Steps, grid: Grid, *, workers: int | None = None, cluster: str | None = None,
    paths: str = "wide", progress: Progress | None = None,
) -> Exploration:
    """Cost every point of ``grid`` for all workloads of ``steps``.

    Parameters
    ----------
    steps: each workload with each pattern of the grid, pruned and dense.
    workers, cluster, progress: as for :func:`compiler.explore.fan_out.fan_out`; a job is a workload
        on an architecture, with all patterns. The outcome does not depend on them.
    paths: the surroundings of the array, as for :class:`compiler.schedule.target.Target`.

    Raises :class:`ParameterError` if there is nothing to explore: no workload, a pattern without a
    step, no legal architecture; and for unknown ``paths``.
    """
    patterns = tuple(dict.fromkeys(grid.patterns))
    architectures = tuple(grid.require_legal().architectures())
    _require_work(steps, patterns)
    Target.of(architectures[0], paths)
    jobs = [_Job(name, architecture, patterns, paths)
            for architecture in architectures for name in steps]
    found = iter(fan_out(_evaluate, steps, jobs, workers=workers, cluster=cluster,
                         progress=progress))
    by_architecture = {architecture: [next(found) for _ in steps]
                       for architecture in architectures}
    points: list[Point] = []
    infeasible: list[Refused] = []
    for case in grid.cases():
        figures = [made[case.pattern] for made in by_architecture[case.architecture]]
        short = [reason for reason in figures if isinstance(reason, str)]
        if short:
            infeasible.append(Refused(**case.sizes, pattern=str(case.pattern),
                                      reason=" | ".join(short)))
        else:
            points.append(_point(case, [one for one in figures if isinstance(one, Figures)]))
    return Exploration(workloads=tuple(steps), paths=paths, clock_mhz=grid.base.clock_mhz,
                       points=tuple(_ranked(points)), infeasible=tuple(infeasible),
                       illegal=grid.illegal)


def pareto_front(objectives: Sequence[tuple[float, ...]]) -> list[bool]:
    """Which of several vectors no other dominates, all to be minimised; equal ones do not."""
    front: list[tuple[float, ...]] = []
    # In this order nothing is dominated by what comes after it.
    for one in sorted(set(objectives)):
        if not any(all(a <= b for a, b in zip(other, one, strict=True)) for other in front):
            front.append(one)
    kept = set(front)
    return [one in kept for one in objectives]


def _require_work(steps: Steps, patterns: Sequence[NmPattern]) -> None:
    if not steps:
        raise ParameterError("steps", {}, "must have at least one workload")
    for name, of_workload in steps.items():
        for pattern in patterns:
            if pattern not in of_workload:
                raise ParameterError("patterns", str(pattern), f"there is no step of {name} for it",
                                     next(iter(of_workload), None))


# One job, in a worker.


class _Job(NamedTuple):
    workload: str
    architecture: Architecture
    patterns: tuple[NmPattern, ...]
    paths: str


def _evaluate(steps: Steps, job: _Job) -> dict[NmPattern, Figures | str]:
    """Figures of each pattern, or why there are none."""
    return dict(_figures(steps[job.workload], job))


def _figures(
    of_workload: Mapping[NmPattern, tuple[Step, Step]], job: _Job
) -> Iterator[tuple[NmPattern, Figures | str]]:
    target, options = Target.of(job.architecture, job.paths), Options()
    dense_cycles: dict[int, int] = {}  # patterns share the dense step
    for pattern in job.patterns:
        step, dense = of_workload[pattern]
        try:
            memory_map(step, options.optimiser).require_capacity(job.architecture.dram_gib)
            if id(dense) not in dense_cycles:
                dense_cycles[id(dense)] = schedule(target, dense, options).cycles
            found = schedule(target, step, options)
        except Infeasible as failure:
            yield pattern, f"{job.workload}: {failure}"
            continue
        spent = energy.estimate(step_counts(found))
        whole = dense_cycles[id(dense)]
        yield pattern, Figures(
            workload=job.workload, cycles=found.cycles, dense_cycles=whole,
            speedup=whole / found.cycles, seconds=spent.seconds, joules=spent.total,
            watts=spent.total_watts,
        )


# From figures to a ranking.


def _point(case: Case, figures: Sequence[Figures]) -> Point:
    used = resources.estimate(case.architecture).share(resources.VU9P)
    shares = {name.upper(): percent / 100 for name, percent in used.items()}
    return Point(
        **case.sizes, pattern=str(case.pattern), workloads=tuple(figures),
        seconds=geometric_mean(one.seconds for one in figures),
        speedup=geometric_mean(one.speedup for one in figures),
        joules=geometric_mean(one.joules for one in figures),
        watts=geometric_mean(one.watts for one in figures),
        shares=shares, fits=max(shares.values()) <= 1, pareto=False,
    )


def _ranked(points: Sequence[Point]) -> list[Point]:
    # Of points that are the same, the slowest memory will do; sorting keeps the grid's order.
    fitting = sorted((point for point in points if point.fits), key=lambda one: one.dram_gbps)
    distinct = {_rounded(point): point for point in reversed(fitting)}
    best = {id(point) for point, front in zip(
        distinct.values(), pareto_front(list(distinct)), strict=True) if front}
    judged = (point.model_copy(update={"pareto": True}) if id(point) in best else point
              for point in points)
    return sorted(judged, key=lambda one: (not one.fits, not one.pareto, *one.objectives))


def _rounded(point: Point) -> tuple[float, ...]:
    return tuple(float(f"{value:.3g}") for value in point.objectives)
