"""Overlap of loads, compute and stores on the RTL: the bound that the script prints is kept."""

from __future__ import annotations

import pytest

from benchmarks.chip_overlap import ALLOWED, measure
from rtl.architecture import PRESETS
from rtl.pattern import DENSE, NmPattern


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["FF", "BP"])
@pytest.mark.parametrize("pattern", [DENSE, NmPattern(2, 8)], ids=str)
def test_compute_hides_memory(stage: str, pattern: NmPattern) -> None:
    """256^3 on the 8 x 8 chip with the paper's bandwidth for each processing element."""
    row = measure(PRESETS["small"], stage, 256, pattern)
    print(f"{row.cycles} cycles, {row.ratio:.3f} of the larger bound")
    assert row.mismatches == 0
    assert 1 <= row.ratio <= ALLOWED


def test_small_gemms_compute_the_right_words() -> None:
    """The script's own path on the 4 x 4 chip, with sizes that divide nothing."""
    for stage, size in (("FF", 40), ("BP", 24), ("WU", 33)):
        pattern = DENSE if stage == "WU" else NmPattern(2, 8)
        row = measure(PRESETS["tiny"], stage, size, pattern)
        assert row.mismatches == 0
        assert row.cycles > max(row.compute, row.memory) > 0
