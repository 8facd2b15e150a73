"""Joint training: what does not belong to a batch stays as it is, bit for bit."""

from __future__ import annotations

import copy
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import torch
from adapter_bases import IDS, base_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from algorithms import ParameterError
from models.llm.adapter import AdapterConfig, adapter_parameters, insert_adapter
from models.llm.joint import BatchKind, JointConfig, JointTraining, Sharing, parameter_groups
from models.llm.llama import Llama

WIDTH = 12
FEATURES = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(3))
KINDS: tuple[BatchKind, BatchKind] = ("image_text", "instruction")
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)


def model(visual: str = "early") -> Llama:
    """With everything that version 2 has, all gates open."""
    base = base_model()
    insert_adapter(base, AdapterConfig.make(
        layers=2, prompt=5, visual=visual, image_width=WIDTH, image_hidden=16, visual_rows=4,
        unlock_norm=True, unlock_bias=True, unlock_scale=True))
    torch.manual_seed(2)
    for name, values in adapter_parameters(base).items():
        if name.endswith("adapter.gate"):
            nn.init.normal_(values)
    return Llama(base)


def loss(net: Llama, kind: BatchKind, visual: str = "early") -> Tensor:
    images = FEATURES if visual == "early" else FEATURES[:, 0]
    logits = net(IDS, images) if kind == "image_text" else net(IDS)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def kept(net: nn.Module, training: JointTraining) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Copies of all tensors and of both optimiser states."""
    return ({name: values.detach().clone() for name, values in net.state_dict().items()},
            copy.deepcopy(training.state_dict()))


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


@pytest.mark.parametrize("visual", ["early", "late"])
def test_groups_are_disjoint_and_complete(visual: str) -> None:
    net = model(visual)
    groups = parameter_groups(net)
    image, text = groups["image_text"].keys(), groups["instruction"].keys()
    learns = {name for name, values in net.named_parameters() if values.requires_grad}
    assert not image & text and image | text == learns
    eyes = {name for name in learns if ".layers.0.self_attn.adapter." in name}
    assert eyes == ({"base.model.layers.0.self_attn.adapter.gate"} if visual == "early" else set())
    assert image == eyes | {name for name in learns if name.startswith("base.adapter.projection.")}
    assert any(name.endswith("adapter.prompt") for name in text)
    assert "base.model.norm.weight" in text
    assert "base.model.layers.0.self_attn.q_proj.adapter.scale" in text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("visual", ["early", "late"])
def test_the_other_group_and_its_optimiser_stay_bit_identical(kind: BatchKind, visual: str) -> None:
    net = model(visual)
    training = JointTraining(net, ADAMW)
    other: BatchKind = KINDS[kind == KINDS[0]]
    for each in KINDS:  # so that both optimisers have moments, and weight decay something to do
        training.step(each, lambda each=each: loss(net, each, visual))  # type: ignore[misc]
    before, state = kept(net, training)
    for _ in range(2):
        training.step(kind, lambda: loss(net, kind, visual))
    after, later = kept(net, training)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == training.groups[kind].keys()
    assert state[other]["state"], "has moments that could have moved"
    assert equal(state[other], later[other]) and not equal(state[kind], later[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_group_gets_no_gradient_and_costs_none(kind: BatchKind) -> None:
    net = model()
    training = JointTraining(net, partial(torch.optim.SGD, lr=0.0))
    with FlopCounterMode(display=False) as alone:
        training.step(kind, lambda: loss(net, kind))
    for name, values in net.named_parameters():
        assert (values.grad is not None) == (name in training.groups[kind]), name
    both = JointTraining(net, partial(torch.optim.SGD, lr=0.0), JointConfig("shared"))
    with FlopCounterMode(display=False) as together:
        both.step(kind, lambda: loss(net, kind))
    less = alone.get_total_flops() < together.get_total_flops()
    # An instruction batch does not run the visual part in either case.
    assert less if kind == "image_text" else alone.get_total_flops() == together.get_total_flops()


def test_what_learns_is_switched_back_also_after_an_error() -> None:
    net = model()
    training = JointTraining(net, ADAMW)
    learns = {name for name, values in net.named_parameters() if values.requires_grad}
    for kind in KINDS:
        with training.learning(kind):
            inside = {name for name, values in net.named_parameters() if values.requires_grad}
            assert inside == training.groups[kind].keys()
        with pytest.raises(ZeroDivisionError):
            training.step(kind, lambda: torch.tensor(1 / 0))
        assert learns == {n for n, values in net.named_parameters() if values.requires_grad}


def test_shared_batches_update_everything_they_reach() -> None:
    net = model()
    training = JointTraining(net, ADAMW, JointConfig("shared"))
    assert training.optimisers["image_text"] is training.optimisers["instruction"]
    before, _ = kept(net, training)
    training.step("image_text", lambda: loss(net, "image_text"))
    after, _ = kept(net, training)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    groups = parameter_groups(net)
    assert moved == groups["image_text"].keys() | groups["instruction"].keys()


@pytest.mark.parametrize("kind", KINDS)
def test_each_group_alone_learns_its_kind(kind: BatchKind) -> None:
    net = model()
    training = JointTraining(net, ADAMW)
    losses = [float(training.step(kind, lambda: loss(net, kind))) for _ in range(25)]
    assert losses[-1] < 0.95 * losses[0]


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    net = model()
    training = JointTraining(net, ADAMW)
    training.step("instruction", lambda: loss(net, "instruction"))
    before = kept(net, training)
    value = training.step("instruction", lambda: loss(net, "instruction") * torch.nan)
    assert value.isnan() and training.skipped == 1
    assert equal(list(before), list(kept(net, training)))
    assert training.step("instruction", lambda: loss(net, "instruction")).isfinite()


@pytest.mark.parametrize("sharing", ["disjoint", "shared"])
def test_goes_on_from_its_state(sharing: Sharing) -> None:
    first = model()
    training = JointTraining(first, ADAMW, JointConfig(sharing))
    for kind in KINDS:
        training.step(kind, lambda kind=kind: loss(first, kind))  # type: ignore[misc]
    second = model()
    second.load_state_dict(first.state_dict())
    again = JointTraining(second, ADAMW, JointConfig(sharing))
    again.load_state_dict(copy.deepcopy(training.state_dict()))
    for kind in KINDS:
        training.step(kind, lambda kind=kind: loss(first, kind))  # type: ignore[misc]
        again.step(kind, lambda kind=kind: loss(second, kind))  # type: ignore[misc]
    assert equal(dict(first.state_dict()), dict(second.state_dict()))


@given(st.integers(0, 100), st.integers(0, 60))
def test_kinds_are_spread_evenly(percent: int, steps: int) -> None:
    config = JointConfig(image_text=percent / 100)
    kinds = config.kinds(steps)
    assert len(kinds) == steps and kinds == config.kinds(steps)
    for done in range(steps + 1):
        assert kinds[:done].count("image_text") == int(done * Fraction(percent, 100))


@given(st.integers(0, 999), st.integers(1, 999))
def test_shares_give_the_batches_that_they_were_made_of(captions: int, instructions: int) -> None:
    both = captions + instructions
    kinds = JointConfig(image_text=captions / both).kinds(both)
    assert kinds.count("image_text") == captions


def test_a_quarter_of_the_batches() -> None:
    first = ["instruction"] * 3 + ["image_text"]
    assert JointConfig(image_text=0.25).kinds(8) == first * 2


def test_what_cannot_be_trained_jointly_is_refused() -> None:
    for share, nearest in ((-0.1, 0), (1.5, 1)):
        with pytest.raises(ParameterError, match="image_text=.*must be a share from 0 to 1; "
                           f"nearest legal value: {nearest}"):
            JointConfig(image_text=share)
    with pytest.raises(ParameterError, match="steps=-1: must be 0 or more"):
        JointConfig().kinds(-1)
    with pytest.raises(ParameterError, match="sharing='share': must be one of disjoint, shared; "
                       "nearest legal value: shared"):
        JointConfig("share")  # type: ignore[arg-type]
    blind = base_model()
    insert_adapter(blind, AdapterConfig(layers=2, prompt=5))
    with pytest.raises(ParameterError, match="has nothing that learns from image_text batches"):
        JointTraining(blind, ADAMW)
    training = JointTraining(model(), ADAMW)
    with pytest.raises(ParameterError, match="kind='images': must be one of image_text"):
        training.step("images", lambda: torch.zeros(()))  # type: ignore[arg-type]
