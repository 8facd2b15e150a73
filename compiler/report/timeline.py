"""A schedule as pictures show it: what each resource works on, and when.

The scheduler says when a GEMM has the array, and how many cycles its results and operands keep the
vector engine and device memory busy meanwhile. Deferred updates run beside GEMMs on those two. Who
goes first there is drawn by the earliest deadline: a GEMM's own work by its end, an update by the
FF that reads its weights. What is drawn is busy time; its sum is the scheduler's, which fixes no
order below a task: where updates leave FF too little, the rest is drawn late.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from compiler.ir import Gemm, HostTask, Update
from compiler.schedule.scheduler import Placed, Schedule

__all__ = ["Slice", "array_lane", "busy_within", "first_readers", "host_lane", "shared_lane"]


@dataclass(frozen=True)
class Slice:
    """Cycles ``start`` to ``end``, the latter excluded, for one task."""

    start: int
    end: int
    placed: Placed


@dataclass(frozen=True)
class _Job:
    """``work`` cycles for ``placed``, not before ``release`` and best before ``deadline``."""

    release: int
    deadline: int
    work: int
    placed: Placed


def array_lane(schedule: Schedule) -> tuple[Slice, ...]:
    """The GEMMs on the array."""
    return tuple(Slice(one.start, one.start + one.cycles, one) for one in schedule.gemms)


def host_lane(schedule: Schedule) -> tuple[Placed, ...]:
    """What the host does, in order; without durations, for its time is not known."""
    return tuple(one for one in schedule.placed if isinstance(one.task, HostTask))


def shared_lane(schedule: Schedule, resource: Literal["memory", "vector"]) -> tuple[Slice, ...]:
    """Busy parts of device memory or of the vector engine, in order of time."""
    readers = first_readers(schedule)
    jobs = []
    for placed in schedule.placed:
        work = placed.use.memory if resource == "memory" else placed.use.vector
        if work:
            end = placed.start + placed.cycles
            if isinstance(placed.task, Update):
                reader = readers.get(placed.task.parameter)
                end = max(end, reader.start if reader else schedule.cycles)
            jobs.append(_Job(placed.start, end, work, placed))
    return tuple(_joined(_by_deadline(jobs)))


def first_readers(schedule: Schedule) -> dict[str, Placed]:
    """The first FF GEMM that reads each parameter."""
    readers: dict[str, Placed] = {}
    for one in schedule.gemms:
        gemm = one.task
        if isinstance(gemm, Gemm) and gemm.stage == "FF" and gemm.weight is not None:
            readers.setdefault(gemm.weight, one)
    return readers


def busy_within(lane: Sequence[Slice], edges: Sequence[int]) -> list[int]:
    """Busy cycles of a lane between neighbouring ``edges``, which ascend."""
    busy = [0] * (len(edges) - 1)
    place = 0
    for one in lane:
        while place < len(busy) and edges[place + 1] <= one.start:
            place += 1
        window = place
        while window < len(busy) and edges[window] < one.end:
            busy[window] += min(one.end, edges[window + 1]) - max(one.start, edges[window])
            window += 1
    return busy


def _by_deadline(jobs: Sequence[_Job]) -> Iterator[Slice]:
    """One job at a time: of those released, the one with the earliest deadline."""
    arriving = sorted(jobs, key=lambda job: job.release)
    waiting: list[tuple[int, int, int]] = []  # deadline, job, cycles left
    time, arrived = 0, 0
    while waiting or arrived < len(arriving):
        if not waiting:
            time = max(time, arriving[arrived].release)
        while arrived < len(arriving) and arriving[arrived].release <= time:
            heapq.heappush(waiting, (arriving[arrived].deadline, arrived, arriving[arrived].work))
            arrived += 1
        deadline, number, left = heapq.heappop(waiting)
        end = time + left
        if arrived < len(arriving):
            end = min(end, arriving[arrived].release)
        yield Slice(time, end, arriving[number].placed)
        if end - time < left:
            heapq.heappush(waiting, (deadline, number, left - (end - time)))
        time = end


def _joined(slices: Iterator[Slice]) -> Iterator[Slice]:
    """Slices of one task that touch, as one."""
    last: Slice | None = None
    for one in slices:
        if last is not None and last.placed is one.placed and last.end == one.start:
            last = Slice(last.start, one.end, last.placed)
            continue
        if last is not None:
            yield last
        last = one
    if last is not None:
        yield last
