"""The comparison itself under test: faults put into the Verilog must all be found."""

from __future__ import annotations

import re

import numpy as np
import pytest

from compiler.array.gemm import run_mapping
from compiler.array.mapping import GemmShape, mappings
from rtl.architecture import Architecture
from rtl.pattern import NmPattern
from sim import engine, golden
from sim.engine import RtlEngine, cached_verilog

# Small buffers are filled many times over, so that what an earlier piece left behind shows.
ARCHITECTURE = Architecture(name="blocks", rows=4, cols=4, w2e_words=16, n2s_words=64,
                            out_words=64)

FAULTS = {
    "adder drops what lies below the round bit": (
        "uspe.adder", r"(little2 <= \{ wide\[50:25\], )\S+", r"\1 1'h0"),
    "adder rounds ties up": ("uspe.adder", r"(assign up = \S+ \[3\]) & \S+", r"\1"),
    "USPE sees half of the index": ("uspe", r"chosen\[19:16\]( \* 5'h10)", r"chosen[18:16]\1"),
    "multiplier takes subnormals for zero": (
        "uspe.multiplier", r"(assign a_zero = a_subnormal) & [^;]+;", r"\1;"),
    "pairs share a row tile": (
        "sequencer", r"(= )current\[\d+\]( \? \S+ +: 25'h0000000;)", r"\1 1'h0\2"),
    "a slice starts from what the buffer holds": (
        "result_buffer", r"= zero1 \? 32'd0 : read__data;", "= read__data;"),
    "non-finite results go unnoticed": ("result_buffer", r"(assign flag = )[^;]+;", r"\1 1'h0;"),
}


def with_fault(module: str, old: str, new: str) -> str:
    """The engine's Verilog with one expression of one module changed."""
    text = cached_verilog(ARCHITECTURE)
    (body,) = re.findall(rf"^module \\?{re.escape(module)} ?\(.*?^endmodule$", text, re.M | re.S)
    changed, count = re.subn(old, new, body)
    assert count == 1, f"{module} no longer has one place to break"
    return text.replace(body, changed)


def disagreements(device: RtlEngine) -> int:
    """Runs that differ from the golden model in a bit, a flag or a cycle, out of some dozens."""
    rng = np.random.default_rng(0)
    wrong = 0
    for text in ("dense", "2:4", "1:16", "8:16"):
        shape = GemmShape(11, 7, 91, NmPattern.parse(text))  # divides nothing
        a = rng.standard_normal((shape.p, shape.k)).astype(np.float16)
        a[rng.random(a.shape) < 0.1] *= np.float16(2.0**-16)
        b = rng.standard_normal((shape.k, shape.q)).astype(np.float16)
        poisoned = np.where(rng.random(a.shape) < 0.01, np.float16(np.inf), a)
        for moving in (a, poisoned):
            want = golden.gemm(moving, b, shape.pattern)
            finite = bool(np.isfinite(want).all())
            for mapping in mappings(ARCHITECTURE, shape):
                c, cycles, nonfinite = run_mapping(mapping, moving, b, device)
                same = c.tobytes() == want.tobytes() and cycles == mapping.cycles()
                wrong += not same or nonfinite == finite
    return wrong


def test_the_design_has_none() -> None:
    assert disagreements(RtlEngine(ARCHITECTURE)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = with_fault(*FAULTS[fault])
    monkeypatch.setattr(engine, "cached_verilog", lambda architecture: broken)
    assert disagreements(RtlEngine(ARCHITECTURE)) > 0
