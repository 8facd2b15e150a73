"""The update of a model as a program of its own: against PyTorch, and on the RTL."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from algorithms import sparse_layers, sparsify
from benchmarks.update_check import check_update
from compiler.chip.optimisers import AdamW, Optimiser, Sgd
from compiler.chip.races import find_races
from compiler.chip.update_step import UpdateStep, compile_update
from rtl.architecture import PRESETS
from rtl.errors import ParameterError
from sim.interpreter import Interpreter

TINY, SCALE = PRESETS["tiny"], 256.0


def learnt(method: str = "bdwp") -> nn.Module:
    """A model with weights, biases, an embedding and a norm, after one backward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 20), nn.Linear(20, 24), nn.LayerNorm(24),
                          nn.Linear(24, 40), nn.Linear(40, 3))
    sparsify(model, method, "2:8")
    loss = (model(torch.arange(5)) ** 2).sum()
    (loss * SCALE).backward()
    return model


@pytest.mark.parametrize("optimiser", [AdamW(1e-2, weight_decay=0.1), Sgd(0.1, 0.9, 1e-2),
                                       Sgd(0.1, 0.0)], ids=str)
def test_it_is_pytorchs_optimiser(optimiser: Optimiser) -> None:
    model = learnt()
    step = compile_update(model, TINY, optimiser=optimiser, loss_scale=SCALE)
    image = step.image()
    Interpreter(TINY, image.memory, image.bases, step.scalars()).start(list(step.program))
    before = {name: values.detach().clone() for name, values in model.named_parameters()}
    for values in model.parameters():
        assert values.grad is not None
        values.grad /= SCALE
    optimiser.torch(model.parameters()).step()
    after = dict(model.named_parameters())
    assert [update.name for update in step.updates] == list(after)
    for update in step.updates:
        new = torch.from_numpy(update.load(image))
        torch.testing.assert_close(new, after[update.name].detach(), rtol=1e-6, atol=1e-6)
        assert not torch.equal(new, before[update.name])


def packed_of(step: UpdateStep, name: str) -> list[str]:
    """Which copies of a parameter the program keeps."""
    place = next(update.place for update in step.updates if update.name == name)
    half = [] if place.half is None else ["half"]
    return half + [f"{'bp' if one.backward else 'ff'} {one.pattern}" for one in place.packed]


def test_the_next_steps_operands_are_selected() -> None:
    model = learnt()
    step = compile_update(model, TINY, optimiser=Sgd(0.1), loss_scale=SCALE)
    assert packed_of(step, "1.weight") == ["half"]  # the first linear layer stays dense
    assert packed_of(step, "3.weight") == ["ff 2:8", "bp 2:8"]
    assert packed_of(step, "0.weight") == [] == packed_of(step, "2.bias")
    image = step.image()
    Interpreter(TINY, image.memory, image.bases, step.scalars()).start(list(step.program))
    update = next(update for update in step.updates if update.name == "3.weight")
    layer = dict(sparse_layers(model))["3"]
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(update.load(image)))
    for packed, wanted in zip(update.place.packed,
                              (layer.forward_weight(), layer.backward_weight()), strict=True):
        fresh = step.image()
        packed.store(fresh, update.lay_out(wanted.float()).astype(np.float16))
        assert np.array_equal(image.bytes_at(packed.place, packed.words),
                              fresh.bytes_at(packed.place, packed.words))


@pytest.mark.parametrize("method", ["dense", "bdwp", "bdwp+wu"])
def test_the_rtl_leaves_the_same_memory(method: str) -> None:
    step = compile_update(learnt(method), TINY, optimiser=AdamW(1e-2), loss_scale=SCALE)
    assert not find_races(step.program, TINY)
    check = check_update(step)
    assert check.mismatches == 0 and check.words == step.memory_bytes // 4
    assert check.rtl_cycles == pytest.approx(check.model_cycles, rel=0.02)
    assert "AdamW of" in str(check) and f"{check.rtl_cycles:,} cycles" in str(check)


def test_the_model_knows_that_loads_and_stores_compete() -> None:
    """From the first store of each weight on they share the bandwidth, which limits this step."""
    model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(3)])
    sparsify(model, "bdwp", "2:8")
    for values in model.parameters():
        values.grad = torch.randn_like(values)
    check = check_update(compile_update(model, PRESETS["small"], optimiser=AdamW(1e-3),
                                        loss_scale=SCALE))
    assert check.mismatches == 0
    assert check.rtl_cycles == pytest.approx(check.model_cycles, rel=0.02)


def test_what_does_not_learn_is_not_in_it() -> None:
    model = learnt()
    for name, values in model.named_parameters():
        values.requires_grad = name == "2.bias"
    step = compile_update(model, TINY, optimiser=AdamW(1e-2), loss_scale=SCALE)
    assert [update.name for update in step.updates] == ["2.bias"]


def test_errors_name_what_is_wrong() -> None:
    options = {"optimiser": Sgd(0.1), "loss_scale": SCALE}
    model = learnt()
    model.requires_grad_(False)
    with pytest.raises(ParameterError, match="has no parameter that learns"):
        compile_update(model, TINY, **options)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"1\.weight\.method='srste'"):
        compile_update(learnt("srste"), TINY, **options)  # type: ignore[arg-type]
    model = learnt()
    step = compile_update(model, TINY, **options)  # type: ignore[arg-type]
    model.zero_grad()
    with pytest.raises(ParameterError, match=r"0\.weight=None: has no gradient"):
        step.image()
