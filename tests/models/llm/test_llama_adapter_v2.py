"""LLaMA-Adapter V2 by size: exact counts, derived work, export, checkpoints and ablations."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from algorithms import ParameterError, sparse_layers, sparsify
from models.llm.adapter import (
    adapter_parameters,
    adapter_root,
    disabled,
    fold_adapter,
    image_context,
    insert_adapter,
    remove_adapter,
)
from models.llm.adapter_v2 import image_example, llama_adapter_v2, v2_config
from models.llm.checkpoint import load_adapter, save_adapter
from models.llm.joint import parameter_groups
from models.llm.llama import LLAMA_SIZES, Llama, example, llama
from models.llm.peft_prompt import export_peft
from models.llm.unlocked import count_unlocked
from models.llm.vision import VISION_SIZES, VisualAttention, VisualProjection, vision_tower

IDS, IMAGES = example("tiny"), image_example("tiny")
ABLATIONS: dict[str, dict[str, object]] = {
    "norm": {"unlock_norm": False}, "bias": {"unlock_bias": False},
    "scale": {"unlock_scale": False}, "input side": {"scale_side": "input"},
    "late": {"visual": "late"}, "blind": {"visual": "none"},
    "prompts": {"unlock_norm": False, "unlock_bias": False, "unlock_scale": False,
                "visual": "none"},
}


def learnt(net: nn.Module) -> None:
    """Other values for all that learns."""
    torch.manual_seed(4)
    with torch.no_grad():
        for values in adapter_parameters(net).values():
            values.add_(torch.randn_like(values) * 0.3)


def images(net: Llama) -> tuple[Tensor, ...]:
    """What its forward pass takes beside the ids."""
    visual = adapter_root(net).config.visual
    return {"none": (), "late": (IMAGES[:, 0],), "early": (IMAGES,)}[visual]


@cache
def on_meta(size: str) -> Llama:
    with torch.device("meta"):
        return llama_adapter_v2(size)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_starts_as_the_base_model(size: str) -> None:
    ids, seen = example(size, batch=2), image_example(size, batch=2)
    net, base = llama_adapter_v2(size, seed=3), llama(size, seed=3)
    assert torch.equal(net(ids), base(ids)) and torch.equal(net(ids, seen), base(ids))
    learnt(net)
    assert not torch.allclose(net(ids), base(ids))
    assert not torch.allclose(net(ids, seen), net(ids))


def test_full_size_has_the_derived_parameters() -> None:
    net = on_meta("full")
    assert count_unlocked(net) == (266_240, 1_359_872, 1_359_872)
    assert count_unlocked(net).total == 2_985_984
    groups = {kind: sum(values.numel() for values in group.values())
              for kind, group in parameter_groups(net).items()}
    prompts = 31 * (10 * 4096 + 32)
    assert groups["instruction"] == 2_985_984 + prompts == 4_256_736  # 4.26 M
    projection = sum(values.numel() for values in adapter_root(net).parameters())
    assert groups["image_text"] == projection + 32 == 5_278_752
    assert sum(groups.values()) == sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert sum(p.numel() for p in net.parameters()) == (
        6_738_415_616 + sum(groups.values()) - 266_240), "norms are counted with the base"


def test_full_size_has_the_derived_work() -> None:
    net, ids = on_meta("full"), example("full", device="meta")
    with FlopCounterMode(display=False) as counter:
        logits = net(ids)
        forward = counter.get_total_flops()
        logits.sum().backward()
    step = counter.get_total_flops()
    assert [round(work / 1e12, 2) for work in (forward, step - forward, step)] == [
        27.64, 28.20, 55.85]
    linears = 2 * 2048 * (32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 4096 * 32000)
    attention = 32 * 2 * (2 * 4 * 32 * 512 * 512 * 128)  # two products; four backward
    prompt_rows = 31 * 2 * (2 * 10 * 4096 * 4096)  # keys and values, once for the whole batch
    prompt_attention = 31 * 2 * (2 * 4 * 32 * 512 * 10 * 128)
    assert forward == linears + attention + prompt_rows + prompt_attention
    # Through all layers and to the prompts, but to no weight, scale or bias by a product.
    assert step - forward == linears + 2 * attention + prompt_rows + 2 * prompt_attention


def test_the_image_adds_its_projection_and_the_first_layers_rows() -> None:
    with torch.device("meta"):
        net = llama_adapter_v2("small")
    ids, seen = example("small", device="meta"), image_example("small", device="meta")
    found = []
    for given in ((ids,), (ids, seen)):
        with FlopCounterMode(display=False) as counter:
            net(*given)
        found.append(counter.get_total_flops())
    shape, vision, rows = LLAMA_SIZES["small"], VISION_SIZES["small"], 20
    width, hidden, tokens = shape.width, vision.projection, vision.tokens
    keys = width * shape.kv_heads // shape.heads
    projection = (tokens * vision.features * hidden + 2 * rows * tokens * hidden
                  + rows * hidden * width)
    attention = 2 * rows * width * keys + 2 * shape.tokens * rows * width
    assert found[1] - found[0] == 2 * shape.batch * (projection + attention)
    with torch.no_grad():
        assert net(*given).shape == (shape.batch, shape.tokens, shape.vocabulary)


@pytest.mark.parametrize("seeing", [False, True], ids=["text", "image"])
def test_exports_to_plain_operators(seeing: bool) -> None:
    net = llama_adapter_v2("tiny")
    learnt(net)
    given = (IDS, IMAGES) if seeing else (IDS,)
    program = torch.export.export(net, given, strict=False)
    called = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    assert all(name.startswith("aten.") for name in called)
    prompts = 2 + seeing
    assert called["aten.linear.default"] == 3 * 7 + 1 + 2 * prompts + 2 * seeing
    assert called["aten.scaled_dot_product_attention.default"] == 3 + prompts
    assert torch.equal(program.module()(*given), net(*given))


def test_peft_takes_no_bias_tuning(tmp_path: Path) -> None:
    net = llama_adapter_v2("tiny", config=v2_config("tiny", visual="none", gate="scalar",
                                                        unlock_bias=False))
    with pytest.raises(ParameterError, match=r"unlock_norm=True: PEFT has no bias tuning with "
                       r"prompts; fold_adapter\(model\) first"):
        export_peft(net, tmp_path)
    fold_adapter(net)
    export_peft(net, tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()


def test_reads_a_towers_features() -> None:
    tower, net = vision_tower("tiny"), llama_adapter_v2("tiny")
    learnt(net)
    pixels = torch.randn(len(IDS), 3, 16, 16)
    seen = tower(pixels)
    assert seen.shape == IMAGES.shape
    with image_context(net, seen):
        assert torch.equal(net(IDS), net(IDS, seen))
    assert not torch.allclose(net(IDS), net(IDS, seen))


@pytest.mark.parametrize("ablation", ["nothing", *ABLATIONS])
def test_each_feature_can_be_off_and_saved(ablation: str, tmp_path: Path) -> None:
    changes = ABLATIONS.get(ablation, {})
    config = v2_config("tiny", **changes)
    net = llama_adapter_v2("tiny", config=config)
    count = count_unlocked(net)
    assert [number > 0 for number in count] == [
        config.unlock_norm, config.unlock_bias, config.unlock_scale]
    eyes = [module for module in net.modules() if isinstance(module, VisualAttention)]
    assert len(eyes) == (config.visual == "early")
    assert isinstance(adapter_root(net).projection, VisualProjection) is (config.visual == "early")
    expected = llama("tiny")(IDS)
    assert torch.equal(net(IDS, *images(net)), expected)
    learnt(net)
    logits = net(IDS, *images(net))
    assert not torch.allclose(logits, expected)

    save_adapter(net, tmp_path)
    again = llama("tiny")
    load_adapter(again.base, tmp_path)
    assert torch.equal(again(IDS, *images(again)), logits)
    assert adapter_root(again).config == config
    saved = {name: values.dtype for name, values in adapter_parameters(again).items()}
    assert set(saved.values()) == {torch.float32}
    trained = {name.removeprefix("base.") for name, values in net.named_parameters()
               if values.requires_grad}
    assert saved.keys() == trained, "all that learns is in the file, and nothing else"


@pytest.mark.parametrize("side", ["output", "input"])
def test_switches_off_and_comes_out(side: str, tmp_path: Path) -> None:
    net = llama_adapter_v2("tiny", config=v2_config("tiny", scale_side=side))
    plain = llama("tiny")
    learnt(net)
    logits = net(IDS, IMAGES)
    with disabled(net):
        assert torch.equal(net(IDS, IMAGES), plain(IDS))
        save_adapter(net, tmp_path)
        assert torch.equal(net(IDS, IMAGES), plain(IDS))
    assert torch.equal(net(IDS, IMAGES), logits)
    again = llama("tiny")
    load_adapter(again.base, tmp_path)
    assert torch.equal(again(IDS, IMAGES), logits), "what was learnt is saved, also while off"
    remove_adapter(net)
    assert torch.equal(net(IDS), plain(IDS))
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert all(values.requires_grad for values in net.parameters())


def test_folds_to_an_adapter_of_prompts_for_another_base(tmp_path: Path) -> None:
    net = llama_adapter_v2("tiny")
    learnt(net)
    logits = net(IDS, IMAGES)
    fold_adapter(net)
    torch.testing.assert_close(net(IDS, IMAGES), logits, rtol=1e-5, atol=1e-5)
    save_adapter(net, tmp_path)
    other: Any = copy.deepcopy(net)
    remove_adapter(other)
    assert not torch.allclose(other(IDS), net(IDS))
    load_adapter(other.base, tmp_path)
    assert torch.equal(other(IDS, IMAGES), net(IDS, IMAGES))


@pytest.mark.parametrize("learning", ["all", "nothing", "norms"])
@pytest.mark.parametrize("bias", [False, True])
def test_what_learnt_before_learns_again_after_folding(learning: str, bias: bool) -> None:
    base = llama("tiny").base
    for name, values in base.named_parameters():
        values.requires_grad_(learning == "all" or (learning == "norms" and "norm" in name))
    before = {name: values.requires_grad for name, values in base.named_parameters()}
    insert_adapter(base, v2_config("tiny", unlock_bias=bias))
    fold_adapter(base)
    assert {name for name, values in base.named_parameters() if values.requires_grad} == set(
        adapter_parameters(base))
    remove_adapter(base)
    after = {name: values.requires_grad for name, values in base.named_parameters()}
    added = after.keys() - before.keys()
    assert len(added) == (21 if bias else 0)
    assert after == before | {name: before[name.replace(".bias", ".weight")] for name in added}


@pytest.mark.parametrize("first", ["adapter", "sparsify"])
def test_sits_on_a_pruned_base(first: str) -> None:
    plain = llama("tiny")
    sparsify(plain, "bdwp", "2:8")
    if first == "adapter":
        net = llama_adapter_v2("tiny")
        sparsify(net, "bdwp", "2:8")
    else:
        net = llama("tiny")
        sparsify(net, "bdwp", "2:8")
        insert_adapter(net.base, v2_config("tiny"))
    assert torch.equal(net(IDS, IMAGES), plain(IDS))
    pruned = {name for name, layer in sparse_layers(net)
              if not layer.nm_plan.forward.pattern.is_dense}
    assert pruned == {name for name, layer in sparse_layers(plain)
                      if not layer.nm_plan.forward.pattern.is_dense}
    net(IDS, IMAGES).logsumexp(-1).sum().backward()
    assert all((values.grad is not None) == values.requires_grad for values in net.parameters())


def test_initialisation_depends_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = (llama_adapter_v2("tiny", seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("adapter.projection.queries", "model.layers.2.self_attn.adapter.prompt"):
        assert not torch.equal(first[f"base.{name}"], other[f"base.{name}"])


@pytest.mark.parametrize("size", LLAMA_SIZES)
def test_examples_fit_their_model(size: str) -> None:
    ids, seen = example(size, 2, 8, "meta"), image_example(size, 2, "meta")
    assert on_meta(size)(ids, seen).shape == (2, 8, LLAMA_SIZES[size].vocabulary)
    assert image_example("tiny").shape == (4, 5, 64)
    assert torch.equal(image_example("tiny"), IMAGES)


def test_what_is_not_there_is_refused_by_name() -> None:
    for ask in (llama_adapter_v2, v2_config, image_example):
        with pytest.raises(ParameterError, match="size='smal': must be one of tiny, small, full; "
                           "nearest legal value: small"):
            ask("smal")
    with pytest.raises(ParameterError, match="unlock_scales=False: is not a parameter of adapters; "
                       "nearest legal value: unlock_scale"):
        v2_config("tiny", unlock_scales=False)
    with pytest.raises(ParameterError, match="scale_side='both': input should be"):
        v2_config("tiny", scale_side="both")
    with pytest.raises(ParameterError, match=r"visual_layers=2: must be at most 1.*nearest legal "
                       "value: 1"):
        llama_adapter_v2("tiny", config=v2_config("tiny", visual_layers=2))
    blind = llama_adapter_v2("tiny", config=v2_config("tiny", visual="none"))
    with pytest.raises(ParameterError, match="this adapter takes none"):
        blind(IDS, IMAGES)
    with pytest.raises(ParameterError, match="has no adapter"):
        llama("tiny")(IDS, IMAGES)
