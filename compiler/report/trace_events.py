"""A schedule in Chrome's trace-event format, which Perfetto and ``chrome://tracing`` open.

Times are microseconds at the target's clock. A process is a schedule; its threads are the array,
device memory, the vector engine and the host, whose operators are instants: their time is unknown.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from compiler.ir import Gemm, HostTask, Update
from compiler.report.timeline import (
    Slice,
    array_lane,
    busy_within,
    first_readers,
    host_lane,
    shared_lane,
)
from compiler.schedule.attribution import attribute_gemm
from compiler.schedule.scheduler import Placed, Schedule

__all__ = ["trace_events"]

Event = dict[str, Any]

_ARRAY, _MEMORY, _VECTOR, _HOST = range(1, 5)
_THREADS = {_ARRAY: "array", _MEMORY: "device memory", _VECTOR: "vector engine", _HOST: "host"}
_SHARED: tuple[tuple[int, Any], ...] = ((_MEMORY, "memory"), (_VECTOR, "vector"))
_DIGITS = 3
"""Of a microsecond: viewers count nanoseconds."""


def trace_events(schedule: Schedule, dense: Schedule | None = None) -> dict[str, Any]:
    """The trace of a schedule and, as a second process, of the dense one of the same step."""
    events: list[Event] = []
    for process, (name, one) in enumerate((("sparse", schedule), ("dense", dense)), 1):
        if one is not None:
            events += _process(process, name, one)
    # Names first, then by time; a flow begins before it ends.
    events.sort(key=lambda event: (event["ph"] != "M", event.get("ts", 0)))
    architecture = schedule.target.architecture
    return {
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": {
            "model": schedule.step.forward.model,
            "architecture": architecture.name,
            "paths": schedule.target.paths,
            "clock_mhz": architecture.clock_mhz,
            "not_included": "time of host operators",
        },
    }


def _process(process: int, name: str, schedule: Schedule) -> Iterator[Event]:
    """All events of one schedule."""
    yield from _names(process, f"{schedule.step.forward.model}, {name}")
    for event in _work(schedule):
        event["pid"] = process
        if "id" in event:  # of an arrow: unique in the whole trace
            event["id"] = f"{process}.{event['id']}"
        yield event


def _names(process: int, name: str) -> Iterator[Event]:
    """What viewers call the process and its threads, and in which order they show them."""
    yield {"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}}
    yield {"ph": "M", "pid": process, "name": "process_sort_index",
           "args": {"sort_index": process}}
    for thread, label in _THREADS.items():
        place = {"ph": "M", "pid": process, "tid": thread}
        yield {**place, "name": "thread_name", "args": {"name": label}}
        yield {**place, "name": "thread_sort_index", "args": {"sort_index": thread}}


def _work(schedule: Schedule) -> Iterator[Event]:
    """Events of all threads and counters."""
    lanes = {thread: shared_lane(schedule, resource) for thread, resource in _SHARED}
    for one in array_lane(schedule):
        yield _complete(schedule, _ARRAY, one, _gemm_arguments(one.placed))
    for thread, lane in lanes.items():
        for one in lane:
            yield _complete(schedule, thread, one, _share_arguments(one.placed))
    for placed in host_lane(schedule):
        yield _instant(schedule, placed)
    yield from _counters(schedule, lanes[_MEMORY])
    yield from _flows(schedule, lanes[_VECTOR])


def _micros(schedule: Schedule, cycles: int) -> float:
    return round(cycles / schedule.target.architecture.clock_mhz, _DIGITS)


def _complete(
    schedule: Schedule, thread: int, one: Slice, arguments: dict[str, Any]
) -> Event:
    # Both ends are rounded, not the duration: neighbours touch and do not overlap.
    start, end = _micros(schedule, one.start), _micros(schedule, one.end)
    task = one.placed.task
    return {"ph": "X", "tid": thread, "name": task.name,
            "cat": task.stage if isinstance(task, Gemm) else "update",
            "ts": start, "dur": round(end - start, _DIGITS), "args": arguments}


def _gemm_arguments(placed: Placed) -> dict[str, Any]:
    gemm, mapped = placed.task, placed.mapped
    if not isinstance(gemm, Gemm) or mapped is None:
        raise AssertionError("not a GEMM")
    tiling = mapped.tiling
    room = placed.cycles * tiling.architecture.pes
    return {
        "stage": gemm.stage, "P": gemm.p, "Q": gemm.q, "K": gemm.k, "batch": gemm.batch,
        "mode": str(tiling.problem.pattern), "dataflow": tiling.dataflow,
        "tile": tiling.describe(), "cycles": placed.cycles, "array_cycles": tiling.array_cycles,
        "utilisation": round(tiling.problem.macs / room, 4), "bytes": placed.dram_bytes,
        "bound": tiling.cost.bound, "gap": round(mapped.gap, 4),
        "stalls": {cause: round(cycles, 1)
                   for cause, cycles in vars(attribute_gemm(placed)).items() if cycles},
    }


def _share_arguments(placed: Placed) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "memory_cycles": placed.use.memory, "vector_cycles": placed.use.vector,
        "bytes": placed.dram_bytes,
    }
    if isinstance(placed.task, Update):
        arguments["elements"] = placed.task.elements
    return arguments


def _instant(schedule: Schedule, placed: Placed) -> Event:
    task = placed.task
    if not isinstance(task, HostTask):
        raise AssertionError("not of the host")
    return {"ph": "i", "s": "t", "tid": _HOST, "name": task.name, "cat": "host",
            "ts": _micros(schedule, placed.start),
            "args": {"operator": task.operator, "backward": task.backward, "bytes": task.bytes,
                     "fallback": task.fallback}}


def _counters(schedule: Schedule, memory: tuple[Slice, ...]) -> Iterator[Event]:
    """Utilisation of the array and bandwidth of memory, constant for each GEMM and each gap."""
    gemms = {one.start: one for one in schedule.gemms}
    edges = sorted({0, schedule.cycles, *gemms, *(
        one.start + one.cycles for one in schedule.gemms)})
    target = schedule.target
    peak = target.dram_bytes * target.architecture.clock_mhz / 1e3  # GB/s
    for (start, end), busy in zip(itertools.pairwise(edges), busy_within(memory, edges),
                                  strict=True):
        placed = gemms.get(start)
        macs = placed.mapped.tiling.problem.macs if placed and placed.mapped else 0
        room = (end - start) * target.architecture.pes
        yield _counter(schedule, start, "utilisation", "%", 100 * macs / room)
        yield _counter(schedule, start, "DRAM bandwidth", "GB/s", peak * busy / (end - start))
    yield _counter(schedule, schedule.cycles, "utilisation", "%", 0)
    yield _counter(schedule, schedule.cycles, "DRAM bandwidth", "GB/s", 0)


def _counter(schedule: Schedule, cycle: int, name: str, unit: str, value: float) -> Event:
    return {"ph": "C", "name": name, "ts": _micros(schedule, cycle),
            "args": {unit: round(value, _DIGITS)}}


def _flows(schedule: Schedule, vector: tuple[Slice, ...]) -> Iterator[Event]:
    """An arrow from each update to the FF of this step that reads its weights, if it is later."""
    readers = first_readers(schedule)
    lasts = {one.placed.task.parameter: one for one in vector
             if isinstance(one.placed.task, Update)}
    for number, (parameter, last) in enumerate(lasts.items()):
        reader = readers.get(parameter)
        if reader is not None and last.end <= reader.start:
            arrow = {"name": "weights", "cat": "update", "id": number}
            # It starts inside the update's slice, to which a viewer binds it.
            yield {**arrow, "ph": "s", "tid": _VECTOR, "ts": _micros(schedule, last.start)}
            yield {**arrow, "ph": "f", "bp": "e", "tid": _ARRAY,
                   "ts": _micros(schedule, reader.start)}
