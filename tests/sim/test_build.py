"""Cached Verilator builds: right, reused, safe in parallel, and clear when they fail."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sim import build
from sim.build import build_model, content_key, run_model
from sim.toolchain import ToolError, missing_trace_headers, run_tool

LEAF = """
module leaf(input clk, output reg [7:0] count);
  initial count = 0;
  always @(posedge clk) count <= count + 1;
endmodule
"""

TOP = """
module top(input clk, output [7:0] sum);
  wire [7:0] a, b;
  leaf left(.clk(clk), .count(a));
  leaf right(.clk(clk), .count(b));
  assign sum = a + b;
endmodule
"""

HARNESS = """
#include <cstdio>
#include "Vtop.h"
#include "verilated.h"
#if VM_TRACE_FST
#include "verilated_fst_c.h"
#endif
int main(int argc, char** argv) {
    VerilatedContext context;
    Vtop top{&context};
#if VM_TRACE_FST
    context.traceEverOn(true);
    VerilatedFstC fst;
    top.trace(&fst, 99);
    fst.open(argv[1]);
#endif
    for (int n = 0; n < 2 * CYCLES; ++n) {
        top.clk = n % 2;
        top.eval();
#if VM_TRACE_FST
        fst.dump(n);
#endif
    }
#if VM_TRACE_FST
    fst.close();
#endif
    std::printf("sum %d\\ndone\\n", int(top.sum));
}
"""


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A harness file whose models go to a fresh cache, beside the prepared tools in use."""
    monkeypatch.setattr(build, "cache_dir", lambda: tmp_path)
    path = tmp_path / "harness.cpp"
    path.write_text(HARNESS)
    return path


def lines(executable: Path, *arguments: str) -> list[str]:
    """What the model prints."""
    printed: list[str] = []
    run_model(executable, arguments, printed.append)
    return printed


def test_a_model_is_built_once_and_runs(harness: Path) -> None:
    told: list[str] = []
    first = build_model(LEAF + TOP, "top", harness, defines=["CYCLES=5"], progress=told.append)
    done = subprocess.run([first], capture_output=True, text=True, cwd="/", env={})
    assert done.stdout == "sum 10\ndone\n", "it needs nothing of where it was built"
    again = build_model(LEAF + TOP, "top", harness, defines=["CYCLES=5"], progress=told.append)
    assert again == first
    assert len(told) == 1, "the second call builds nothing"
    left = {path.name for path in first.parent.parent.iterdir()}
    assert left == {first.parent.name, f"{first.parent.name}.lock"}, "no scratch stays"


def test_the_run_time_library_is_compiled_once(
    harness: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs: list[str] = []

    def note(*arguments: Any, **options: Any) -> str:
        logs.append(run_tool(*arguments, **options))
        return logs[-1]

    build._compiler()
    monkeypatch.setattr(build, "run_tool", note)
    for count in (4, 6):
        model = build_model(LEAF + TOP, "top", harness, defines=[f"CYCLES={count}"])
        assert lines(model) == [f"sum {2 * count}", "done"]
    assert ["verilated.cpp" in log for log in logs[1::2]] == [True, False]


def test_a_harness_may_stand_under_a_path_with_a_space(harness: Path, tmp_path: Path) -> None:
    (tmp_path / "my tests").mkdir()
    moved = harness.rename(tmp_path / "my tests" / "harness.cpp")
    assert lines(build_model(LEAF + TOP, "top", moved, defines=["CYCLES=4"])) == ["sum 8", "done"]


def test_instances_share_their_code(harness: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, and each with its own inputs."""
    leaf = LEAF.replace("input clk,", "input clk, input [7:0] step,").replace("+ 1", "+ step")
    sizes = []

    def look(command: list[str | Path], what: str, *, cwd: Path, **options: Any) -> str:
        printed = run_tool(command, what, cwd=cwd, **options)
        sizes.append(len(" ".join(path.read_text() for path in (cwd / "obj").glob("*leaf__0.cpp"))))
        return printed

    build._compiler()
    monkeypatch.setattr(build, "run_tool", look)
    for count in (2, 20):
        parts = range(count)
        top = "\n".join([
            "module top(input clk, output [7:0] sum);",
            *(f"  wire [7:0] s{n};\n  leaf l{n} (.clk(clk), .step(8'd{n}), .count(s{n}));"
              for n in parts),
            f"  assign sum = {' + '.join(f's{n}' for n in parts)};",
            "endmodule",
        ])
        model = build_model(leaf + top, "top", harness, defines=["CYCLES=3"])
        assert lines(model) == [f"sum {3 * sum(parts) % 256}", "done"]
    few, many = sizes[1::2]  # after the compiler
    assert 0 < many < 2 * few


def test_a_failing_model_passes_its_message_on(harness: Path) -> None:
    script = harness.with_name("model")
    script.write_text("#!/bin/sh\necho 'harness: too many' >&2\nexit 3\n")
    script.chmod(0o755)
    with pytest.raises(ToolError, match=r"^the model of the RTL stopped: harness: too many$"):
        run_model(script, ["a", "b"])


@pytest.mark.parametrize(
    ("verilog", "source", "said"),
    [(TOP, HARNESS, "Cannot find file containing module: 'leaf'"),
     (LEAF + TOP, "#error deliberately broken", "deliberately broken")],
    ids=["verilog", "harness"],
)
def test_a_failed_build_shows_the_last_lines_and_leaves_nothing(
    harness: Path, verilog: str, source: str, said: str
) -> None:
    harness.write_text(source)
    with pytest.raises(ToolError) as caught:
        build_model(verilog, "top", harness)
    first, *tail = str(caught.value).splitlines()
    assert first.startswith("building the Verilator model of top failed with status ")
    assert said in "\n".join(tail)
    assert len(tail) <= 15
    assert [path.suffix for path in (harness.parent / "models").iterdir()] == [".lock"]


def test_waveforms_name_the_missing_headers(
    harness: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "missing_trace_headers", lambda: ["zlib1g-dev", "liblz4-dev"])
    message = r"^waveforms need headers .*; sudo apt-get install zlib1g-dev liblz4-dev$"
    with pytest.raises(ToolError, match=message):
        build_model(LEAF + TOP, "top", harness, defines=["CYCLES=5"], trace=True)


def test_a_waveform_is_written(harness: Path, tmp_path: Path) -> None:
    if missing := missing_trace_headers():
        pytest.skip(f"waveforms need {' '.join(missing)}")
    model = build_model(LEAF + TOP, "top", harness, defines=["CYCLES=5"], trace=True)
    assert lines(model, str(tmp_path / "wave.fst")) == ["sum 10", "done"]
    assert (tmp_path / "wave.fst").stat().st_size > 100


def test_two_builders_of_one_model_build_it_once(
    harness: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    def pretend(command: list[object], what: str, *, cwd: Path, environment: object) -> str:
        built.append(what)
        (cwd / "obj").mkdir(exist_ok=True)
        (cwd / "obj" / "Vtop").write_text("model")
        return ""

    build._compiler()
    monkeypatch.setattr(build, "run_tool", pretend)
    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(build_model, LEAF, "top", harness) for _ in range(4)]
    assert len({call.result() for call in calls}) == 1
    assert built == ["building the Verilator model of top"] * 2, "Verilator, then the compiler"


def test_the_key_sees_every_part() -> None:
    keys = {content_key("a", "b"), content_key("ab"), content_key("a", "c"), content_key(b"a")}
    assert len(keys) == 4
    assert content_key("a", ("x", 1)) == content_key("a", ("x", 1))
