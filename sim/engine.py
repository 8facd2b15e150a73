"""The native RTL engine: work lists run on the Verilated STCE, built once per architecture."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

import rtl
from rtl.architecture import MAX_M, NOT_IN_RTL, Architecture
from rtl.edges import FEED_LATENCY
from rtl.links import PACKED_WEIGHT
from rtl.tile import TILE_WORD_BITS
from sim.build import build_model, content_key, run_model
from sim.toolchain import cache_dir, find_yosys
from sim.worklist import WorkList

__all__ = ["EngineRun", "RtlEngine", "cached_verilog"]


def cached_verilog(architecture: Architecture, top: Literal["stce", "sat"] = "stce") -> str:
    """Verilog of the array's engine or the whole chip, which is also the name of its top module.

    Kept between processes, keyed by the sources of ``rtl``.
    """
    folder = Path(rtl.__file__).parent
    sources = [path.read_bytes() for path in sorted(folder.rglob("*.py"))]
    key = content_key(top, architecture.model_dump(exclude=set(NOT_IN_RTL)),
                      metadata.version("amaranth"), *sources)
    path = cache_dir() / "verilog" / f"{key}.v"
    if not path.is_file():
        from rtl.netlist import to_verilog

        find_yosys()
        if top == "sat":
            from rtl.sat import Sat

            text = to_verilog(Sat(architecture), top)
        else:
            from rtl.stce import Stce

            text = to_verilog(Stce(architecture), top)
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as scratch:
            scratch.write(text)
        Path(scratch.name).rename(path)
    return path.read_text()


@dataclass(frozen=True)
class EngineRun:
    """What came back from a run.

    words: float32 (words, C), the result words read, in order.
    cycles: busy cycles that the RTL itself counted.
    simulated_cycles: all clock cycles, filling and reading included.
    nonfinite: one flag for each tile with results, in order.
    """

    words: npt.NDArray[np.float32]
    cycles: int
    simulated_cycles: int
    nonfinite: npt.NDArray[np.bool_]


class RtlEngine:
    """Runs work lists on the Verilated RTL of ``architecture``.

    Parameters
    ----------
    trace: write an FST waveform of every run to this file.
    progress: told when the model has to be built first.

    Raises :class:`sim.toolchain.ToolError` when the model cannot be built.
    """

    def __init__(
        self, architecture: Architecture, *, trace: Path | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.architecture = architecture
        self._trace = trace
        defines = {
            "ROWS": architecture.rows, "COLS": architecture.cols, "MAX_M": MAX_M,
            "TILE_WORDS": TILE_WORD_BITS // 32, "WEIGHT_BITS": PACKED_WEIGHT.size,
            "LATENCY": FEED_LATENCY,
        }
        self._executable = build_model(
            cached_verilog(architecture), "stce", Path(__file__).with_name("harness.cpp"),
            defines=[f"{name}={value}" for name, value in defines.items()],
            trace=trace is not None, progress=progress,
        )

    def run(
        self, work: WorkList, *, stall_seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> EngineRun:
        """Run ``work`` from reset.

        Parameters
        ----------
        stall_seed: if not 0, offer tiles at random times drawn from this seed.
        progress: called now and then with the number of tiles done.

        Raises :class:`sim.toolchain.ToolError` if the RTL hangs.
        """
        def line(text: str) -> None:
            if progress is not None and text.startswith("tiles "):
                progress(int(text.split()[1]))

        with tempfile.TemporaryDirectory(prefix="nmsat-") as name:
            job, output = Path(name) / "job", Path(name) / "output"
            with job.open("wb") as handle:
                handle.writelines(work.records())
            arguments: list[str | Path] = [job, output]
            if stall_seed:
                arguments += ["--stall", str(stall_seed)]
            if self._trace is not None:
                arguments += ["--trace", self._trace]
            run_model(self._executable, arguments, line)
            raw = output.read_bytes()
        cycles, simulated, tiles = struct.unpack("<3Q", raw[-24:])
        words, flags = raw[: len(raw) - 24 - tiles], raw[len(raw) - 24 - tiles : -24]
        return EngineRun(
            np.frombuffer(words, np.float32).reshape(-1, self.architecture.cols),
            cycles, simulated, np.frombuffer(flags, np.bool_),
        )
