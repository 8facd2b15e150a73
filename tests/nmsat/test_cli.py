"""The command line: what it writes, what it says to bad input, and what it leaves behind."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compiler.array.gemm import GemmResult
from nmsat import cli
from rtl.pattern import NmPattern
from sim import golden
from sim.toolchain import ToolError

GEMM_KEYS = [
    "engine", "arch", "pattern", "dataflow", "shape", "cycles", "model_cycles", "ideal_cycles",
    "utilisation", "macs", "dense_macs", "nonfinite",
]
TRAIN_KEYS = [
    "workload", "method", "pattern", "seed", "epochs", "metric", "train_mac_ratio", "seconds",
    "gradient",
]
GEMM = ["gemm", "A.npy", "B.npy", "-o", "C.npy"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with good and bad operands."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(7)
    a = draw.standard_normal((5, 12)).astype(np.float16)
    b = draw.standard_normal((12, 3)).astype(np.float16)
    np.save("A.npy", a)
    np.save("B.npy", b)
    np.save("single.npy", a.astype(np.float32))
    np.save("line.npy", a[0])
    np.save("empty.npy", a[:0])
    np.save("swapped.npy", a.astype(">f2"))
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez("many.npz", a=a)
    Path("text.npy").write_text("not an array")
    Path("broken.npy").write_bytes(Path("A.npy").read_bytes()[:-8])
    Path("wrong.toml").write_text("rows = 8\ncolums = 8\n")
    Path("size.toml").write_text("rows = 0\n")
    Path("garbled.toml").write_text("rows = = 8")
    Path("taken").mkdir()
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command line."""
    status = cli.run(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


BAD = [
    ([*GEMM[:1], "nowhere.npy", *GEMM[2:]], r"A='nowhere\.npy': no such file"),
    ([*GEMM[:2], "taken", *GEMM[3:]], r"B='taken': no such file"),
    (["gemm", "single.npy", *GEMM[2:]],
     r"A='single\.npy': must hold float16; it holds float32; nearest legal value: array\.astype"),
    (["gemm", "line.npy", *GEMM[2:]],
     r"A='line\.npy': must have two dimensions; it has shape \(12,\)"),
    (["gemm", "empty.npy", *GEMM[2:]],
     r"A='empty\.npy': must have at least one row and one column; it has shape \(0, 12\)"),
    (["gemm", "A.npy", "A.npy", *GEMM[3:]],
     r"B='A\.npy': must have K=12 rows, as A has columns; it has shape \(5, 12\); nearest legal "
     r"value: shape \(12, 12\)"),
    *(([*GEMM[:1], name, *GEMM[2:]], rf"A='{re.escape(name)}': is not a \.npy file that can be re")
      for name in ("objects.npy", "many.npz", "text.npy", "broken.npy")),
    ([*GEMM, "--pattern", "3:5"],
     r"--pattern='3:5': the array runs dense, or N:M with M in \{2, 4, 8, 16\} and 1 <= N <= M/2; "
     r"nearest legal value: 2:4"),
    ([*GEMM, "--pattern", "6:8"], r"--pattern='6:8': .*; nearest legal value: 4:8"),
    ([*GEMM, "--pattern", "9:8"], r"--pattern='9:8': N:M needs 1 <= N <= M; nearest .*: 8:8"),
    ([*GEMM, "--pattern", "half"], r"--pattern='half': must be 'dense' or 'N:M', two integers; n"),
    ([*GEMM, "--dataflow", "is"],
     r"--dataflow='is': must be one of auto, ws, os; nearest legal value: (ws|os)"),
    ([*GEMM, "--engine", "gold"],
     r"--engine='gold': must be one of golden, rtl; nearest legal value: golden"),
    ([*GEMM, "--trace", "t.fst"], r"--trace='t\.fst': needs --engine rtl"),
    ([*GEMM, "--arch", "papre"],
     r"--arch='papre': must be one of .* or the path of a \.toml file; nearest legal value: paper"),
    ([*GEMM, "--arch", "none.toml"], r"--arch='none\.toml': no such file"),
    ([*GEMM, "--arch", "garbled.toml"], r"--arch='garbled\.toml': not valid TOML"),
    ([*GEMM, "--arch", "wrong.toml"],
     r"colums=8: is not an architecture parameter; nearest legal value: cols"),
    ([*GEMM, "--arch", "size.toml"], r"rows=0: .*; nearest legal value: 1"),
    ([*GEMM[:-1], "taken"], r"-o='taken': is a folder; must be a file name"),
    ([*GEMM[:-1], "no/C.npy"], r"-o='no/C\.npy': must be in a folder that exists; '.*no' does not"),
    ([*GEMM, "--json", "C.npy"], r"--json='C\.npy': is another output of this command too"),
    (["train", "resnet"], r"WORKLOAD='resnet': must be one of .*; nearest legal value: resnet9"),
    (["train", "ape"], r"WORKLOAD='ape': is not available in this version, which has: resnet9"),
    (["train", "resnet9", "--method", "bdw"],
     r"--method='bdw': must be one of .*; nearest legal value: bdwp"),
    (["train", "resnet9", "--pattern", "0:4"], r"--pattern='0:4': N:M needs 1 <= N <= M; .* 1:4"),
    (["train", "resnet9", "--epochs", "0"],
     r"--epochs=0: must be at least 1; nearest legal value: 1"),
    (["train", "resnet9", "--epochs", "ten"],
     r"--epochs='ten': must be an integer; nearest legal value: 1"),
    (["train", "resnet9", "--seed", "-1"],
     r"--seed=-1: must be at least 0; nearest legal value: 0"),
    (["train", "resnet9", "--size", "fulll"],
     r"--size='fulll': must be one of tiny, small, full; nearest legal value: full"),
    (["train", "resnet9", "--size", "full"], r"--size='full': is compiled and costed, not trained"),
    (["cosim", "resnet"], r"WORKLOAD='resnet': must be one of .*; nearest legal value: resnet9"),
    (["cosim", "resnet9", "--pattern", "1:3"], r"--pattern='1:3': the array runs dense, or N:M"),
    (["train", "resnet9", "--gradient", "3:2"],
     r"--gradient='3:2': N:M needs 1 <= N <= M; nearest legal value: 2:2"),
    (["cosim", "resnet9", "--gradient", "3:4"], r"--gradient='3:4': the array runs dense, or N:M"),
    (["cosim", "resnet9", "--method", "sdgp"],
     r"--method='sdgp': .*dense.*bdwp.*bdwp\+wu"),
    (["cosim", "resnet9", "--arch", "big"], r"--arch='big': must be one of "),
    (["bench"], r"WORKLOAD='': name at least one, or give --all; nearest legal value: resnet9"),
    (["bench", "--all", "resnet9"], r"--all=True: takes no WORKLOAD beside it"),
    (["bench", "resnet10"], r"WORKLOAD='resnet10': must be one of .*; nearest .*: resnet9"),
    (["bench", "resnet9", "-o", "A.npy"], r"-o='A\.npy': cannot be made a folder"),
    (["bench", "resnet10", "-o", "deep/er"], r"WORKLOAD='resnet10': must be one of "),
    (["rtl", "--arch", "huge", "-o", "sat.v"], r"--arch='huge': must be one of "),
    (["rtl"], r"Missing option '-o'"),
    (["rtl", "-o", "sat.v", "extra"], r".*extra"),
    (["gem"], r"No such command 'gem'\. Did you mean 'gemm'\?"),
    (["gemm", "--patern", "2:8"], r"No such option: --patern .*--pattern"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(bad[0]) for bad in BAD])
def test_bad_input_gets_one_line_and_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert re.match(f"nmsat: error: {message}", err), err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("pattern", ["dense", "2:8"])
def test_gemm_writes_the_product_and_its_json(
    capsys: pytest.CaptureFixture[str], pattern: str
) -> None:
    status, out, err = run(capsys, *GEMM, "--pattern", pattern, "--json", "C.json")
    assert (status, err) == (0, "")
    assert "utilisation" in out
    # K = 12 is no multiple of 8, and the report says what became of it.
    assert re.findall(r"K, padded with zeros to .* (\d+) ", out) == (
        [] if pattern == "dense" else ["16"])
    a, b, c = (np.load(name) for name in ("A.npy", "B.npy", "C.npy"))
    assert c.dtype == np.float32
    assert c.tobytes() == golden.gemm(a, b, NmPattern.parse(pattern)).tobytes()
    result = json.loads(Path("C.json").read_text())
    assert list(result) == GEMM_KEYS
    assert result["shape"] == {"P": 5, "K": 12, "Q": 3}
    assert (result["engine"], result["arch"], result["pattern"]) == ("golden", "small", pattern)


def test_gemm_reads_the_other_byte_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *GEMM)[0] == 0
    assert run(capsys, "gemm", "swapped.npy", "B.npy", "-o", "D.npy")[0] == 0
    assert Path("C.npy").read_bytes() == Path("D.npy").read_bytes()


