"""Exploring real networks: steps out of names, tables, verdict and picture."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.table import Table

from benchmarks import exploration as benchmark
from benchmarks.console import stdout
from benchmarks.exploration_tables import tables, verdict
from benchmarks.pareto_plot import pareto_plot
from compiler.explore.grid import Grid
from compiler.explore.search import Exploration, explore
from rtl.architecture import PRESETS, Architecture
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern

P24, P28 = NmPattern(2, 4), NmPattern(2, 8)
GRID = Grid((4, 8, 12), (4, 8), (P24, P28), (2.0, 8.0))
NAMES = ("resnet9", "vit")


@pytest.fixture(scope="module")
def explored() -> Exploration:
    """Two tiny networks on arrays up to 8 x 8."""
    return benchmark.run(NAMES, GRID, size="tiny", workers=1)


def _text(shown: Table, capsys: pytest.CaptureFixture[str]) -> str:
    stdout().print(shown)
    return capsys.readouterr().out


def test_steps_have_each_pattern_and_one_dense_step() -> None:
    steps = benchmark.steps_of(["resnet9", "resnet9"], [P24, P28], "tiny", batch=8)
    assert list(steps) == ["resnet9"]
    (sparse, dense), (sparser, same) = steps["resnet9"].values()
    assert dense is same
    for step, pattern in ((sparse, P24), (sparser, P28)):
        assert {gemm.pattern for _, gemm in step.gemms()} == {pattern, DENSE}
    assert {gemm.pattern for _, gemm in dense.gemms()} == {DENSE}


def test_unknown_workload_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"^WORKLOAD='resnet': must be one of "):
        benchmark.steps_of(["vit", "resnet"], [P28], "tiny")


def test_sparser_is_faster(explored: Exploration) -> None:
    by_pattern = {one.pattern: one for one in explored.points
                  if (one.rows, one.cols, one.dram_gbps) == (8, 8, 8.0)}
    assert by_pattern["2:8"].speedup > by_pattern["2:4"].speedup > 1
    assert [one.workload for one in by_pattern["2:8"].workloads] == list(NAMES)


def test_tables_show_ranking_workloads_changes_and_refusals(
    explored: Exploration, capsys: pytest.CaptureFixture[str]
) -> None:
    ranking, workloads, changes, refused = (_text(one, capsys) for one in tables(explored))
    assert "resnet9, vit, geometric means, wide paths; resources and energy are est" in ranking
    assert len(re.findall(r"^│ +\d+ │", ranking, re.M)) == len(explored.points) == 16
    assert ranking.count(" front ") == len(explored.front)
    assert len(re.findall(r"^│ +\d+ │", workloads, re.M)) == len(explored.front)
    best = explored.front[0]
    assert f"{best.array}, {best.pattern}, {best.dram_gbps:g} GB/s" in changes
    assert "pattern 2:4" in changes
    assert re.search(r"illegal +│ 12 x 4 +│ +│ 2 +│ rows=12: must be at most block=8", refused)


def test_columns_appear_when_they_differ(capsys: pytest.CaptureFixture[str]) -> None:
    steps = benchmark.steps_of(["resnet9"], [P28], "tiny")
    grid = Grid((4,), (4,), (P28,), adder_stages=(3, 4))
    ranking = _text(tables(explore(steps, grid, workers=1))[0], capsys)
    assert "┃ L ┃" in ranking
    assert "n2s" not in ranking


def test_verdict_names_the_best_and_what_decides(explored: Exploration) -> None:
    best = explored.front[0]
    text = verdict(explored)
    assert text.startswith(f"Fastest that fits a VU9P: {best.array}, {best.pattern}, ")
    assert re.search(r"array 4 x 4 takes \d+\.\d\dx as long, ", text)
    assert "wider than those of the RTL" not in text
    assert "Accuracy is not judged here" in text
    large = best.model_copy(update={"cols": 32})
    text = verdict(explored.model_copy(update={"points": (large,)}))
    assert "Its paths to memory are wider than those of the RTL" in text


def test_verdict_when_nothing_fits_or_runs(explored: Exploration) -> None:
    large = tuple(one.model_copy(update={"fits": False, "pareto": False})
                  for one in explored.points)
    assert verdict(explored.model_copy(update={"points": large})).startswith("Nothing fits a VU9P")
    assert verdict(explored.model_copy(update={"points": ()})).startswith("No combination can run")


def test_infeasible_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    small = Architecture.make(**{**PRESETS["paper"].model_dump(), "dram_gib": 1e-5})
    found = benchmark.run(["resnet9"], replace(GRID, rows=(4,), cols=(4,), base=small),
                          size="tiny", workers=1)
    (refused,) = tables(found)
    shown = _text(refused, capsys)
    assert re.search(r"infeasible +│ 4 x 4 +│ 2:8 +│ 2 +│ resnet9: mapping='device memory': needs",
                     shown)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_plot_is_drawn_the_same_each_time(
    explored: Exploration, tmp_path: Path, suffix: str
) -> None:
    first, second = (tmp_path / f"{name}.{suffix}" for name in ("first", "second"))
    pareto_plot(explored, first)
    pareto_plot(explored, second)
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size > 5000


def test_plot_names_the_front(explored: Exploration, tmp_path: Path) -> None:
    path = tmp_path / "pareto.svg"
    pareto_plot(explored, path)
    drawn = path.read_text()
    for point in explored.front:
        assert f"{point.array}, {point.pattern}, {point.dram_gbps:g} GB/s" in drawn
    assert "geometric mean of resnet9, vit, 200 MHz" in drawn


def test_one_point_and_points_that_do_not_fit_can_be_drawn(
    explored: Exploration, tmp_path: Path
) -> None:
    one = explored.points[0].model_copy(update={"fits": False, "pareto": False})
    pareto_plot(explored.model_copy(update={"points": (one,), "workloads": ("vit",)}),
                tmp_path / "one.svg")
    assert "Pareto front" not in (tmp_path / "one.svg").read_text()


def test_program_prints_the_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    explored: Exploration,
) -> None:
    monkeypatch.setattr(benchmark, "run", lambda names, workers: explored)
    assert benchmark.main(["--jobs", "1", "--plot", str(tmp_path / "pareto.png")]) == 0
    assert "Fastest that fits a VU9P" in capsys.readouterr().out
    assert (tmp_path / "pareto.png").is_file()


def test_default_sweep_is_what_the_command_line_has() -> None:
    from nmsat import cli
    from nmsat.grid_options import parse_grid

    (command,) = (one for one in cli.app.registered_commands
                  if one.callback and one.callback.__name__ == "explore")
    defaults = command.callback.__defaults__ or ()  # type: ignore[union-attr]
    assert parse_grid(*defaults[:5]) == replace(benchmark.DEFAULT_GRID, adder_stages=(4,))
