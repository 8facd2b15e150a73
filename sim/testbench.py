"""cocotb benches on Verilated RTL: built once, cached by content, run in a process of their own.

cocotb is for tests and comparisons: Python runs in the cycle loop. Work runs on
:mod:`sim.engine`.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from cocotb_tools import config
from cocotb_tools.runner import Runner, get_runner

from sim.build import Sharing, content_key
from sim.toolchain import ToolError, cache_dir, find_verilator, locked

__all__ = ["CocotbModel"]

_BUILD = ("-O3", "--x-assign", "fast", "--x-initial", "fast", "-Wno-fatal", "-Wno-lint",
          "-Wno-style")
# A bench runs for seconds, in Python for the most part; the chip compiles for a minute as it is.
_MAKEFLAGS = "OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O0"
_TAIL = 40


@contextmanager
def _surroundings(variables: Mapping[str, str], folder: Path | None = None) -> Iterator[None]:
    """cocotb's runner takes PATH and the import path from the process that calls it."""
    environment, path = dict(os.environ), list(sys.path)
    os.environ.clear()
    os.environ.update(variables)
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path


class CocotbModel:
    """``verilog`` with top module ``top``, built for cocotb.

    Raises :class:`ToolError` for a missing tool or a failed build, with the tool's last lines.
    """

    def __init__(self, verilog: str, top: str) -> None:
        self._top = top
        verilator = find_verilator()
        sharing = Sharing.of(verilog)
        key = content_key(verilog, top, _BUILD, _MAKEFLAGS, sharing, verilator.version,
                          verilator.source, metadata.version("cocotb"), str(config.base_cocotb_dir))
        models = cache_dir() / "cocotb"
        models.mkdir(exist_ok=True)
        self._folder = models / key
        with locked(models / f"{key}.lock"):
            if (self._folder / top).is_file():
                return
            with tempfile.TemporaryDirectory(dir=models) as name:
                scratch = Path(name)
                sources = scratch / "sharing.vlt", scratch / f"{top}.v"
                for source, text in zip(sources, (sharing.configuration, verilog), strict=True):
                    source.write_text(text)
                log = scratch / "build.log"
                with _surroundings(verilator.environment()):
                    try:
                        _runner().build(
                            sources=sources, hdl_toplevel=top, build_dir=scratch / "build",
                            build_args=[*_BUILD, *sharing.options, "-MAKEFLAGS", _MAKEFLAGS],
                            log_file=log, timescale=("1ns", "1ns"),
                        )
                    except (RuntimeError, SystemExit) as failure:
                        raise ToolError(_tail(f"building {top} for cocotb", log)) from failure
                self._folder.mkdir(exist_ok=True)
                shutil.move(scratch / "build" / top, self._folder / top)

    def run(
        self, bench: str, scratch: Path, *, folder: Path | None = None, seed: int = 0
    ) -> list[str]:
        """Run the cocotb tests of the module ``bench``; returns the names of those that passed.

        Parameters
        ----------
        scratch: the folder that the bench runs in; gets its log and its results.
        folder: where to look for the module first.
        seed: what ``random`` and ``cocotb.RANDOM_SEED`` start from.

        Raises :class:`ToolError` with the end of the log and the seed if a test fails.
        """
        log, results = scratch / f"{bench}.log", scratch / f"{bench}.xml"
        with _surroundings(find_verilator().environment(), folder):
            try:
                _runner().test(
                    test_module=bench, hdl_toplevel=self._top, hdl_toplevel_lang="verilog",
                    build_dir=self._folder, test_dir=scratch, results_xml=str(results.absolute()),
                    seed=seed, log_file=log,
                )
            except (RuntimeError, SystemExit) as failure:
                raise ToolError(_tail(f"{bench} with seed {seed}", log)) from failure
        cases = list(ElementTree.parse(results).getroot().iter("testcase"))
        passed = [case.get("name", "") for case in cases
                  if case.find("failure") is None and case.find("error") is None]
        if not cases or len(passed) < len(cases):
            raise ToolError(_tail(f"{bench} with seed {seed}", log))
        return passed


def _runner() -> Runner:
    # cocotb's own files are named in a makefile, which knows no path with a space: they are
    # reached through a link in the cache, whose path has none.
    package = config.base_cocotb_dir
    link = cache_dir() / "cocotb" / f"package-{content_key(str(package))}"
    with suppress(FileExistsError):
        link.symlink_to(package)
    config.share_dir, config.libs_dir = link / "share", link / "libs"
    runner = get_runner("verilator")
    runner.log.setLevel("ERROR")
    return runner


def _tail(what: str, log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else ["(no log)"]
    return f"{what} failed; its last lines:\n" + "\n".join(lines[-_TAIL:])
