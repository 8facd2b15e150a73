"""Co-simulation of captured GEMMs: what the table says, and that an empty check is an error."""

import pytest
import torch
from rich.console import Console
from torch import nn

from algorithms import sparsify
from benchmarks.gemm_cosim import cosim_gemms
from compiler.array.capture import Captured, capture
from rtl.architecture import PRESETS
from sim.engine import RtlEngine


@pytest.fixture(scope="module")
def engine() -> RtlEngine:
    """The RTL of the 4 x 4 array."""
    return RtlEngine(PRESETS["tiny"])


def test_padded_channels_are_in_the_table(
    engine: RtlEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.Flatten(), nn.Linear(64, 3))
    sparsify(model, "bdwp", "2:8")
    images = torch.randn(2, 1, 6, 6)
    step = cosim_gemms("net", capture(model, lambda: model(images).sum().backward()), engine)
    assert step.result.mismatches == 0
    assert step.result.rtl_cycles == step.result.model_cycles > 0
    # FF of the second convolution sums over 12 channels, BP over 16.
    assert {check.gemm: check.pattern for check in step.checks if check.gemm.startswith("2 ")} == {
        "2 FF": "2:8, +4 channels", "2 BP": "2:8", "2 WU": "dense"}
    Console(width=200).print(step.table())
    assert capsys.readouterr().out.count("2:8, +4 channels") == 1


def test_nothing_to_run_is_an_error(engine: RtlEngine) -> None:
    with pytest.raises(ValueError, match=r"^net: the training step has no GEMM that the array can"):
        cosim_gemms("net", Captured((), ()), engine)
