"""Device memory: regions of the right sizes that do not overlap, and an error that helps."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from test_scheduler import a_step

from compiler.chip.optimisers import AdamW, Sgd
from compiler.ir import Forward, Step, Value
from compiler.schedule.mapper import Infeasible
from compiler.schedule.memory_map import memory_map


def with_activations(step: Step, batch: int) -> Step:
    values = dict(step.forward.values)
    for layer in range(3):
        for name in (f"x{layer}", f"y{layer}"):
            values[name] = Value(name, (batch, 128), 4, "activation", trains=name != "x0")
    return dataclasses.replace(step, forward=Forward(
        "Chain", values, (), ("x0",), ("y2",), {}))


@pytest.mark.parametrize("optimiser", [Sgd(0.1, 0.0), Sgd(0.1, 0.9), AdamW(1e-3)])
def test_weights_state_gradients_and_packed_copies_have_their_sizes(
    optimiser: Sgd | AdamW
) -> None:
    kinds = memory_map(with_activations(a_step(), 256), optimiser).by_kind()
    weights = 3 * 128 * 128
    assert kinds["weights"] == kinds["weight gradients"] == 4 * weights
    assert kinds.get("optimiser state", 0) == 4 * weights * optimiser.states
    assert kinds["packed weights"] == 2 * weights * 2 * 5 // 16
    assert kinds["activations"] == 6 * 256 * 128 * 2
    assert kinds["gradients"] == 2 * 256 * 128 * 2


def test_regions_follow_each_other_without_overlap() -> None:
    regions = memory_map(with_activations(a_step(), 250), Sgd(0.1)).regions
    assert len(regions) > 10
    for before, after in itertools.pairwise(regions):
        assert before.start + before.bytes <= after.start
        assert after.start % 4096 == 0
    assert len({region.name for region in regions}) == len(regions)


def test_frozen_weights_have_packed_copies_only() -> None:
    kinds = memory_map(a_step(frozen=True), Sgd(0.1)).by_kind()
    assert set(kinds) == {"packed weights"}


def test_a_step_that_does_not_fit_says_which_batch_would() -> None:
    made = memory_map(with_activations(a_step(), 2**22), Sgd(0.1))
    with pytest.raises(Infeasible, match=(
        r"needs [\d.]+ GiB of device memory and there are 4\.0; would fix it: a batch of at most "
        r"\d+ or dram_gib=\d+ in the architecture"
    )) as caught:
        made.require_capacity(4, 2**22)
    batch = int(caught.value.levers[0].split()[-1])
    memory_map(with_activations(a_step(), batch), Sgd(0.1)).require_capacity(4, batch)
    with pytest.raises(Infeasible):
        memory_map(with_activations(a_step(), batch * 2), Sgd(0.1)).require_capacity(4)
