"""Fixtures of the RTL tests, a plugin of pytest: floating-point units as native executables."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pytest
from amaranth.lib.wiring import Component, Flow

from rtl.netlist import to_verilog
from sim.build import build_model, run_model
from sim.toolchain import find_yosys

Bits = npt.NDArray[np.uint32]


class Spec(Protocol):
    """What a spec object of :mod:`rtl.fp` offers."""

    @property
    def latency(self) -> int: ...

    @property
    def compute(self) -> Callable[..., npt.NDArray[np.unsignedinteger]]: ...

    def create(self) -> Component: ...


@dataclass(frozen=True)
class NativeUnit:
    """A pipelined unit, Verilated with ``unit_harness.cpp``."""

    executable: Path
    folder: Path

    def stream(self, operands: Sequence[npt.NDArray[np.unsignedinteger]], flush: int) -> Bits:
        """The output port in each cycle, while one record a cycle and ``flush`` more go by."""
        np.stack(operands, axis=1).astype(np.uint32).tofile(self.folder / "input")
        run_model(self.executable, ["stream", self.folder / "input", self.folder / "output",
                                    str(flush)])
        return np.fromfile(self.folder / "output", np.uint32)

    def products(self, ranges: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Pairs compared and mismatches, over ranges of the first operand, all at once."""
        def one(bounds: tuple[int, int]) -> list[int]:
            lines: list[str] = []
            run_model(self.executable, ["products", *map(str, bounds)], lines.append)
            return [int(word) for word in lines[0].split()]

        with ThreadPoolExecutor(len(ranges)) as pool:
            counts = list(pool.map(one, ranges))
        return sum(pairs for pairs, _ in counts), sum(wrong for _, wrong in counts)


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Spec], NativeUnit]:
    """Builds a unit from its spec object; the same spec gives the same executable.

    A unit has one output, or its spec names the one to look at in ``output``.
    """
    built: dict[Spec, NativeUnit] = {}

    def build(spec: Spec) -> NativeUnit:
        if spec not in built:
            find_yosys()
            unit = spec.create()
            members = unit.signature.members
            inputs = [name for name in members if members[name].flow is Flow.In]
            outputs = [name for name in members if members[name].flow is Flow.Out]
            (output,) = [spec.output] if hasattr(spec, "output") else outputs
            ports = {f"IN{n}": name for n, name in enumerate(inputs)}
            defines = {**ports, "OUT": output, "LATENCY": spec.latency}
            executable = build_model(
                to_verilog(unit, "unit"), "unit", Path(__file__).with_name("unit_harness.cpp"),
                defines=[f"{name}={value}" for name, value in defines.items()],
            )
            built[spec] = NativeUnit(executable, tmp_path_factory.mktemp("unit"))
        return built[spec]

    return build


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers from a new seed, printed if the test fails; NMSAT_TEST_SEED repeats one."""
    seed = int(os.environ.get("NMSAT_TEST_SEED") or secrets.randbits(32))
    print(f"NMSAT_TEST_SEED={seed}")
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def specials() -> Bits:
    """FP32 bits of both signs where units go wrong: ends of ranges, powers of two and neighbours.

    Zero, both ends of the subnormals and their middle, powers of two an ulp less and more from
    the smallest normal to the largest, the largest finite value, Inf, NaNs with payloads.
    """
    ends = [0, 1, 2, 3, 0x3FFFFF, 0x400000, 0x7FFFFE, 0x7FFFFF, 0xC00000, 0xFFFFFF,
            0x3FC00000, 0x3FFFFFFE, 0x7F7FFFFE, 0x7F7FFFFF,
            0x7F800000, 0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FC12345, 0x7FFFFFFF]
    fields = (1, 2, 23, 63, 64, 103, 104, 125, 126, 127, 128, 129, 150, 151, 190, 231, 253, 254)
    powers = [(field << 23) + ulp for field in fields for ulp in (-1, 0, 1)]
    magnitudes = np.unique(np.array(ends + powers, np.uint32))
    return np.concatenate([magnitudes, magnitudes | np.uint32(1 << 31)])


def _measured_latency(outputs: Bits, expected: Bits) -> list[int]:
    """The delays at which the outputs are what was expected, all of it."""
    depth = len(outputs) - len(expected)
    return [delay for delay in range(depth + 1)
            if np.array_equal(outputs[delay : delay + len(expected)], expected)]


def _describe(operands: Sequence[npt.NDArray[np.unsignedinteger]], got: Bits,
              expected: Bits) -> str:
    wrong = np.flatnonzero(got != expected)
    lines = [f"{len(wrong)} of {len(expected)} results differ; the first:"]
    for n in wrong[:5]:
        values = ", ".join(f"{int(operand[n]):#010x}" for operand in operands)
        lines.append(f"  ({values}) gave {int(got[n]):#010x}, not {int(expected[n]):#010x}")
    return "\n".join(lines)


Check = Callable[..., int]


@pytest.fixture
def check(native: Callable[[Spec], NativeUnit]) -> Check:
    """Compares a unit with its spec's golden model; returns how many cases were compared."""
    def compare(spec: Spec, *operands: npt.NDArray[np.unsignedinteger]) -> int:
        expected = spec.compute(*operands).astype(np.uint32)
        outputs = native(spec).stream(operands, spec.latency)
        assert len(outputs) == len(expected) + spec.latency
        got = outputs[spec.latency :]
        assert np.array_equal(got, expected), _describe(operands, got, expected)
        return len(expected)

    return compare


@pytest.fixture
def latencies(native: Callable[[Spec], NativeUnit]) -> Callable[..., list[int]]:
    """Latencies between 0 and 24 at which a unit's outputs are its golden results."""
    def measure(spec: Spec, *operands: npt.NDArray[np.unsignedinteger]) -> list[int]:
        expected = spec.compute(*operands).astype(np.uint32)
        return _measured_latency(native(spec).stream(operands, 24), expected)

    return measure
