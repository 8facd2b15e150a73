"""``nmsat explore``: what it writes and what it says to bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nmsat import cli

SMALL = ["explore", "resnet9", "--size", "tiny", "--rows", "4,8", "--cols", "4", "--pattern", "2:8",
         "--bandwidth", "4,share", "--jobs", "1"]
POINT_KEYS = [
    "rows", "cols", "adder_stages", "w2e_words", "n2s_words", "out_words", "dram_gbps", "pattern",
    "workloads", "seconds", "speedup", "joules", "watts", "shares", "fits", "pareto",
]
FIGURES = ["workload", "cycles", "dense_cycles", "speedup", "seconds", "joules", "watts"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command line."""
    status = cli.run(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_explore_writes_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, *SMALL, "-o", "found", "--json", "again.json")
    assert (status, err) == (0, "")
    assert "Fastest that fits a VU9P: " in out
    assert {path.name for path in Path("found").iterdir()} == {"explore.json", "pareto.svg"}
    assert Path("found/explore.json").read_text() == Path("again.json").read_text()
    result = json.loads(Path("again.json").read_text())
    assert list(result) == ["workloads", "paths", "clock_mhz", "points", "infeasible", "illegal"]
    assert len(result["points"]) == 4
    for point in result["points"]:
        assert list(point) == POINT_KEYS
        assert [list(one) for one in point["workloads"]] == [FIGURES]
    assert {point["dram_gbps"] for point in result["points"]} == {4.0, 76.8 / 64, 76.8 / 32}
    assert Path("found/pareto.svg").read_text().startswith("<?xml")


def test_illegal_combinations_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *SMALL, "--rows", "8,12", "--stages", "4,6")
    assert status == 0
    assert re.search(r"illegal.*12 x 4.*rows=12: must be at most block=8 or a multiple", out)
    assert re.search(r"illegal.*8 x 4.*adder_stages=6: ", out)


def test_nothing_that_fits_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *SMALL, "--rows", "128", "--cols", "256", "-o", "found")
    assert status == 1
    assert "Nothing fits a VU9P" in out
    assert Path("found/pareto.svg").is_file()


BAD = [
    (["explore"], r"Missing argument 'WORKLOAD"),
    ([*SMALL, "vti"], r"WORKLOAD='vti': must be one of .*; nearest legal value: vit"),
    ([*SMALL, "--rows", "8,,16"], r"--rows='8,,16': must be values with single commas .*: 8,16"),
    ([*SMALL, "--cols", ""], r"--cols='': must be values with single commas between them$"),
    ([*SMALL, "--cols", "wide"], r"--cols='wide': must be integers with commas between them"),
    ([*SMALL, "--stages", "0"], r"--stages=0: must be at least 1; nearest legal value: 1"),
    ([*SMALL, "--pattern", "2:8,3:4"], r"--pattern='3:4': the array runs dense, or N:M"),
    ([*SMALL, "--pattern", "2:8;2:4"], r"--pattern='2:8;2:4': must be 'dense' or 'N:M'"),
    *(([*SMALL, "--bandwidth", text], rf"--bandwidth='{text}': must be numbers above 0, or share")
      for text in ("fast", "0", "nan", "inf", "-3")),
    ([*SMALL, "--rows", "12"], r"grid=2: none of .* architecture; of the first, rows=12: must be"),
    ([*SMALL, "--batch", "0"], r"--batch=0: must be at least 1"),
    ([*SMALL, "--size", "huge"], r"--size='huge': must be one of tiny, small, full"),
    ([*SMALL, "--jobs", "none"], r"--jobs='none': must be an integer; nearest legal value: 1"),
    ([*SMALL, "--cluster", "spark"], r"--cluster='spark': must be dask or tcp://HOST:PORT"),
    ([*SMALL, "--cluster", "tcp://localhost:8786"], r"--jobs=1: cannot be chosen: tcp://localhost"),
    ([*SMALL, "-o", "found", "--json", "found/explore.json"],
     r"--json='found/explore\.json': must be in a folder that exists"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(bad[0]) for bad in BAD])
def test_bad_input_gets_one_line_and_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert re.match(f"nmsat: error: {message}", err), err
    assert list(folder.iterdir()) == []
