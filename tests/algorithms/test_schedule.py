"""Phases of a run, and what the handle does once an optimiser step."""

import itertools
import re

import pytest
import torch
from torch import nn

from algorithms import METHODS, NmLayer, Schedule, get_method, sparsify
from algorithms.plan import plan_layer
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern

PLAN = plan_layer(METHODS["bdwp+wu"], NmPattern(2, 8), 64, 64, gradient=NmPattern(1, 2))


def phases(schedule: Schedule) -> list[str]:
    plans = (schedule.plan_at(step, PLAN) for step in range(schedule.steps))
    return ["/".join(str(p) for p in plan.executed_patterns().values()) for plan in plans]


def test_warm_up_gradual_pruning_and_tail_follow_each_other() -> None:
    found = phases(Schedule(20, warmup=0.1, gradual=0.3, tail=0.2))
    dense, full = "dense/dense/dense", "2:8/2:8/1:2"
    gradual = [f"{n}:8/{n}:8/1:2" for n in (4, 4, 3, 3, 2, 2)]
    assert found == [dense] * 2 + gradual + [full] * 8 + [dense] * 4


def test_without_phases_nothing_changes_and_after_the_last_step_the_last_phase_stays() -> None:
    assert set(phases(Schedule(5))) == {"2:8/2:8/1:2"}
    assert Schedule(5, tail=0.2).plan_at(99, PLAN).is_dense
    assert Schedule(5).plan_at(99, PLAN) == PLAN


def test_every_pattern_of_a_gradual_phase_runs_on_the_array() -> None:
    for n, m in ((1, 2), (2, 4), (1, 16), (3, 16)):
        plan = plan_layer(METHODS["bdwp"], NmPattern(n, m), 64, 64)
        schedule = Schedule(40, gradual=1.0)
        seen = [schedule.plan_at(step, plan).forward.pattern for step in range(40)]
        assert seen[0].n == max(m // 2, n) and seen[-1].n == n
        assert all(pattern.require_hardware() for pattern in seen)
        assert all(a.n >= b.n for a, b in itertools.pairwise(seen))


def test_passes_that_are_dense_stay_dense_in_every_phase() -> None:
    plan = plan_layer(METHODS["bdwp"], NmPattern(2, 8), 64, 4)
    for step in range(10):
        assert Schedule(10, 0.2, 0.3, 0.2).plan_at(step, plan).backward.pattern == DENSE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps=0: must be at least 1; nearest legal value: 1"),
        ({"steps": 9, "tail": 1.5}, "tail=1.5: must be a share of the steps, from 0 to 1; "
                                    "nearest legal value: 1.0"),
        ({"steps": 9, "warmup": -0.5}, "warmup=-0.5: must be a share of the steps, from 0 to 1; "
                                       "nearest legal value: 0.0"),
        ({"steps": 9, "warmup": 0.5, "tail": 0.6}, "warmup + gradual + tail=1.1: must be at most "
                                                   "1; nearest legal value: 1"),
    ],
)
def test_illegal_shares_are_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        Schedule(**arguments)  # type: ignore[arg-type]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4))


def test_an_attached_optimiser_drives_decay_and_schedule() -> None:
    model, decay = network(), 0.25
    handle = sparsify(model, get_method("bdwp", decay=decay), "2:4",
                      schedule=Schedule(4, warmup=0.25, tail=0.25))
    layer = model[1]
    assert isinstance(layer, NmLayer)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    handle.attach(optimiser)
    moves, patterns = [], []
    for _ in range(4):
        patterns.append(str(layer.nm_plan.forward.pattern))
        mask = layer.forward_mask()
        before = layer.weight.detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
        moves.append(torch.equal(layer.weight, torch.where(mask, before, before * (1 - decay))))
    assert patterns == ["dense", "2:4", "2:4", "dense"] and all(moves)
    assert handle.steps == 4
    handle.restore(1)
    assert str(layer.nm_plan.forward.pattern) == "2:4" == str(
        handle.plans()["1"].forward.pattern)
    with pytest.raises(ParameterError, match=r"^steps=-1: must not be negative"):
        handle.restore(-1)


@pytest.mark.parametrize("fused", [False, True])
def test_decay_is_right_under_a_loss_scale(fused: bool) -> None:
    """A plain optimiser sees unscaled gradients; a fused one divides by the scale itself."""
    model, decay = network(), 0.25
    handle = sparsify(model, get_method("srste", decay=decay), "2:4")
    layer = model[1]
    assert isinstance(layer, NmLayer)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0, fused=fused)
    handle.attach(optimiser)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=1024.0)
    mask, before = layer.forward_mask(), layer.weight.detach().clone()
    scaler.scale(model(torch.zeros(2, 16)).sum() * 0).backward()
    scaler.step(optimiser)
    torch.testing.assert_close(layer.weight.detach(), torch.where(mask, before, 0.75 * before))


def test_refresh_sees_an_edit_through_data() -> None:
    model = network()
    handle = sparsify(model, "bdwp", "2:4")
    layer = model[1]
    assert isinstance(layer, NmLayer)
    before = layer.forward_weight()
    layer.weight.data.neg_()
    handle.refresh()
    assert torch.equal(layer.forward_weight(), -before)
