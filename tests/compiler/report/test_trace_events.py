"""The trace: valid for viewers, complete, and with the scheduler's cycles in it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from compiled_examples import HOST, ODD, compiled

from compiler.ir import HostTask, Update
from compiler.pipeline import Compiled
from compiler.report.timeline import array_lane, busy_within, first_readers, shared_lane
from compiler.report.trace_events import trace_events
from compiler.schedule.scheduler import Options, Schedule
from rtl.architecture import PRESETS, Architecture

SLOW_MEMORY = Architecture(name="slow", rows=8, cols=8, clock_mhz=333.0, dram_gbps=0.4)
"""Memory is the bottleneck, so that deferred updates and FF compete for it."""
CASES = {
    "small": compiled(),
    "end": compiled(options=Options(updates="end")),
    "slow": compiled(SLOW_MEMORY, Options(updates="deferred")),
}


@pytest.fixture(params=CASES)
def example(request: pytest.FixtureRequest) -> Compiled:
    """The compiled step in one of several schedules."""
    return CASES[str(request.param)]


def events(example: Compiled) -> list[dict[str, Any]]:
    """As a viewer reads them."""
    text = json.dumps(trace_events(example.sparse, example.dense), allow_nan=False)
    found: list[dict[str, Any]] = json.loads(text)["traceEvents"]
    return found


def test_events_have_what_the_format_asks_for(example: Compiled) -> None:
    for event in events(example):
        assert isinstance(event["name"], str) and event["pid"] in (1, 2)
        assert event["ph"] in {"M", "X", "i", "C", "s", "f"}
        assert event["ph"] == "M" or event["ts"] >= 0
        assert event["ph"] not in "Xisf" or event["tid"] in {1, 2, 3, 4}
        if event["ph"] == "C":
            assert all(isinstance(value, float | int) for value in event["args"].values())


def test_names_come_first_and_times_ascend(example: Compiled) -> None:
    found = events(example)
    names = [event for event in found if event["ph"] == "M"]
    assert found[:len(names)] == names
    named = {(event["pid"], event["args"]["name"]) for event in names
             if event["name"] == "thread_name"}
    assert named == {(process, thread) for process in (1, 2) for thread in (
        "array", "device memory", "vector engine", "host")}
    times = [event["ts"] for event in found[len(names):]]
    assert times == sorted(times)


def test_durations_are_positive_and_do_not_overlap(example: Compiled) -> None:
    lanes: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events(example):
        if event["ph"] == "X":
            lanes.setdefault((event["pid"], event["tid"]), []).append(
                (event["ts"], event["dur"]))
    assert len(lanes) == 6
    for lane in lanes.values():
        assert all(duration > 0 for _, duration in lane)
        for (start, duration), (after, _) in itertools.pairwise(lane):
            assert start + duration <= after + 1e-6


def test_every_task_is_there_once_on_its_thread(example: Compiled) -> None:
    found = events(example)
    for process, schedule in ((1, example.sparse), (2, example.dense)):
        of = [event for event in found if event["pid"] == process]
        on_array = [event["name"] for event in of if event["ph"] == "X" and event["tid"] == 1]
        assert sorted(on_array) == sorted(gemm.name for _, gemm in schedule.step.gemms())
        on_vector = {event["name"] for event in of if event["ph"] == "X" and event["tid"] == 3}
        assert on_vector >= {task.name for task in schedule.step.tasks if isinstance(task, Update)}
        host = [(event["name"], event["args"]["backward"]) for event in of if event["ph"] == "i"]
        assert sorted(host) == sorted((task.name, task.backward) for task in schedule.step.tasks
                                      if isinstance(task, HostTask))
    assert any(event["name"] == HOST and event["args"]["fallback"] for event in found)


def test_microseconds_are_cycles_at_the_clock() -> None:
    example = CASES["slow"]
    placed = next(one for one in example.sparse.gemms if one.task.name == f"{ODD} FF")
    event = next(event for event in events(example)
                 if event["name"] == f"{ODD} FF" and event["tid"] == 1)
    assert event["ts"] == pytest.approx(placed.start / 333, abs=1e-3)
    assert event["dur"] == pytest.approx(placed.cycles / 333, abs=2e-3)
    arguments = event["args"]
    assert (arguments["P"], arguments["Q"], arguments["K"]) == (512, 128, 64)
    assert (arguments["stage"], arguments["mode"]) == ("FF", "2:8")
    assert arguments["bytes"] == placed.dram_bytes
    assert sum(arguments["stalls"].values()) == pytest.approx(placed.cycles, abs=1)


def test_counters_stay_within_what_the_machine_has(example: Compiled) -> None:
    peak = example.sparse.target.dram_bytes * example.sparse.target.architecture.clock_mhz / 1e3
    found = events(example)
    for name, unit, most in (("utilisation", "%", 100), ("DRAM bandwidth", "GB/s", peak)):
        values = [event["args"][unit] for event in found if event["name"] == name]
        assert min(values) >= 0
        assert 0 < max(values) <= most + 1e-3


def test_arrows_lead_from_an_update_to_the_ff_that_reads_its_weights() -> None:
    found = events(CASES["small"])
    starts = {event["id"]: event for event in found if event["ph"] == "s"}
    ends = {event["id"]: event for event in found if event["ph"] == "f"}
    assert starts and starts.keys() == ends.keys()
    for number, start in starts.items():
        assert start["ts"] <= ends[number]["ts"]
        assert start["pid"] == ends[number]["pid"]
        reader = next(event for event in found if event["ph"] == "X" and event["tid"] == 1
                      and event["pid"] == start["pid"] and event["ts"] == ends[number]["ts"])
        assert reader["args"]["stage"] == "FF"
    # Updates at the end belong to FF of a step that is not in the trace.
    assert not [event for event in events(CASES["end"]) if event["ph"] in "sf"]


@pytest.mark.parametrize("resource", ["memory", "vector"])
def test_lanes_show_the_busy_cycles_of_the_schedule(
    example: Compiled, resource: Any
) -> None:
    for schedule in (example.sparse, example.dense):
        shown: dict[int, int] = {}
        for one in shared_lane(schedule, resource):
            assert one.start >= one.placed.start
            shown[one.placed.index] = shown.get(one.placed.index, 0) + one.end - one.start
        wanted = {one.index: getattr(one.use, resource) for one in schedule.placed
                  if getattr(one.use, resource)}
        assert shown == wanted


@pytest.mark.parametrize("resource", ["memory", "vector"])
def test_without_deferred_updates_all_work_is_within_its_task(resource: Any) -> None:
    for one in shared_lane(CASES["end"].sparse, resource):
        assert one.end <= one.placed.start + one.placed.cycles


def test_busy_within_counts_each_cycle_once() -> None:
    schedule: Schedule = CASES["slow"].sparse
    lane = array_lane(schedule)
    edges = sorted({0, 7, 1000, 20000, 20001, schedule.cycles})
    busy = busy_within(lane, edges)
    assert sum(busy) == sum(one.end - one.start for one in lane)
    for cycles, (start, end) in zip(busy, itertools.pairwise(edges), strict=True):
        assert cycles == sum(max(0, min(end, one.end) - max(start, one.start)) for one in lane)


def test_a_schedule_alone_is_one_process() -> None:
    trace = trace_events(CASES["small"].sparse)
    assert {event["pid"] for event in trace["traceEvents"]} == {1}
    assert trace["otherData"]["architecture"] == PRESETS["small"].name
    assert set(first_readers(CASES["small"].sparse)) == {
        task.parameter for task in CASES["small"].step.tasks if isinstance(task, Update)}
