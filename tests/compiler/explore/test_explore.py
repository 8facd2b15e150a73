"""Design-space exploration: the grid, the Pareto front, the ranking, and who computes it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from hypothesis import given
from hypothesis import strategies as st

from compiler.explore.fan_out import fan_out
from compiler.explore.grid import Grid
from compiler.explore.search import Exploration, Point, Steps, explore, pareto_front
from compiler.ir import Forward, Gemm, Step, Update, Value
from compiler.schedule.scheduler import schedule
from compiler.schedule.target import Target
from rtl.architecture import PRESETS, Architecture
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern

ROOT = Path(__file__).parents[3]
P24, P28 = NmPattern(2, 4), NmPattern(2, 8)


def _step(rows: int, width: int, pattern: NmPattern) -> Step:
    """One linear layer: FF, WU and the update of its weight."""
    values = {
        "x": Value("x", (rows, width), 4),
        "w": Value("w", (width, width), 4, "parameter", True),
        "y": Value("y", (rows, width), 4, trains=True),
    }
    tasks = (
        Gemm("fc", "FF", rows, width, width, "x", "w", "y", pattern=pattern, weight="w"),
        Gemm("fc", "WU", width, width, rows, "x", "grad(y)", "grad(w)", weight="w",
             result_bytes=4, needs=(0,)),
        Update("w", width * width, () if pattern == DENSE else (("FF", pattern),), needs=(1,)),
    )
    return Step(Forward("Line", values, (), ("x",), ("y",), {"w": width * width}), tasks)


def _steps(*patterns: NmPattern, rows: int = 256) -> Steps:
    """Two workloads."""
    made = {}
    for name, width in (("narrow", 64), ("wide", 160)):
        dense = _step(rows, width, DENSE)
        made[name] = {pattern: (_step(rows, width, pattern), dense) for pattern in patterns}
    return made


GRID = Grid((4, 8, 16), (8, 16), (P24, P28), (3.0, 12.0))


@pytest.fixture(scope="module")
def explored() -> Exploration:
    """The small grid, in this process."""
    return explore(_steps(P24, P28), GRID, workers=1)


# The grid.


def test_grid_makes_every_combination_in_order() -> None:
    made = list(GRID.architectures())
    assert [(one.rows, one.cols, one.dram_gbps) for one in made] == list(
        product((4, 8, 16), (8, 16), (3.0, 12.0)))
    assert GRID.illegal == ()
    paper = PRESETS["paper"]
    assert {(one.n2s_words, one.clock_mhz, one.adder_stages) for one in made} == {
        (paper.n2s_words, paper.clock_mhz, paper.adder_stages)}
    assert [case.pattern for case in GRID.cases()] == [P24, P28] * len(made)


def test_grid_varies_buffers_and_stages_and_ignores_repetition() -> None:
    grid = Grid((8, 8), (8,), adder_stages=(3, 4), w2e_words=(512,), n2s_words=(1024, 2048),
                out_words=(4096,))
    assert [(one.adder_stages, one.w2e_words, one.n2s_words, one.out_words)
            for one in grid.architectures()] == [
        (3, 512, 1024, 4096), (3, 512, 2048, 4096), (4, 512, 1024, 4096), (4, 512, 2048, 4096)]


def test_bandwidth_by_default_is_the_share_of_the_paper_card() -> None:
    cases = list(Grid((16, 32), (32,)).cases())
    assert [case.bandwidth for case in cases] == [38.4, 76.8]


def test_illegal_combinations_are_collected_with_their_reasons() -> None:
    grid = Grid((8, 12), (8, 24), n2s_words=(64, 128), bandwidths=(10.0, 5000.0))
    assert [(one.rows, one.cols, one.n2s_words) for one in grid.architectures()] == [(8, 8, 64),
                                                                                    (8, 8, 128)]
    assert len(grid.illegal) == 2 ** 4 - 2
    reasons = {(one.rows, one.cols, one.n2s_words, one.dram_gbps): one.reason
               for one in grid.illegal}
    assert reasons[12, 8, 128, 10.0].startswith("rows=12: must be at most block=8 or a multiple")
    assert reasons[8, 24, 64, 10.0].startswith("cols=24: must divide 16 or be a multiple of it")
    assert reasons[8, 8, 64, 5000.0].startswith("dram_gbps=5000.0: ")


def test_share_of_an_illegal_array_is_shown() -> None:
    (one,) = Grid((32,), (24,)).illegal
    assert one.dram_gbps == pytest.approx(76.8 * 24 / 32)


@pytest.mark.parametrize("name", ["rows", "cols", "patterns", "bandwidths", "out_words"])
def test_empty_list_is_refused(name: str) -> None:
    empty: dict[str, Any] = {name: ()}
    with pytest.raises(ParameterError, match=rf"^{name}=\(\): must have at least one value"):
        replace(GRID, **empty)


def test_pattern_that_the_array_cannot_run_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"^patterns='3:4': the array runs dense, or"):
        Grid((8,), (8,), (NmPattern(3, 4),))


def test_nothing_to_explore_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"^grid=2: none of so many .* the first, rows=12: "):
        explore(_steps(P28), Grid((12,), (8, 16)))
    with pytest.raises(ParameterError, match=r"^steps=\{\}: must have at least one workload"):
        explore({}, GRID)
    with pytest.raises(ParameterError, match=r"^patterns='2:4': there is no step of narrow for"):
        explore(_steps(P28), GRID)
    with pytest.raises(ParameterError, match=r"^paths='bilt': must be one of .*: built$"):
        explore(_steps(P24, P28), GRID, paths="bilt")


# The front.

_VECTORS = st.lists(st.tuples(*[st.integers(0, 6)] * 3), max_size=30)


@given(_VECTORS)
def test_front_is_what_nothing_dominates(vectors: list[tuple[float, ...]]) -> None:
    def dominated(one: tuple[float, ...]) -> bool:
        return any(
            other != one and all(a <= b for a, b in zip(other, one, strict=True))
            for other in vectors
        )

    assert pareto_front(vectors) == [not dominated(one) for one in vectors]


def test_points_are_ranked_and_the_front_is_right(explored: Exploration) -> None:
    points = explored.points
    assert len(points) == 24
    keys = [(not one.pareto, *one.objectives) for one in points]
    assert keys == sorted(keys)
    assert 1 < len(explored.front) < len(points)
    digits = {id(one): tuple(float(f"{value:.3g}") for value in one.objectives) for one in points}
    for one in points:
        better = [
            other for other in points if digits[id(other)] != digits[id(one)]
            and all(a <= b for a, b in zip(digits[id(other)], digits[id(one)], strict=True))
        ]
        same = [other for other in points if digits[id(other)] == digits[id(one)]]
        assert one.pareto == (not better and one.dram_gbps == min(
            other.dram_gbps for other in same)), one


def test_figures_are_the_schedulers(explored: Exploration) -> None:
    point = next(one for one in explored.points
                 if (one.rows, one.cols, one.pattern, one.dram_gbps) == (8, 16, "2:8", 12.0))
    architecture = Architecture.make(**{**PRESETS["paper"].model_dump(), "rows": 8, "cols": 16,
                                        "dram_gbps": 12.0})
    target = Target.of(architecture)
    for figures, (name, of_workload) in zip(point.workloads, _steps(P28).items(), strict=True):
        sparse, dense = (schedule(target, step).cycles for step in of_workload[P28])
        assert (figures.workload, figures.cycles, figures.dense_cycles) == (name, sparse, dense)
        assert figures.seconds == sparse / 200e6
        assert figures.watts == pytest.approx(figures.joules / figures.seconds)
    first, second = point.workloads
    assert point.seconds == pytest.approx((first.seconds * second.seconds) ** 0.5)
    assert point.speedup == pytest.approx((first.speedup * second.speedup) ** 0.5)
    assert point.joules == pytest.approx((first.joules * second.joules) ** 0.5)
    assert point.watts == pytest.approx(point.joules / point.seconds)


def test_more_array_is_faster_and_larger(explored: Exploration) -> None:
    chosen = {(one.rows, one.cols): one for one in explored.points
              if (one.pattern, one.dram_gbps) == ("2:8", 12.0)}
    small, large = chosen[4, 8], chosen[16, 16]
    assert large.seconds < small.seconds
    assert large.largest_share > small.largest_share
    assert set(large.shares) == {"LUT", "FF", "DSP", "BRAM36"}


def test_what_does_not_fit_is_last_and_never_on_the_front() -> None:
    found = explore(_steps(P28), Grid((8, 128), (8, 128), (P28,), (76.8,)), workers=1)
    fits = [one.fits for one in found.points]
    assert fits == sorted(fits, reverse=True)
    assert fits == [one.largest_share <= 1 for one in found.points]
    assert {(one.rows, one.cols): one.fits for one in found.points}.items() >= {
        (8, 8): True, (128, 128): False}.items()
    assert not any(one.pareto for one in found.points if not one.fits)


def test_infeasible_points_are_reported() -> None:
    """Activations that the card cannot hold."""
    base = Architecture.make(**{**PRESETS["paper"].model_dump(), "dram_gib": 1e-3})
    found = explore(_steps(P28, rows=4096), replace(GRID, patterns=(P28,), base=base), workers=1)
    assert found.points == ()
    assert found.front == ()
    assert len(found.infeasible) == 12
    for one in found.infeasible:
        assert one.pattern == "2:8"
        assert one.reason.startswith("narrow: mapping='device memory': needs ")
        assert " | wide: mapping='device memory': needs " in one.reason
    assert [(one.rows, one.cols, one.dram_gbps) for one in found.infeasible] == list(
        product((4, 8, 16), (8, 16), (3.0, 12.0)))


def test_exploration_survives_json(explored: Exploration) -> None:
    again = Exploration.model_validate_json(explored.model_dump_json())
    assert again == explored
    assert isinstance(again.points[0], Point)


# Who computes it.


def test_processes_give_the_same(explored: Exploration) -> None:
    done: list[tuple[int, int]] = []
    found = explore(_steps(P24, P28), GRID, workers=2,
                    progress=lambda *of_total: done.append(of_total))
    assert found == explored
    assert done == [(count, 24) for count in range(1, 25)]


def test_dask_gives_the_same(explored: Exploration) -> None:
    done: list[tuple[int, int]] = []
    found = explore(_steps(P24, P28), GRID, workers=1, cluster="dask",
                    progress=lambda *of_total: done.append(of_total))
    assert found == explored
    assert done == [(count, 24) for count in range(1, 25)]


@contextmanager
def _scheduler(workers: int) -> Iterator[str]:
    """Address of a scheduler in this process."""
    cluster = LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=workers, threads_per_worker=1, processes=False, protocol="tcp://",
        host="127.0.0.1", dashboard_address=":0")
    with cluster:
        yield cluster.scheduler_address


def test_cluster_that_runs_already_gives_the_same(explored: Exploration) -> None:
    with _scheduler(2) as address:
        assert explore(_steps(P24, P28), GRID, cluster=address) == explored


def test_cluster_without_workers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.explore.fan_out._ANSWER_SECONDS", 0.3)
    with _scheduler(0) as address, pytest.raises(ParameterError, match="scheduler has no workers"):
        fan_out(_add, 1, [1], cluster=address)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tcp://", "tcp://nowhere.invalid:1",
                                     "tcp://127.0.0.1:port"])
def test_cluster_that_does_not_answer_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr("compiler.explore.fan_out._ANSWER_SECONDS", 0.3)
    with pytest.raises(ParameterError, match=rf"^cluster='{address}': no scheduler answers \("):
        fan_out(_add, 1, [1], cluster=address)


def _add(shared: int, job: int) -> int:
    return shared + job


@pytest.mark.parametrize(("options", "message"), [
    ({"workers": 0}, "^workers=0: must be at least 1; nearest legal value: 1$"),
    ({"cluster": "ray"}, "^cluster='ray': must be dask or tcp://HOST:PORT; nearest .*: dask$"),
    ({"cluster": "tcp://127.0.0.1:9", "workers": 2}, "^workers=2: cannot be chosen: tcp://"),
])
def test_bad_choice_of_workers_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        fan_out(_add, 1, [1, 2], **options)


def test_missing_dask_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    message = r"^cluster='dask': needs the package distributed; pip install distributed$"
    with pytest.raises(ParameterError, match=message):
        fan_out(_add, 1, [1], cluster="dask")


def test_script_without_a_guard_is_told(tmp_path: Path) -> None:
    """A worker imports the script again; without a guard that starts workers in turn."""
    script = tmp_path / "script.py"
    script.write_text("from compiler.explore.fan_out import fan_out\nfrom operator import add\n"
                      "print(fan_out(add, 1, [1, 2], workers=2))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600,
                          env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert "ParameterError: workers=2: a worker process ended too early" in done.stderr
