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


@pytest.mark.parametrize("gradient", ["1:2", "2:4"])
def test_all_three_passes_sparse_on_the_rtl(engine: RtlEngine, gradient: str) -> None:
    """BDWP+WU with odd numbers of pixels, and of rows; a grouped convolution is in it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 9, 24), nn.Linear(24, 3))
    sparsify(model, "bdwp+wu", "2:8", gradient=gradient)
    images = torch.randn(3, 1, 9, 9)
    weights = torch.randn(3, 3)
    step = cosim_gemms(
        "net", capture(model, lambda: (model(images) * weights).sum().backward()), engine)
    assert step.result.mismatches == 0
    assert step.result.rtl_cycles == step.result.model_cycles > 0
    assert step.result.max_rel_error_vs_fp64 < 1e-6 > step.result.torch_rel_error_vs_fp64
    patterns = {check.gemm: check.pattern for check in step.checks}
    assert {name: patterns[name] for name in patterns if name.startswith(("2", "5"))} == {
        **{f"2[g{g}] FF": "2:8" for g in (0, 1)}, **{f"2[g{g}] WU": gradient for g in (0, 1)},
        **{f"2[g{g} {i},{j}] BP": "2:8" for g in (0, 1) for i in (0, 1) for j in (0, 1)},
        "5 FF": "2:8", "5 BP": "2:8", "5 WU": gradient}
    lengths = {check.gemm: check.mapping.shape.k for check in step.checks}
    assert (lengths["2[g0] WU"], lengths["5 WU"]) == (27, 3)


def test_nothing_to_run_is_an_error(engine: RtlEngine) -> None:
    with pytest.raises(ValueError, match=r"^net: the training step has no GEMM that the array can"):
        cosim_gemms("net", Captured((), ()), engine)
