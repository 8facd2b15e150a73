"""Sessions of the sandbox: what a cell shows, what outlives what, and refusals."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sandbox_targets import needs_bwrap

from algorithms import ParameterError
from models.math.sandbox import (
    INSTALL,
    Limits,
    Outcome,
    Sandbox,
    SandboxUnavailable,
    isolation_available,
)
from models.math.sandbox import isolation as isolation_module

ROOT = Path(__file__).parents[3]
ROOMY = Limits(cell_seconds=60, replay_seconds=60)
"""A busy machine is slow; no test waits this long when all is well."""


@pytest.fixture(params=["auto", "none"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if request.param == "auto" and shutil.which("bwrap") is None:
        pytest.skip(f"bubblewrap is not installed; {INSTALL}")
    with Sandbox(ROOMY, request.param) as session:
        yield session


def show(session: Sandbox, code: str) -> tuple[str, str]:
    outcome = session.run(code)
    assert outcome.seconds >= 0
    return outcome.status, outcome.output


def test_cells_show_what_a_notebook_shows(sandbox: Sandbox) -> None:
    cells = {
        "": "",
        "# nothing": "",
        "x = 20": "",
        "x + 1": "21",
        "_ * 2": "42",
        "None": "",
        "print('a')": "a",
        "print('a', end='')\n'b'": "a\n'b'",
        "print('a')\nx": "a\n20",
        "for i in range(3):\n    print(i)": "0\n1\n2",
        "import os, sys\n_ = os.write(1, b'raw\\n')\n_ = os.write(2, b'err\\n')": "raw\nerr",
        "print('é ∑ \\ud800')": "é ∑ \\ud800",
        "'é ∑'": "'é ∑'",
        "print('late', file=sys.stderr)": "late",
        "def f(n: int) -> int:\n    return n and f(n - 1)\nf.__annotations__['n'] is int": "True",
        "hash('a') == hash('a'), __name__": "(True, '__main__')",
        "'sympy' in sys.modules": "False",
        "print('\\x1b[1m\\x00')": "\x1b[1m\x00",
    }
    for code, output in cells.items():
        assert show(sandbox, code) == ("ok", output), code


def test_a_cell_may_be_long(sandbox: Sandbox) -> None:
    assert show(sandbox, f"x = '{'é' * 10**6}'\nlen(x)") == ("ok", "1000000")


def test_hashes_of_strings_are_the_same_in_every_session(sandbox: Sandbox) -> None:
    with Sandbox(ROOMY, "none") as other:
        assert show(sandbox, "hash('a'), list({'x', 'y', 'z'})") == show(
            other, "hash('a'), list({'x', 'y', 'z'})")


@pytest.mark.parametrize(("code", "last"), [
    ("1 / 0", "ZeroDivisionError: division by zero"),
    ("def f():\n    raise KeyError('k')\nf()", "KeyError: 'k'"),
    ("x +", "SyntaxError: invalid syntax"),
    ("undefined", "NameError: name 'undefined' is not defined"),
    ("input()", "EOFError: EOF when reading a line"),
    ("raise SystemExit", "SystemExit"),
    ("import sys\nsys.exit(3)", "SystemExit: 3"),
    ("exit()", "SystemExit: None"),
    ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ("class Odd(Exception):\n    def __str__(self): raise self\nraise Odd",
     "Odd: <exception str() failed>"),
    ("'\ud800'", "UnicodeEncodeError: 'utf-8' codec can't encode character '\\ud800' in position "
     "16: surrogates not allowed"),
])
def test_a_failure_is_shown_from_the_cell_on(code: str, last: str) -> None:
    with Sandbox(ROOMY, "none") as session:
        session.run("before = 1")
        status, output = show(session, f"print('first')\n{code}" if "+" not in code else code)
        assert status == "error"
        assert output.splitlines()[-1] == last
        assert "worker" not in output and "<string>" not in output and "\x1b" not in output
        if "def f" in code:
            assert output.startswith("first\nTraceback (most recent call last):\n"
                                     '  File "<cell 2>", line 4, in <module>\n    f()\n')
        assert show(session, "before") == ("ok", "1"), "an exception costs no state"


def test_a_chain_of_failures_is_shown_whole(sandbox: Sandbox) -> None:
    _, output = show(sandbox, "try:\n    1 / 0\nexcept ZeroDivisionError:\n    [][0]")
    assert output.index("ZeroDivisionError") < output.index("During handling") < output.index(
        "IndexError")


def test_what_a_cell_does_to_its_streams_stays_in_the_session(sandbox: Sandbox) -> None:
    assert show(sandbox, "import sys\nsys.stdout = None\n1") == ("ok", "1")
    assert show(sandbox, "sys.stdout = sys.__stdout__\nprint('back')") == ("ok", "back")
    assert show(sandbox, "sys.__stdout__.close()\n2") == ("ok", "2")
    assert show(sandbox, "import builtins\nbuiltins.print = builtins.open = None\n3") == ("ok", "3")


def test_state_outlives_a_lost_process(sandbox: Sandbox) -> None:
    sandbox.run("from pathlib import Path\nvalues = [1]\nPath('note').write_text('kept')")
    sandbox.run("values.append(2)\n1 / 0")
    lost = sandbox.run("values.append(3)\nimport os\nprint('x', flush=True)\nos._exit(3)")
    assert (lost.status, lost.output) == ("killed", "x\nKilled: the process ended with exit code 3")
    after = sandbox.run("values, Path('note').read_text()")
    assert after.output == "([1, 2], 'kept')"
    assert (after.replayed, after.lost) == (2, 0)
    assert sandbox.run("len(values)").replayed == 0


def test_a_crash_of_the_interpreter_is_named(sandbox: Sandbox) -> None:
    outcome = sandbox.run("import ctypes\nctypes.string_at(0)")
    assert (outcome.status, outcome.output) == ("killed", "Killed: the process ended by SIGSEGV")


def test_state_that_takes_too_long_is_given_up() -> None:
    limits = Limits(cell_seconds=60, replay_seconds=0.7)
    with Sandbox(limits, "none") as session:
        session.run("x = 1")
        session.run("import os, time\ntime.sleep(1)\ny = 2")
        session.run("z = 3")
        session.run("os._exit(0)")
        outcome = session.run("sorted({'x', 'y', 'z'} & set(globals()))")
        assert (outcome.output, outcome.replayed, outcome.lost) == ("['x']", 1, 2)
        assert session.run("x").lost == 0


def test_state_that_ends_differently_each_time_is_given_up(tmp_path: Path) -> None:
    """The third cell hangs when it runs again, the second one a time later."""
    def hangs(name: str, times: int) -> str:
        file = str(tmp_path / name)
        return (f"with open({file!r}, 'a+') as f: f.write('x')\n"
                f"import os, time\ntime.sleep(60 if os.path.getsize({file!r}) > {times} else 0)")

    with Sandbox(Limits(cell_seconds=60, replay_seconds=0.7), "none") as session:
        for code in ("x = 1", hangs("b", 2), hangs("c", 1), "os._exit(0)"):
            session.run(code)
        outcome = session.run("'x' in globals()")
        assert (outcome.output, outcome.replayed, outcome.lost) == ("False", 0, 3)


def test_what_printed_before_the_time_was_up_is_shown() -> None:
    with Sandbox(Limits(cell_seconds=1), "none") as session:
        outcome = session.run("print('so far', flush=True)\nwhile True: pass")
    assert outcome.status == "timeout"
    assert outcome.output == "so far\nTimeoutError: no result within 1 s"
    assert 1 <= outcome.seconds < 10


@pytest.mark.parametrize("code", [
    "print('é' * 1000)", "'é' * 1000", "raise ValueError('é' * 1000)",
    "import os\nfor _ in range(2000): _ = os.write(2, b'ab')\n'value'",
])
def test_output_is_cut(code: str) -> None:
    with Sandbox(dataclasses.replace(ROOMY, output_bytes=999), "none") as session:
        session.run("kept = 1")
        outcome = session.run(code)
        assert outcome.status == "output"
        assert outcome.output.endswith("\n[output cut after 999 bytes]")
        assert 900 < len(outcome.output.encode()) < 999 + 40
        assert show(session, "kept") == ("ok", "1")


def test_limits_of_a_process_hold_without_isolation() -> None:
    limits = dataclasses.replace(ROOMY, memory_bytes=256 << 20, processes=4, file_bytes=1000)
    with Sandbox(limits, "none") as session:
        assert session.run("x = bytearray(300 << 20)").status == "memory"
        assert session.run("x = 1").replayed == 0, "a refused allocation costs no state"
        written = session.run("with open('f', 'wb', 0) as f: f.write(bytes(1000)), f.write(b'1')")
        assert written.output.endswith("OSError: [Errno 27] File too large")
        many = session.run("import os, time\nfor _ in range(9):\n    if os.fork() == 0:\n"
                           "        time.sleep(60)\n        os._exit(0)\ntime.sleep(60)")
        assert (many.status, many.output) == ("killed", "Killed: more than 4 processes")


@needs_bwrap
def test_a_session_in_a_virtual_environment_with_a_space(tmp_path: Path) -> None:
    """The interpreter may lie where the sandbox's user may not go; its packages are seen."""
    closed = tmp_path / "of mine"
    closed.mkdir(mode=0o700)
    environment = closed / "virtual env"
    venv.create(environment, symlinks=True)
    packages = next(environment.glob("lib/python3*/site-packages"))
    (packages / "spaced.py").write_text("where = __file__\n")
    (closed / "secret").write_text("")
    code = f"import spaced, os\nspaced.where, os.listdir({str(closed)!r})"
    script = ("from models.math.sandbox import Limits, Sandbox\n"
              f"with Sandbox(Limits(cell_seconds=60)) as s: print(s.run({code!r}).output)")
    seen = [path for path in sys.path if path.endswith("-packages")]
    done = subprocess.run(
        [environment / "bin" / "python", "-c", script], text=True, capture_output=True,
        env={"PYTHONPATH": os.pathsep.join([str(ROOT), *seen]), "PATH": os.environ["PATH"]})
    assert done.stdout.strip() == repr((str(packages / "spaced.py"), ["virtual env"])), done.stderr


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match=re.escape(
            "bubblewrap (bwrap) is not installed, so code cannot be isolated; "
            "sudo apt-get install bubblewrap")):
        Sandbox()
    assert isolation_available() is None
    with Sandbox(ROOMY, "none") as session:
        assert show(session, "1 + 1") == ("ok", "2")


