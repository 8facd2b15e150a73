"""Llama by size: starts as its base model, trains 1.2 M parameters, and has the derived work."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
from adapter_bases import IDS, adapted, open_gates
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.llm.adapter import adapter_parameters
from models.llm.llama import LLAMA_SIZES, Llama, example, llama, llama_adapter


def on_meta(size: str, adapter: bool) -> nn.Module:
    """Shapes without values."""
    with torch.device("meta"):
        return llama_adapter(size) if adapter else llama(size)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_sizes_start_as_their_base_models(size: str) -> None:
    ids = example(size, batch=2)
    assert torch.equal(llama_adapter(size, seed=3)(ids), llama(size, seed=3)(ids))


def test_full_size_has_the_published_parameters() -> None:
    model = on_meta("full", adapter=True)
    trained = sum(values.numel() for values in model.parameters() if values.requires_grad)
    assert trained == 30 * (10 * 4096 + 32) == 1_229_760
    assert sum(values.numel() for values in adapter_parameters(model).values()) == trained
    base = sum(values.numel() for values in on_meta("full", adapter=False).parameters())
    assert base == 6_738_415_616  # LLaMA-7B
    assert sum(values.numel() for values in model.parameters()) == base + trained


@cache
def flops(adapter: bool, training: bool) -> Counter[str]:
    """FLOP of the full size by operator, 4 x 512 tokens.

    On ``meta`` no fused kernel exists: attention runs as its two batched products, ``bmm``, each
    counted at its full size S x S, causal or not.
    """
    model, ids = on_meta("full", adapter), example("full", device="meta")
    with FlopCounterMode(display=False) as counter:
        logits = model(ids)
        if training:
            logits.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    return Counter({str(name): count for name, count in counts.items()})


@pytest.mark.parametrize(("adapter", "forward", "step"), [(True, 27.64, 53.88),
                                                          (False, 27.61, 82.84)])
def test_full_size_has_the_derived_work(adapter: bool, forward: float, step: float) -> None:
    assert round(flops(adapter, training=False).total() / 1e12, 2) == forward
    assert round(flops(adapter, training=True).total() / 1e12, 2) == step


def test_adapter_adds_ten_rows_to_each_product() -> None:
    added = flops(adapter=True, training=False) - flops(adapter=False, training=False)
    assert added == {
        "aten.mm": 30 * 2 * 2 * 10 * 4096 * 4096,  # keys and values, once for the whole batch
        "aten.bmm": 30 * 2 * 4 * 32 * 2 * 512 * 128 * 10,  # scores, and values by them
    }


def test_exports_to_plain_operators() -> None:
    model, ids = on_meta("tiny", adapter=True), example("tiny", device="meta")
    program = torch.export.export(model, (ids,), strict=False)
    called = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    assert all(name.startswith("aten.") for name in called)
    assert called["aten.linear.default"] == 3 * 7 + 1 + 2 * 2
    assert called["aten.scaled_dot_product_attention.default"] == 3 + 2


def test_exported_program_gives_the_same_logits() -> None:
    model, ids = llama_adapter("tiny"), example("tiny")
    open_gates(model)
    program = torch.export.export(model, (ids,), strict=False)
    assert torch.equal(program.module()(ids), model(ids))


def test_later_tokens_and_other_sequences_do_not_matter() -> None:
    # An eager base would look ahead: nobody gives it a mask.
    base = adapted()
    base.set_attn_implementation("eager")
    model = Llama(base)
    changed = IDS.clone()
    changed[0, 4:] = 0
    changed[1] = 0
    torch.testing.assert_close(model(changed)[0, :4], model(IDS)[0, :4])
    assert not torch.allclose(model(changed)[0, 4:], model(IDS)[0, 4:])


def test_initialisation_depends_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = (llama_adapter("tiny", seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], second[key]) for key in first)
    for name in ("self_attn.adapter.prompt", "mlp.up_proj.weight"):
        key = f"base.model.layers.2.{name}"
        assert not torch.equal(first[key], other[key])


@pytest.mark.parametrize("size", LLAMA_SIZES)
def test_examples_fit_their_model(size: str) -> None:
    shape, ids = LLAMA_SIZES[size], example(size)
    assert ids.dtype == torch.int64 and ids.shape == (shape.batch, shape.tokens)
    assert int(ids.min()) >= 0 and int(ids.max()) < shape.vocabulary
    assert torch.equal(ids, example(size))
    few = example(size, batch=2, tokens=8, device="meta")
    assert on_meta(size, adapter=True)(few).shape == (2, 8, shape.vocabulary)


def test_what_is_not_there_is_refused_by_name() -> None:
    for ask in (llama, llama_adapter, example):
        with pytest.raises(ValueError, match=r"size='huge': must be one of tiny, small, full"):
            ask("huge")
