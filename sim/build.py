"""Verilog and a C++ harness to an executable, built once and cached by content.

The key covers everything that goes in: Verilog, harness, options, tool versions. A build happens
in a scratch folder under a lock and moves into place when complete, so parallel processes neither
build twice nor see a partial result.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sim.toolchain import (
    ToolError,
    cache_dir,
    find_cxx,
    find_verilator,
    locked,
    missing_trace_headers,
    run_tool,
)

__all__ = ["Sharing", "build_model", "content_key", "run_model"]

# --no-timing: no delays in the design. Fast x: two-state simulation needs no random values.
_VERILATOR = ("-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-timing", "-Wno-fatal",
              "-Wno-lint", "-Wno-style")
# The cache is this machine's own, so its own instruction set may be used.
_CXXFLAGS = ("-march=native",)
# Every cycle runs what Verilator calls fast; start-up and the run-time library are not worth it.
_MAKEFLAGS = ("OPT_FAST=-O3", "OPT_SLOW=-O0", "OPT_GLOBAL=-O0")


def content_key(*parts: object) -> str:
    """A short name that changes with any of ``parts``."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:24]


@cache
def _compiler() -> str:
    """Compiler, its version and its target machine."""
    query: list[str | Path] = [find_cxx(), "-march=native", "-Q", "--help=target"]
    native = run_tool(query, "the C++ compiler")
    march = next((line.split()[-1] for line in native.splitlines() if "-march=" in line), "")
    return run_tool([find_cxx(), "--version"], "the C++ compiler").splitlines()[0] + march


class Sharing(NamedTuple):
    """How Verilator gives all instances of a module the same C++ functions.

    configuration: text of a file to be read before the Verilog.
    options: what the command line needs beside it.
    """

    configuration: str
    options: tuple[str, ...]

    @classmethod
    def of(cls, verilog: str) -> Sharing:
        """For the modules of ``verilog`` that have several instances."""
        lines = _shared(verilog)
        # The data-flow optimiser's helper variables have another name in every instance.
        return cls("\n".join(["`verilator_config", *lines, ""]), ("-fno-dfg",) if lines else ())


def _shared(verilog: str) -> list[str]:
    """Verilator merges functions that are equal but for the instance.

    So a module with several must stay one, and read its inputs as its own variables (``public``)
    instead of as the parent's expressions.
    """
    lines = []
    for name, body in re.findall(r"^module (\w+)\b(.*?)^endmodule", verilog, re.M | re.S):
        if len(re.findall(rf"^ +{name} \S+ *\(", verilog, re.M)) < 2:
            continue
        lines.append(f'no_inline -module "{name}"')
        for port in re.findall(r"\binput (?:\[\S+\] )?(\w+)", body):
            if port not in ("clk", "rst"):
                lines.append(f'public_flat_rd -module "{name}" -var "{port}"')
    return lines


def _keep_runtime(objects: Path, runtime: Path) -> None:
    """Verilator's run-time library, the same in every model, is compiled once."""
    found = list(objects.glob("verilated*.o"))
    if not found or runtime.exists():
        return
    with tempfile.TemporaryDirectory(dir=runtime.parent) as name:
        folder = Path(name) / runtime.name
        folder.mkdir()
        for compiled in found:
            shutil.copyfile(compiled, folder / compiled.name)
        with suppress(OSError):  # another process was first
            folder.rename(runtime)


def build_model(
    verilog: str,
    top: str,
    harness: Path,
    *,
    headers: Sequence[Path] = (),
    defines: Sequence[str] = (),
    trace: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """An executable of ``verilog`` with top module ``top``, driven by the C++ file ``harness``.

    Parameters
    ----------
    headers: files that the harness includes, from any folder.
    defines: preprocessor definitions for the harness, ``NAME=VALUE``.
    trace: include FST waveforms; needs the headers of zlib and lz4.
    progress: told in a few words what is being built, only if a build is needed.

    Raises :class:`ToolError` for a missing tool or a failed build, with the tool's last lines.
    """
    verilator = find_verilator()
    sharing = Sharing.of(verilog)
    options = [*_VERILATOR, "--top-module", top, *(["--trace-fst"] if trace else []),
               *sharing.options]
    flags = " ".join([*_CXXFLAGS, *(f"-D{define}" for define in defines)])
    files = [harness, *headers]
    tools = verilator.version, verilator.source, _compiler(), _CXXFLAGS, _MAKEFLAGS
    key = content_key(verilog, *(file.read_bytes() for file in files), options, flags, sharing,
                      *tools)
    models = cache_dir() / "models"
    models.mkdir(exist_ok=True)
    runtime = cache_dir() / f"runtime-{content_key(trace, *tools)}"
    executable = models / key / f"V{top}"
    if executable.is_file():
        return executable
    if trace and (missing := missing_trace_headers()):
        fix = "sudo apt-get install " + " ".join(missing)
        raise ToolError(f"waveforms need headers that are not installed; {fix}")
    with locked(models / f"{key}.lock"):
        if executable.is_file():
            return executable
        if progress is not None:
            progress(f"building the Verilator model of {top}")
        with tempfile.TemporaryDirectory(dir=models) as name:
            scratch = Path(name)
            # The harness comes along: the makefile cannot name a file whose path has a space.
            (scratch / f"{top}.v").write_text(verilog)
            for file in files:
                (scratch / file.name).write_bytes(file.read_bytes())
            (scratch / "sharing.vlt").write_text(sharing.configuration)

            def run(*command: str | Path) -> None:
                run_tool(command, f"building the Verilator model of {top}", cwd=scratch,
                         environment=verilator.environment())

            objects = scratch / "obj"
            run(verilator.executable, "--cc", "--exe", "--Mdir", objects.name, *options,
                "-CFLAGS", flags, "sharing.vlt", f"{top}.v", harness.name)
            for compiled in runtime.glob("*.o"):  # newer than the makefile, so up to date
                shutil.copyfile(compiled, objects / compiled.name)
            run("make", "-j", str(len(os.sched_getaffinity(0))), "-C", objects.name,
                "-f", f"V{top}.mk", *_MAKEFLAGS)
            _keep_runtime(objects, runtime)
            (models / key).mkdir(exist_ok=True)
            (objects / f"V{top}").rename(executable)
    return executable


def run_model(
    executable: Path, arguments: Sequence[str | Path],
    line: Callable[[str], None] | None = None,
) -> None:
    """Run a built model; ``line`` gets each line that it prints.

    Raises :class:`ToolError` with the model's own message if it fails.
    """
    with subprocess.Popen(
        [str(executable), *map(str, arguments)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:
        for text in process.stdout or ():
            if line is not None:
                line(text.rstrip())
        message = process.stderr.read().strip() if process.stderr else ""
    if process.returncode:
        raise ToolError(f"the model of the RTL stopped: {message or process.returncode}")