def test_output_keeps_the_name_it_was_given(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, *GEMM[:-1], "product")[0] == 0
    assert np.load("product").shape == (5, 3)
    assert not list(folder.glob(".*"))


def test_failure_late_in_the_work_leaves_the_old_result(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("C.npy").write_text("old")

    def fail(self: GemmResult, **_: object) -> str:
        raise ToolError("building failed; its last lines:\nboom")

    monkeypatch.setattr(GemmResult, "model_dump_json", fail)
    status, _, err = run(capsys, *GEMM, "--json", "C.json")
    assert (status, err) == (2, "nmsat: error: building failed; its last lines:\nboom\n")
    assert Path("C.npy").read_text() == "old"
    assert not Path("C.json").exists()
    assert not list(folder.glob(".*"))


def test_interruption_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compiler.array.gemm.run_gemm", interrupt)
    assert run(capsys, *GEMM) == (130, "", "nmsat: interrupted\n")


def test_train_writes_its_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "train", "resnet9", "--size", "tiny", "--epochs", "1",
                           "--json", "train.json")
    assert (status, err) == (0, "")
    assert "resnet9, bdwp, 2:8" in out
    result = json.loads(Path("train.json").read_text())
    assert list(result) == TRAIN_KEYS
    assert list(result["metric"]) == ["name", "value", "higher_is_better"]


def test_rtl_writes_verilog(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "rtl", "--arch", "tiny", "-o", "sat.v")
    assert (status, err) == (0, "")
    assert out == "sat.v: top module sat, 4 x 4 USPEs\n"
    modules = re.findall(r"^module (\w+)", Path("sat.v").read_text(), flags=re.M)
    assert {"sat", "stce"} <= set(modules)
    assert len(modules) == len(set(modules))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, "nmsat 0.1.0\n", "")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_command(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    for command in ("doctor", "gemm", "train", "cosim", "bench", "rtl"):
        assert f" {command} " in out


def test_help_imports_nothing_heavy() -> None:
    root = Path(cli.__file__).parents[1]
    program = (
        "import sys; from nmsat.cli import run; run(['--help']); "
        "sys.exit(bool({'torch', 'amaranth', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 0
