"""``nmsat compile``: what it prints and writes, and what it says to bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from compiler.schedule.plan_words import GEMM, decode_plan
from nmsat import cli

KEYS = ["workload", "arch", "pattern", "batch", "layers", "totals", "unsupported"]
LAYER_KEYS = ["name", "stage", "P", "K", "Q", "mode", "dataflow", "cycles", "dense_cycles",
              "utilisation", "dram_bytes", "bound"]
TOTAL_KEYS = ["cycles", "dense_cycles", "speedup", "mac_ratio", "effective_gflops", "dram_bytes"]

MODELS = """
import torch
from torch import nn


def net(batch=4):
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 8)), (
        torch.zeros(batch, 32))


def alone():
    return nn.Linear(3, 3)


def fails():
    raise RuntimeError("no weights here")


def fixed():
    return nn.Linear(32, 8), torch.zeros(5, 32)


def recurrent():
    return nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 8)), torch.zeros(5, 4, 8)


limit = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module of the user's."""
    monkeypatch.chdir(tmp_path)
    name = f"models_{abs(hash(tmp_path))}"
    Path(f"{name}.py").write_text(MODELS)
    Path("taken").write_text("a file")
    Path("card.toml").write_text("rows = 8\ncols = 8\ndram_gib = 1e-5\n")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of ``nmsat compile``."""
    status = cli.run(("compile", *arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def module() -> str:
    return next(Path().glob("models_*.py")).stem


def test_a_workload_is_compiled_to_files_that_agree(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "resnet9", "--size", "tiny", "--arch", "tiny", "-o", "made",
                           "--json", "result.json")
    assert (status, err) == (0, "")
    assert "speed-up" in out and "aten.batch_norm" in out
    assert sorted(path.name for path in Path("made").iterdir()) == [
        "compile.json", "program.bin", "report.html", "trace.json"]
    result = json.loads(Path("result.json").read_text())
    assert result == json.loads(Path("made/compile.json").read_text())
    assert set(KEYS) <= set(result)
    assert all(set(LAYER_KEYS) <= set(layer) for layer in result["layers"])
    assert set(TOTAL_KEYS) <= set(result["totals"])
    assert (result["workload"], result["arch"], result["batch"]) == ("resnet9", "tiny", 4)
    words = decode_plan(Path("made/program.bin").read_bytes())
    assert sum(word.kind is GEMM for word in words) == len(result["layers"])
    assert "resnet9" in Path("made/report.html").read_text()
    assert json.loads(Path("made/trace.json").read_text())["traceEvents"]


def test_a_factory_of_the_users_is_compiled_with_its_batch(
    capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, f"{module()}:net", "--batch", "16", "--arch", "small",
                           "--method", "srste", "--pattern", "2:4", "--json", "r.json")
    assert (status, err) == (0, "")
    result = json.loads(Path("r.json").read_text())
    assert (result["batch"], result["method"], result["pattern"]) == (16, "srste", "2:4")
    modes = {(row["name"], row["stage"]): row["mode"] for row in result["layers"]}
    assert (modes["2", "FF"], modes["2", "BP"]) == ("2:4", "dense")
    assert f"{module()}:net" in out


def test_all_three_passes_are_sparse_with_a_sampled_gradient(
    capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, f"{module()}:net", "--arch", "small", "--method", "bdwp+wu",
                         "--pattern", "2:4", "--gradient", "2:4", "--json", "r.json")
    assert status == 0 and "bdwp+wu" in out
    result = json.loads(Path("r.json").read_text())
    assert (result["method"], result["gradient"]) == ("bdwp+wu", "2:4")
    modes = {(row["name"], row["stage"]): row["mode"] for row in result["layers"]}
    assert [modes["2", stage] for stage in ("FF", "BP", "WU")] == ["2:4"] * 3


def test_the_forward_pass_alone_and_ports_as_built(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, f"{module()}:net", "--arch", "paper", "--forward", "--paths",
                         "built", "--json", "r.json")
    assert status == 0
    result = json.loads(Path("r.json").read_text())
    assert {row["stage"] for row in result["layers"]} == {"FF"}
    assert result["paths"] == "built" and "built" in out


def test_operators_of_unknown_cost_run_on_the_host_if_asked(
    capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(capsys, f"{module()}:recurrent", "--arch", "small")
    assert status == 2
    assert "lstm" in err and "--host-fallback" in err and err.count("\n") == 1
    status, out, _ = run(capsys, f"{module()}:recurrent", "--arch", "small", "--host-fallback",
                         "--json", "r.json")
    assert status == 0 and "not known" in out
    assert any("lstm" in name for name in json.loads(Path("r.json").read_text())["unsupported"])


@pytest.mark.parametrize(("arguments", "message"), [
    (["resnet"], r"WORKLOAD='resnet': must be one of resnet9, vgg19.*or package\.module:factory; "
                 r"nearest legal value: resnet"),
    (["ape"], r"WORKLOAD='ape': is not available in this version"),
    (["resnet9", "--batch", "0"], r"--batch=0: must be at least 1"),
    (["resnet9", "--size", "huge"], r"--size='huge': must be one of tiny, small, full"),
    (["resnet9", "--pattern", "3:4"], r"--pattern='3:4': the array runs dense, or N:M"),
    (["resnet9", "--gradient", "3:4"], r"--gradient='3:4': the array runs dense, or N:M"),
    (["resnet9", "--method", "bdw"], r"--method='bdw': must be one of dense.*bdwp"),
    (["resnet9", "--arch", "papre"], r"--arch='papre': must be one of tiny.*paper"),
    (["resnet9", "--size", "tiny", "--paths", "build"], r"--paths='build': must be one of wide"),
    (["resnet9", "--size", "tiny", "-o", "taken"], r"-o='taken': cannot be made a folder"),
    (["resnet9", "--size", "tiny", "--arch", "card.toml"],
     r"mapping='device memory': needs .* GiB of device memory .*would fix it: .*dram_gib=1 in the"),
    (["nowhere:net"], r"WORKLOAD='nowhere:net': cannot be imported \(No module named 'nowhere'\)"),
    (["MODULE:nets"], r"WORKLOAD='\w+:nets': \w+ has no function 'nets'; .*: net"),
    (["MODULE:limit"], r"WORKLOAD='\w+:limit': \w+ has no function 'limit'"),
    (["MODULE:alone"], r"its factory must return \(model, example, \.\.\.\), .*returned Linear"),
    (["MODULE:fails"], r"its factory failed \(RuntimeError: no weights here\)"),
    (["MODULE:fixed", "--batch", "6"], r"--batch=6: \w+:fixed takes no batch; its example has; "
                                       r"nearest legal value: 5"),
])
def test_bad_input_is_one_line_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = sorted(path.name for path in Path().iterdir())
    given = [word.replace("MODULE", module()) for word in arguments]
    status, out, err = run(capsys, *given, *([] if "-o" in given else ["-o", "made"]))
    assert (status, out) == (2, "")
    assert re.search(message, err), err
    assert err.startswith("nmsat: error: ") and err.count("\n") == 1
    after = sorted(path.name for path in Path().iterdir() if path.name != "__pycache__")
    assert after == before
