"""What is installed, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata

from rich.table import Table

from sim.toolchain import (
    APT_LINE,
    ToolError,
    cache_dir,
    find_verilator,
    find_yosys,
    missing_trace_headers,
)

__all__ = ["Check", "check_all", "report", "table"]

_NEEDED = ("amaranth", "cocotb", "numpy", "pydantic", "rich", "scikit-learn", "torch", "typer")
_OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Check:
    """One thing looked for: what was found, and how to get it where it was not."""

    item: str
    found: str | None
    needed: bool
    """Whether the spine of the product fails without it."""
    purpose: str
    fix: str

    @property
    def ok(self) -> bool:
        """Found, or not needed."""
        return self.found is not None or not self.needed

    @property
    def status(self) -> str:
        """``ok``, ``missing``, or ``optional`` when missing and not needed."""
        if self.found is not None:
            return "ok"
        return "missing" if self.needed else "optional"


def _package(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _program(name: str) -> str | None:
    path = shutil.which(name)
    if path is None:
        return None
    done = subprocess.run([path, "--version"], capture_output=True, text=True)
    # perl opens with an empty line
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return lines[0].strip() if lines else path


def _tool(item: str, purpose: str, find: Callable[[], str]) -> Check:
    """A check whose finder says itself, in a :class:`ToolError`, what to do."""
    try:
        return Check(item, find(), True, purpose, "")
    except ToolError as failure:
        return Check(item, None, True, purpose, str(failure).splitlines()[0])


def _verilator() -> str:
    verilator = find_verilator()
    return f"{verilator.version} ({verilator.source})"


def _headers() -> Check:
    try:
        missing = missing_trace_headers()
    except ToolError:
        missing = ["g++"]
    fix = "sudo apt-get install " + " ".join(missing) if missing else ""
    return Check("zlib, lz4 headers", None if missing else "present", False,
                 "waveforms (--trace)", fix)


def _sandbox() -> Check:
    from models.math.sandbox import INSTALL, isolation_available

    return Check("sandbox", isolation_available(), False, "code of language models", INSTALL)


def _size(folder: os.PathLike[str]) -> str:
    total = sum(
        os.lstat(os.path.join(base, name)).st_size
        for base, _, names in os.walk(folder) for name in names
    )
    return f"{folder} ({total / 1e6:.0f} MB)"


def check_all(progress: Callable[[str], None] | None = None) -> list[Check]:
    """Look for everything; ``progress`` is told before anything that takes long."""
    version = platform.python_version() if sys.version_info >= _OLDEST_PYTHON else None
    install = "pip install -e ."
    checks = [Check("Python >= 3.11", version, True, "everything", "install a newer Python")]
    checks += [Check(name, _package(name), True, "everything", install) for name in _NEEDED]
    checks += [
        Check(name, _program(name), True, "builds the RTL's model", APT_LINE)
        for name in ("g++", "make", "perl")
    ]
    checks += [
        _tool("Verilator >= 5.036", "simulates the RTL", _verilator),
        _tool("Yosys >= 0.40", "writes Verilog", lambda: find_yosys(progress)),
        _tool("cache folder", "keeps prepared tools and models", lambda: _size(cache_dir())),
        _headers(),
        _sandbox(),
    ]
    checks.append(Check("pytest", _package("pytest"), False, "tests", "pip install -e '.[test]'"))
    return checks


def report(checks: list[Check]) -> dict[str, object]:
    """What ``nmsat doctor --json`` writes."""
    return {
        "ok": all(check.ok for check in checks),
        "checks": [{**asdict(check), "status": check.status} for check in checks],
    }


def table(checks: list[Check]) -> Table:
    """One line a check, with the fix where there is one to make."""
    result = Table(title="nmsat doctor")
    for heading in ("", "status", "found, or how to get it", "needed for"):
        result.add_column(heading, overflow="fold")
    colours = {"ok": "green", "missing": "bold red", "optional": "yellow"}
    for check in checks:
        status = f"[{colours[check.status]}]{check.status}[/]"
        result.add_row(check.item, status, check.found or check.fix, check.purpose)
    return result