@needs_bwrap
def test_what_bubblewrap_says_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    stand_in = tmp_path / "bwrap"
    stand_in.write_text("#!/bin/sh\necho bwrap: no permissions >&2\nexit 1\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(SandboxUnavailable, match="does not start: bwrap: no permissions"):
        Sandbox()


@needs_bwrap
def test_without_a_filter_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> bytes:
        raise RuntimeError("Unable to find libseccomp")

    monkeypatch.setattr(isolation_module, "filter_program", missing)
    with pytest.raises(SandboxUnavailable, match=r"Unable to find libseccomp; sudo apt-get"):
        Sandbox()


@needs_bwrap
def test_isolation_is_found() -> None:
    assert re.fullmatch(r"bubblewrap \d+\.\d+\.\d+", isolation_available() or "")


def test_a_session_that_is_forgotten_ends() -> None:
    session = Sandbox(ROOMY, "none")
    pid = int(session.run("import os\nos.getpid()").output)
    assert Path(f"/proc/{pid}").exists()
    folder = Path(session.run("os.getcwd()").output.strip("'"))
    assert folder.is_dir()
    del session
    assert not Path(f"/proc/{pid}").exists() and not folder.exists()


def test_an_interrupt_of_the_parent_ends_the_cell() -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Sandbox(ROOMY, "none") as session:
            pid = session.run("import os\nkept = os.getpid()\nkept").output
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                session.run("while True: pass")
            assert not Path(f"/proc/{pid}").exists()
            outcome = session.run("kept == os.getpid()")
            assert (outcome.output, outcome.replayed) == ("True", 1)
    finally:
        signal.signal(signal.SIGALRM, before)


@needs_bwrap
def test_sessions_side_by_side_in_threads() -> None:
    def work(number: int) -> tuple[Sandbox, list[str]]:
        session = Sandbox(ROOMY)
        outputs = [session.run(f"x = {number}").output]
        return session, outputs + [session.run(f"x *= 10\nx + {n}").output for n in range(3)]

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(work, range(1, 7)))
    for number, (session, outputs) in enumerate(results, 1):
        assert outputs == ["", f"{number}0", f"{number}01", f"{number}002"]
        outcome = session.run("x")
        assert (outcome.output, outcome.replayed) == (f"{number}000", 0), "threads are not missed"
        session.close()


