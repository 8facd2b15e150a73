"""Tiles of full-size layers with real operands on the RTL: cycles and bits equal."""

from __future__ import annotations

import pytest

from benchmarks.networks import NETWORKS
from benchmarks.sampled_layers import SampleCheck, run_samples, table
from rtl.architecture import PRESETS
from sim.engine import RtlEngine


def agree(checks: list[SampleCheck]) -> None:
    """Every sample has the model's cycles and the golden bits."""
    assert checks
    for check in checks:
        print(f"{check.network} {check.gemm}: {check.rtl_cycles:,} cycles, "
              f"{check.elements:,} elements")
        assert check.rtl_cycles == check.model_cycles, check
        assert check.mismatches == 0 and check.elements > 0, check


@pytest.mark.parametrize("network", ["resnet9", "vit"])
def test_samples_of_full_size_layers_on_the_small_array(network: str) -> None:
    engine = RtlEngine(PRESETS["small"])
    checks = run_samples(network, engine)
    agree(checks)
    assert len({check.gemm.split()[1] for check in checks}) == 3  # FF, BP and WU
    assert table(checks, engine.architecture).row_count == len(checks)


def test_samples_of_sampled_gradients_on_the_small_array() -> None:
    checks = run_samples("resnet9", RtlEngine(PRESETS["small"]), method="bdwp+wu")
    agree(checks)
    patterns = {(check.gemm.split()[1], str(check.tiling.problem.pattern)) for check in checks}
    assert {("FF", "2:8"), ("BP", "2:8"), ("WU", "1:2")} <= patterns


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_samples_of_every_network_on_the_array_of_the_paper(network: str) -> None:
    agree(run_samples(network, RtlEngine(PRESETS["paper"])))
