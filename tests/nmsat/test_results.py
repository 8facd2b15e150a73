"""``nmsat cosim`` and ``nmsat bench`` from training to JSON, on the RTL of the 4 x 4 chip."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import chip_step
from benchmarks.chip_step import ChipStep
from benchmarks.resnet9_digits import ResNet9Digits
from benchmarks.workload import Trained
from compiler.chip.machine import GoldenMachine
from compiler.chip.training_step import TrainingStep
from nmsat import cli
from rtl.pattern import NmPattern
from sim.chip import MemoryModel
from sim.toolchain import ToolError

COSIM_KEYS = [
    "workload", "gemms", "elements", "mismatches", "max_rel_error_vs_fp64",
    "torch_rel_error_vs_fp64", "rtl_cycles", "model_cycles", "seconds",
]
TRAIN_KEYS = ["method", "pattern", "seed", "epochs", "metric", "train_mac_ratio"]
QUICK = ["--arch", "tiny", "--size", "tiny"]

_train = ResNet9Digits.fit
_run = chip_step.cosim_step
_steps: dict[tuple[int, ...], ChipStep] = {}


@functools.cache
def train_once(method: str, pattern: NmPattern, seed: int, size: str) -> Trained:
    """One epoch, shared by the tests: they are about what follows it."""
    return _train(ResNet9Digits(), method, pattern, 1, seed, size)


def step_once(name: str, step: TrainingStep, *others: Any) -> ChipStep:
    """One run of the RTL a program, shared by the tests likewise."""
    if step.program not in _steps:
        _steps[step.program] = _run(name, step, *others)
    return _steps[step.program]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and training and steps that take little time."""

    def fit(self: ResNet9Digits, method: str, pattern: NmPattern, **options: object) -> Trained:
        return train_once(method, pattern, options["seed"], options["size"])

    monkeypatch.setattr(ResNet9Digits, "fit", fit)
    monkeypatch.setattr(chip_step, "cosim_step", step_once)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_cosim_compares_every_element_and_writes_its_json(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["cosim", "resnet9", *QUICK, "--json", "step.json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    result = json.loads(Path("step.json").read_text())
    assert list(result) == COSIM_KEYS
    assert result["mismatches"] == 0
    assert result["rtl_cycles"] == pytest.approx(result["model_cycles"], rel=0.05)
    assert result["max_rel_error_vs_fp64"] < 1e-5
    for text in (f"{result['elements']:,}", "host points", "narrow_1 backward", "loss"):
        assert text in captured.out
    assert [path.name for path in folder.iterdir()] == ["step.json"]


def test_bench_joins_training_and_cosim_and_judges_the_claim(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "resnet9", "--quick", *QUICK, "-o", "results", "--json", "rows.json"]
    assert cli.run(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = json.loads(Path("rows.json").read_text())
    assert [(row["method"], row["pattern"]) for row in rows] == [("dense", "dense"),
                                                               ("bdwp", "2:8")]
    for row in rows:
        assert {*COSIM_KEYS, *TRAIN_KEYS, "claim"} <= set(row)
        assert row["mismatches"] == 0
        assert row["size"] == row["arch"] == "tiny"
    assert list(rows[1]["claim"]) == ["text", "baseline", "ours", "holds"]
    assert rows[1]["speedup"] > 1
    assert "speed-up over dense" in captured.out
    assert {path.name for path in folder.iterdir()} == {"results", "rows.json"}
    assert {path.name for path in (folder / "results").iterdir()} == {"bench.txt", "bench.json"}
    assert Path("results/bench.json").read_text() == Path("rows.json").read_text()
    assert "speed-up over dense" in Path("results/bench.txt").read_text()


class Faulty(GoldenMachine):
    """In place of the RTL: the right words, but for three."""

    chip: Any

    def __init__(self, step: TrainingStep, model: MemoryModel) -> None:
        super().__init__(step)
        self.chip.counters = functools.partial(defaultdict, lambda: 1)

    def __enter__(self) -> Faulty:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, *arguments: Any) -> float:
        loss = super().step(*arguments)
        self.image.memory[:12:4] ^= 1
        return loss


def test_disagreement_is_reported_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chip_step, "cosim_step", _run)
    monkeypatch.setattr(chip_step, "RtlMachine", Faulty)
    assert cli.run(["cosim", "resnet9", *QUICK, "--json", "step.json"]) == 1
    assert capsys.readouterr().err == "nmsat: RTL and golden model differ in 3 words\n"
    assert json.loads(Path("step.json").read_text())["mismatches"] == 3


def test_failed_build_shows_the_last_lines_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ToolError("building failed with status 1; its last lines:\nboom")

    monkeypatch.setattr(chip_step, "Chip", fail)
    arguments = ["bench", "resnet9", "--quick", *QUICK, "-o", "results", "--json", "rows.json"]
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "nmsat: error: building failed with status 1; its last lines:\nboom\n"
    )
    assert not list(folder.iterdir())


def test_unwritable_disk_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "sat.v")

    monkeypatch.setattr("nmsat.output.Outputs.text", full)
    assert cli.run(["rtl", "--arch", "tiny", "-o", "sat.v"]) == 2
    assert capsys.readouterr().err == "nmsat: error: sat.v: No space left on device\n"
    assert not list(folder.iterdir())