def test_a_closed_session_takes_no_cell() -> None:
    session = Sandbox(ROOMY, "none")
    session.close()
    session.close()
    with pytest.raises(ValueError, match="the sandbox is closed"):
        session.run("1")


@pytest.mark.parametrize(("values", "message"), [
    ({"cell_seconds": 0}, "cell_seconds=0: must be at least 0.01; nearest legal value: 0.01"),
    ({"cell_seconds": float("nan")}, "cell_seconds=nan: must be at least 0.01; nearest legal value"
     ": 0.01"),
    ({"memory_bytes": 1000}, "memory_bytes=1000: must be at least 67108864; nearest legal value: "
     "67108864"),
    ({"memory_bytes": 1 << 70}, "memory_bytes=1180591620717411303424: must be at most "
     "4611686018427387904; nearest legal value: 4611686018427387904"),
    ({"cell_seconds": float("inf")}, "cell_seconds=inf: must be at most 315360000; nearest legal "
     "value: 315360000"),
    ({"cpu_seconds": 1 << 62}, "cpu_seconds=4611686018427387904: must be at most 315360000; "
     "nearest legal value: 315360000"),
    ({"processes": 1.5}, "processes=1.5: must be a whole number"),
    ({"output_bytes": True}, "output_bytes=True: must be a whole number"),
    ({"replay_seconds": "1"}, "replay_seconds='1': must be a number"),
])
def test_limits_that_make_no_sense(values: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        Limits(**values)  # type: ignore[arg-type]


def test_least_limits_suffice_for_python() -> None:
    least = {entry.name: entry.metadata["least"] for entry in dataclasses.fields(Limits)}
    least |= {"cell_seconds": 60.0, "output_bytes": 20}
    with Sandbox(Limits(**least), "none") as session:
        assert show(session, "print(1)\n2") == ("ok", "1\n2")
        assert session.run("1 / 0").status == "output"


def test_greatest_limits_are_those_of_the_system() -> None:
    most = {entry.name: entry.metadata["most"] for entry in dataclasses.fields(Limits)}
    with Sandbox(Limits(**most), "none") as session:
        # Long enough for the kernel to look at the processor time, which it does at its ticks.
        burn = "while time.process_time() < 0.2: pass"
        assert show(session, f"import time\n{burn}\n1 + 1") == ("ok", "2")


def test_unknown_isolation() -> None:
    with pytest.raises(ParameterError, match="isolation='docker': must be one of auto, bwrap, non"):
        Sandbox(isolation="docker")  # type: ignore[arg-type]


def test_outcomes_survive_json() -> None:
    outcome = Outcome(status="ok", output="1", seconds=0.5)
    assert Outcome.model_validate_json(outcome.model_dump_json()) == outcome


def test_the_page_has_all_limits() -> None:
    page = (ROOT / "docs" / "sandbox.md").read_text()
    rows = [f"| `{entry.name}` | {entry.default:,} | {entry.metadata['what']} |"
            for entry in dataclasses.fields(Limits)]
    assert re.findall(r"^\| `[a-z_]+` \|.*$", page, re.MULTILINE) == rows


@needs_bwrap
def test_a_session_starts_quickly() -> None:
    def start() -> float:
        started = time.perf_counter()
        with Sandbox(ROOMY):
            return time.perf_counter() - started

    before = len(os.listdir("/proc/self/fd"))
    # 0.1 s on an idle machine; the best of some, as others may be at work
    assert min(start() for _ in range(5)) < 0.5
    assert len(os.listdir("/proc/self/fd")) == before, "no descriptor is left"
