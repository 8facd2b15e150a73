"""Bias tuning of LLaMA-Adapter V2: the base exactly at first, the paper's formula then."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_bases import FAMILIES, IDS, adapters, base_model, open_gates
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from algorithms import NmLinear, ParameterError, sparsify, unsparsify
from models.llm.adapter import AdapterConfig, insert_adapter
from models.llm.llama import llama
from models.llm.unlocked import (
    UnlockedLinear,
    UnlockedNorm,
    count_unlocked,
    enable_unlocked,
    fold,
    lock,
    unlock,
    unlocked_parameters,
)

FAMILY = pytest.mark.parametrize("family", FAMILIES)
SIDE = pytest.mark.parametrize("side", ["output", "input"])
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def logits(model: Any) -> Tensor:
    out: Tensor = model(input_ids=IDS).logits
    return out


def tuned(model: nn.Module, spread: float = 0.3) -> None:
    """As if it had learnt: other values for everything unlocked."""
    torch.manual_seed(4)
    with torch.no_grad():
        for _, values in unlocked_parameters(model):
            values.add_(torch.randn_like(values) * spread)


def linears(model: nn.Module) -> list[Any]:
    return [module for module in model.modules()
            if isinstance(getattr(module, "adapter", None), UnlockedLinear)]


def norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules()
            if isinstance(getattr(module, "adapter", None), UnlockedNorm)]


@FAMILY
@SIDE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_starts_as_the_base_bit_for_bit(family: str, side: Any, dtype: torch.dtype) -> None:
    base = base_model(family).to(dtype)
    expected, before = logits(base), dict(base.state_dict())
    count = unlock(base, scale_side=side)
    got = logits(base)
    assert got.dtype == expected.dtype and torch.equal(got, expected)
    assert min(count) > 0
    for name, values in unlocked_parameters(base):
        assert values.dtype == torch.float32 and values.requires_grad, name
    after = base.state_dict()
    assert all(torch.equal(after[name], values) for name, values in before.items())
    tuned(base)
    assert not torch.allclose(logits(base), expected)


@FAMILY
@SIDE
def test_layers_compute_the_papers_formula(family: str, side: Any) -> None:
    base = base_model(family)
    unlock(base, scale_side=side)
    tuned(base)
    assert len(linears(base)) == 3 * 7
    torch.manual_seed(5)
    for layer in linears(base):
        x = torch.randn(2, 3, layer.in_features)
        w, s, b = (t.detach().double() for t in (layer.weight, layer.adapter.scale,
                                                 layer.adapter.bias))
        own = 0 if layer.bias is None else layer.bias.detach().double()
        direct = (s * (x.double() @ w.T + own + b) if side == "output"
                  else (s * x.double()) @ w.T + own + b)
        torch.testing.assert_close(layer(x).double(), direct, **CLOSE)
        # A tolerance that would also pass without a bias shows nothing.
        assert (layer(x) - x @ layer.weight.T).abs().max() > 1e-2
    for norm in norms(base):
        x = torch.randn(2, 3, norm.weight.numel())
        root = (x.double().pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
        direct = x.double() / root * norm.weight.detach().double()
        torch.testing.assert_close(norm(x).double(), direct, **CLOSE)


@SIDE
def test_gradients_are_row_reductions(side: Any) -> None:
    layer = base_model()
    unlock(layer, scale_side=side)
    tuned(layer)
    q = layer.model.layers[0].self_attn.q_proj
    x, dy = torch.randn(5, 48).double(), torch.randn(5, 32).double()
    q.double()
    (q(x) * dy).sum().backward()
    s, b, w = q.adapter.scale.detach(), q.adapter.bias.detach(), q.weight.detach()
    wanted = (((x @ w.T + b) * dy).sum(0), (s * dy).sum(0)) if side == "output" else (
        ((dy @ w) * x).sum(0), dy.sum(0))
    torch.testing.assert_close((q.adapter.scale.grad, q.adapter.bias.grad), wanted)
    assert q.weight.grad is None


@SIDE
def test_small_steps_survive_a_bfloat16_base(side: Any) -> None:
    base = base_model().bfloat16()
    unlock(base, scale_side=side)
    learns = dict(unlocked_parameters(base))
    logits(base).logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    assert all(values.grad is not None and values.grad.dtype == torch.float32
               for values in learns.values())
    scale = base.model.layers[2].mlp.up_proj.adapter.scale
    step = 2.0 ** -12  # far below what bfloat16 resolves at one
    torch.optim.SGD([scale], lr=step / float(scale.grad.abs().max())).step()
    assert float((scale.detach() - 1).abs().max()) == pytest.approx(step, rel=1e-3)


@SIDE
def test_a_bfloat16_layer_is_rounded_once(side: Any) -> None:
    base = base_model().bfloat16()
    unlock(base, scale_side=side)
    tuned(base)
    layer, x = base.model.layers[2].mlp.up_proj, torch.randn(64, 48).bfloat16()
    s, b, w = layer.adapter.scale, layer.adapter.bias, layer.weight
    direct = ((x @ w.T).float() + b) * s if side == "output" else (
        ((x.float() * s).bfloat16() @ w.T).float() + b)
    assert torch.equal(layer(x), direct.bfloat16())
    norm = base.model.norm
    root = (x.float().pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    assert torch.equal(norm(x), ((x.float() * root).bfloat16().float() * norm.weight).bfloat16())


@pytest.mark.parametrize(("side", "scale", "total"), [("output", 1_359_872, 2_985_984),
                                                      ("input", 1_138_688, 2_764_800)])
def test_llama_7b_has_the_derived_parameters(side: Any, scale: int, total: int) -> None:
    with torch.device("meta"):
        base = llama("full").base
    count = unlock(base, scale_side=side)
    assert count == (266_240, 1_359_872, scale) and count.total == total
    assert sum(values.numel() for _, values in unlocked_parameters(base)) == total
    assert all(values.is_meta for _, values in unlocked_parameters(base))


@pytest.mark.parametrize("kind", ["norm", "bias", "scale"])
def test_each_kind_alone(kind: str) -> None:
    base = base_model()
    expected = logits(base)
    base.requires_grad_(False)
    count = unlock(base, norm=kind == "norm", bias=kind == "bias", scale=kind == "scale")
    assert {name for name, number in count._asdict().items() if number} == {kind}
    learns = {name for name, values in base.named_parameters() if values.requires_grad}
    assert learns == dict(unlocked_parameters(base)).keys()
    suffix = ("norm.weight" if kind == "norm" else f".adapter.{kind}")
    assert learns and all(name.endswith(suffix) for name in learns)
    assert torch.equal(logits(base), expected)
    tuned(base)
    tuned_logits = logits(base)
    assert not torch.allclose(tuned_logits, expected)
    fold(base)
    torch.testing.assert_close(logits(base), tuned_logits, **CLOSE)


@SIDE
@pytest.mark.parametrize("first", ["sparsify", "unlock"])
def test_acts_outside_a_pruned_product(side: Any, first: str) -> None:
    base = base_model()
    plain = copy.deepcopy(base)
    sparsify(plain, "bdwp", "2:8")
    base.requires_grad_(False)
    if first == "sparsify":
        sparsify(base, "bdwp", "2:8")
        unlock(base, scale_side=side)
    else:
        unlock(base, scale_side=side)
        sparsify(base, "bdwp", "2:8")
    assert torch.equal(logits(base), logits(plain))
    tuned(base)
    pruned, same = (net.model.layers[1].mlp.up_proj for net in (base, plain))
    x, learns = torch.randn(4, 48), dict(pruned.adapter.named_parameters())
    assert isinstance(pruned, NmLinear) and not pruned.nm_plan.forward.pattern.is_dense
    s, b = learns["scale"], learns["bias"]
    assert torch.equal(pruned(x), (same(x) + b) * s if side == "output" else same(x * s) + b)
    assert torch.equal(pruned.forward_mask(), same.forward_mask())
    logits(base).logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    assert pruned.weight.grad is None
    assert all(values.grad is not None and values.grad.any() for values in learns.values())


@FAMILY
@SIDE
def test_folds_into_plain_layers(family: str, side: Any, tmp_path: Path) -> None:
    base = base_model(family)
    plain = set(base.state_dict())
    unlock(base, scale_side=side)
    tuned(base)
    expected = logits(base)
    other = copy.deepcopy(base)
    fold(other)
    torch.testing.assert_close(logits(other), expected, **CLOSE)
    assert torch.equal(logits(base), expected), "a copy is a model of its own"
    fold(base)
    torch.testing.assert_close(logits(base), expected, **CLOSE)
    assert not linears(base) and not norms(base) and count_unlocked(base).total == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())
    added = set(base.state_dict()) - plain
    assert plain <= set(base.state_dict()) and all(name.endswith("_proj.bias") for name in added)
    if family.startswith("llama"):  # whose configuration knows of biases in every layer
        base.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
        assert torch.equal(logits(again), logits(base))


def test_folds_a_bfloat16_base_up_to_its_rounding() -> None:
    base = base_model().bfloat16()
    unlock(base)
    tuned(base, 0.05)
    expected = logits(base)
    fold(base)
    assert {values.dtype for values in base.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(base), expected, rtol=0.1, atol=0.1)


def test_a_pruned_model_folds_once_it_is_plain() -> None:
    base = base_model()
    sparsify(base, "bdwp", "2:8")
    unlock(base)
    tuned(base)
    expected, before = logits(base), base.state_dict()
    with pytest.raises(ParameterError, match=r"model\.layers\.0\.self_attn\.q_proj='NmLinear': is "
                       r"sparse; call unsparsify\(base, prune=True\) before fold\(base\)"):
        fold(base)
    assert base.state_dict().keys() == before.keys() and torch.equal(logits(base), expected)
    unsparsify(base, prune=True)
    fold(base)
    torch.testing.assert_close(logits(base), expected, rtol=1e-2, atol=1e-2)  # products in FP16
    weight = base.model.layers[1].mlp.up_proj.weight
    assert ((weight.view(-1, 8) != 0).sum(1) <= 2).all()


@SIDE
def test_switches_off_and_on_and_out(side: Any) -> None:
    base = base_model().bfloat16()
    own = dict(base.named_parameters())
    expected = logits(base)
    unlock(base, scale_side=side)
    tuned(base)
    learnt = logits(base)
    assert enable_unlocked(base, False) is True
    assert torch.equal(logits(base), expected)
    assert enable_unlocked(base, False) is False
    assert enable_unlocked(base) is False
    assert torch.equal(logits(base), learnt) and not torch.equal(learnt, expected)
    lock(base)
    assert torch.equal(logits(base), expected)
    after = dict(base.named_parameters())
    assert after.keys() == own.keys() and all(after[name] is own[name] for name in own)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())
    unlock(base)


@pytest.mark.parametrize("kinds", [
    {}, {"bias": False, "scale": False}, {"norm": False, "scale": False}])
@pytest.mark.parametrize("copied", [False, True])
def test_locked_again_the_same_parameters_learn(kinds: Any, copied: bool) -> None:
    base = base_model("qwen2")
    frozen = "model.layers.1.mlp.up_proj.weight", "model.layers.2.input_layernorm.weight"
    for name in frozen:
        base.get_parameter(name).requires_grad_(False)
    unlock(base, **kinds)
    assert not base.model.layers[0].self_attn.q_proj.bias.requires_grad
    base = copy.deepcopy(base) if copied else base
    lock(base)
    learns = {name: values.requires_grad for name, values in base.named_parameters()}
    assert learns == {name: name not in frozen for name in learns}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_folded_layers_and_norms_are_frozen(family: str) -> None:
    base = base_model(family)
    unlock(base)
    fold(base)
    assert {name for name, values in base.named_parameters() if values.requires_grad} == {
        "model.embed_tokens.weight", "lm_head.weight"}


@SIDE
def test_prompts_kept_for_inference_follow_what_is_unlocked(side: Any) -> None:
    base = base_model()
    insert_adapter(base, AdapterConfig(layers=2, prompt=5, unlock_bias=True, unlock_scale=True,
                                       scale_side=side))
    open_gates(base)
    tuned(base)
    with torch.no_grad():
        first = logits(base)
        kept = adapters(base)[0]._cached
        assert kept is not None and torch.equal(logits(base), first)
        assert adapters(base)[0]._cached is kept, "made once"
        tuned(base)
        second = logits(base)
        assert not torch.allclose(second, first)
        enable_unlocked(base, False)
        third = logits(base)
    # With gradients, nothing is kept.
    assert torch.equal(logits(base), third)
    enable_unlocked(base)
    assert torch.equal(logits(base), second)


def test_what_cannot_be_unlocked_is_refused() -> None:
    base = base_model()
    before = {name: values.requires_grad for name, values in base.named_parameters()}
    with pytest.raises(ParameterError, match="must be some of norm, bias, scale"):
        unlock(base, norm=False, bias=False, scale=False)
    with pytest.raises(ParameterError, match="scale_side='outputs': must be one of output, input; "
                       "nearest legal value: output"):
        unlock(base, scale_side="outputs")  # type: ignore[arg-type]
    other: Any = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16,
                                            bos_token_id=1, eos_token_id=2))
    with pytest.raises(ParameterError, match="base='GPT2LMHeadModel': must be a Llama-family"):
        unlock(other)
    assert before == {name: values.requires_grad for name, values in base.named_parameters()}
    unlock(base, bias=False)
    with pytest.raises(ParameterError, match=r"is unlocked already; lock\(base\) first"):
        unlock(base)
    with pytest.raises(ParameterError, match=r"is unlocked already; lock\(base\) first"):
        insert_adapter(base, AdapterConfig(layers=1, prompt=2))
    assert count_unlocked(base).bias == 0 and not hasattr(base, "adapter")
