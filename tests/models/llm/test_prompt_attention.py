"""Prompt attention: the base at first, bit for bit, then the paper's formula, caches or not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapter_bases import (
    FAMILIES,
    HEADS,
    IDS,
    adapted,
    adapters,
    base_model,
    direct,
    open_gates,
    padded,
    tokenwise,
)
from torch import Tensor, nn
from torch.func import functional_call

from algorithms import sparsify
from models.llm.adapter import AdapterConfig, insert_adapter
from models.llm.prompt_attention import misfit

FAMILY = pytest.mark.parametrize("family", FAMILIES)
GATED = pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
KERNEL = pytest.mark.parametrize("kernel", ["sdpa", "eager"])
EXACT: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
WINDOW = {"mistral": 3}


def logits(model: nn.Module, ids: Tensor = IDS, **options: Any) -> Tensor:
    out: Tensor = model(input_ids=ids, **options).logits
    return out


def loss(model: nn.Module) -> Tensor:
    """A number that every logit has a part in."""
    return logits(model).logsumexp(-1).sum()


def backward(model: nn.Module) -> None:
    model.zero_grad()
    loss(model).backward()  # type: ignore[no-untyped-call]


def generated(model: Any, ids: Tensor, mask: Tensor, use_cache: bool = True) -> Any:
    """Greedy, with the logits of every step."""
    return model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=6,
                          return_dict_in_generate=True, output_logits=True, pad_token_id=0,
                          use_cache=use_cache)


@FAMILY
@KERNEL
def test_first_logits_are_the_bases_bit_for_bit(family: str, kernel: str) -> None:
    # PyTorch multiplies strided rows by weights that learn and by frozen ones in other kernels.
    base = base_model(family).requires_grad_(False)
    base.set_attn_implementation(kernel)
    ids, mask = padded()
    expected = [logits(base), logits(base, ids, attention_mask=mask), tokenwise(base)]
    answers = generated(base, ids, mask)
    model = adapted(family, opened=False)
    model.set_attn_implementation(kernel)
    found = [logits(model), logits(model, ids, attention_mask=mask), tokenwise(model)]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    ours = generated(model, ids, mask)
    assert torch.equal(ours.sequences, answers.sequences)
    assert all(torch.equal(*pair) for pair in zip(ours.logits, answers.logits, strict=True))
    open_gates(model)
    assert (logits(model) - expected[0]).abs().max() > 1e-2


@FAMILY
@KERNEL
@pytest.mark.parametrize("cached", [False, True], ids=["whole", "tokenwise"])
@GATED
def test_attention_is_the_papers(family: str, kernel: str, cached: bool, gated: bool) -> None:
    model = adapted(family, gated=gated)
    model.set_attn_implementation(kernel)
    seen: dict[Any, list[tuple[Tensor, Tensor]]] = {}
    for attention in [layer.self_attn for layer in model.model.layers[1:]]:
        attention.register_forward_hook(
            lambda module, _, given, out: seen.setdefault(module, []).append(
                (given["hidden_states"], out[0])), with_kwargs=True)
    with torch.no_grad():
        tokenwise(model) if cached else logits(model)
    assert len(seen) == 2
    for attention, pieces in seen.items():
        assert len(pieces) == (5 if cached else 1)
        x, mixed = (torch.cat(parts, 1).double() for parts in zip(*pieces, strict=True))
        torch.testing.assert_close(mixed, direct(attention, x, WINDOW.get(family)), **EXACT)
        # A tolerance that would also pass without prompts shows nothing.
        nn.init.zeros_(attention.adapter.gate if gated else attention.adapter.prompt)
        assert (mixed - direct(attention, x, WINDOW.get(family))).abs().max() > 1e-3


@pytest.mark.parametrize("gate", ["head", "scalar"])
@pytest.mark.parametrize("tanh", [True, False])
def test_gates_are_what_the_configuration_says(gate: str, tanh: bool) -> None:
    model = adapted(gate=gate, tanh=tanh)
    attention = model.model.layers[2].self_attn
    assert attention.adapter.gate.shape == (HEADS if gate == "head" else 1,)
    seen: list[tuple[Tensor, Tensor]] = []
    attention.register_forward_hook(
        lambda _, __, given, out: seen.append((given["hidden_states"], out[0])), with_kwargs=True)
    logits(model)
    x, mixed = seen[0]
    torch.testing.assert_close(mixed.double(), direct(attention, x.double()), **EXACT)


@pytest.mark.parametrize("family", ["llama", "llama-mha", "mistral", "qwen2"])
@KERNEL
def test_caches_change_nothing(family: str, kernel: str) -> None:
    model = adapted(family)
    model.set_attn_implementation(kernel)
    with torch.no_grad():
        kept = tokenwise(model)
    assert all(adapter._cached is not None for adapter in adapters(model))
    torch.testing.assert_close(kept, logits(model), **EXACT)
    assert all(adapter._cached is None for adapter in adapters(model))  # that was a training pass


@KERNEL
@GATED
def test_padding_in_front_changes_nothing(kernel: str, gated: bool) -> None:
    model = adapted(gated=gated)
    model.set_attn_implementation(kernel)
    ids, mask = padded()
    # Rotated queries meet prompt keys that are not, so positions must be those without padding.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = logits(model, ids, attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(found[0, 3:], logits(model)[0], **EXACT)
    torch.testing.assert_close(found[1, 5:], logits(model, IDS[1:, 2:])[0], **EXACT)
    answers = generated(model, ids, mask)
    for row, alone in enumerate([IDS[:1], IDS[1:, 2:]]):
        one = generated(model, alone, torch.ones_like(alone))
        assert torch.equal(answers.sequences[row, ids.shape[1]:], one.sequences[0, alone.shape[1]:])
        torch.testing.assert_close(answers.logits[-1][row], one.logits[-1][0], **EXACT)


@GATED
def test_generation_with_and_without_a_cache_is_the_same(gated: bool) -> None:
    model, (ids, mask) = adapted(gated=gated), padded()
    kept, whole = (generated(model, ids, mask, use_cache=use) for use in (True, False))
    assert torch.equal(kept.sequences, whole.sequences)
    for pair in zip(kept.logits, whole.logits, strict=True):
        torch.testing.assert_close(*pair, **EXACT)
    several = model.generate(ids, attention_mask=mask, num_beams=2, num_return_sequences=2,
                             do_sample=False, max_new_tokens=3, pad_token_id=0)
    assert len(several) == 4


def _load(model: Any) -> None:
    model.load_state_dict({name: values + 0.1 for name, values in model.state_dict().items()})


def _step(model: Any) -> None:
    backward(model)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()


def _step_through_data(model: Any) -> None:
    backward(model)
    for adapter in adapters(model):
        adapter.prompt.data.add_(0.5)


def _project(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[2].self_attn.k_proj.weight.mul_(0.5)


def _exchange(model: Any) -> None:
    adapters(model)[0].prompt = nn.Parameter(torch.ones(5, 48))


def _prune(model: Any) -> None:
    sparsify(model, "bdwp", "2:8", {"*": "2:8"}, precision="native")


def _hook(model: Any) -> None:
    model.model.layers[2].self_attn.v_proj.register_forward_hook(lambda _, __, out: out * 2)


@pytest.mark.parametrize("change", [
    _load, _step, _step_through_data, _project, _exchange, _prune, _hook])
def test_kept_keys_and_values_never_outlive_what_they_were_made_from(
    change: Callable[[Any], None],
) -> None:
    model = adapted()
    with torch.no_grad():
        before = tokenwise(model)
    change(model)
    expected = logits(copy.deepcopy(model))  # keeps nothing
    assert (expected - before).abs().max() > 1e-4
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(tokenwise(model), expected, **EXACT)


def test_kept_keys_and_values_follow_the_dtype() -> None:
    model = adapted()
    with torch.no_grad():
        tokenwise(model)
        model.bfloat16()
        assert tokenwise(model).dtype == torch.bfloat16
        model.double()
        torch.testing.assert_close(tokenwise(model), logits(model), rtol=1e-10, atol=1e-10)
    assert all(p.dtype == torch.float64 for p in model.parameters())
    with torch.inference_mode():
        kept = tokenwise(model)
    torch.testing.assert_close(kept, logits(model), rtol=1e-10, atol=1e-10)


def test_prompts_are_projected_once_for_all_tokens() -> None:
    model, calls = adapted(), list[int]()
    project = model.model.layers[2].self_attn.k_proj
    original = project.forward

    def counted(rows: Tensor) -> Any:
        calls.append(rows.shape[1])
        return original(rows)

    project.forward = counted
    with torch.no_grad():
        generated(model, IDS, torch.ones_like(IDS))
    assert calls == [7, 5, *[1] * 5]


def test_adapters_stay_float32_on_a_bfloat16_base() -> None:
    base = base_model().bfloat16()
    expected = logits(base)
    insert_adapter(base, AdapterConfig(layers=3, prompt=5))
    assert expected.dtype == torch.bfloat16 and torch.equal(logits(base), expected)
    open_gates(base)
    backward(base)
    for adapter in adapters(base):
        for values in (adapter.prompt, adapter.gate):
            assert values.dtype == torch.float32
            assert values.grad is not None and values.grad.any()


@FAMILY
def test_gates_learn_first_and_prompts_next(family: str) -> None:
    model = adapted(family, opened=False)
    backward(model)
    for adapter in adapters(model):
        assert adapter.gate.grad.all()
        assert not adapter.prompt.grad.any()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    optimiser.step()
    backward(model)
    assert all(adapter.prompt.grad.any(1).all() for adapter in adapters(model))


@pytest.mark.parametrize("opened", [False, True])
def test_gradient_of_a_gate_is_the_derived_one(opened: bool) -> None:
    # dL/dg_h = (1 - tanh^2 g_h) sum(dO_h * O_pr,h), over batch, tokens and features of the head.
    model = adapted(opened=opened).double()
    attention = model.model.layers[2].self_attn
    seen: dict[str, Tensor] = {}
    attention.o_proj.register_full_backward_hook(
        lambda _, grads, __: seen.update(mixed=grads[0]))
    attention.register_forward_pre_hook(
        lambda _, __, given: seen.update(x=given["hidden_states"].detach(),
                                         rotary=given["position_embeddings"]), with_kwargs=True)
    backward(model)
    d_mixed = torch.unflatten(seen["mixed"], -1, (HEADS, -1))
    cos, sin = seen["rotary"]
    query = (attention.q_proj(seen["x"])).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    half = query.shape[-1] // 2
    turned = torch.cat([-query[..., half:], query[..., :half]], -1)
    query = query * cos.unsqueeze(1) + turned * sin.unsqueeze(1)
    prompt = attention.adapter.prompt
    key, value = (project(prompt).unflatten(-1, (2, -1)).transpose(0, 1).repeat_interleave(2, 0)
                  for project in (attention.k_proj, attention.v_proj))
    shares = (query @ key.mT / 8 ** 0.5).softmax(-1) @ value
    expected = ((1 - attention.adapter.gate.tanh() ** 2)
                * (d_mixed.transpose(1, 2) * shares).sum((0, 2, 3)))
    torch.testing.assert_close(attention.adapter.gate.grad, expected.detach(),
                               rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "llama-mha", "llama-bias"])
@pytest.mark.parametrize("gate", ["head", "scalar"])
@pytest.mark.parametrize("tanh", [True, False])
def test_gradients_are_those_of_differences(family: str, gate: str, tanh: bool) -> None:
    # Without families that normalise keys: transformers does so in float32.
    attention = adapted(family, gate=gate, tanh=tanh).double().model.layers[2].self_attn
    adapter = attention.adapter
    query = torch.randn(2, HEADS, 3, attention.head_dim, dtype=torch.float64, requires_grad=True)

    def added(prompt: Tensor, gates: Tensor, asked: Tensor) -> Any:
        return functional_call(adapter, {"prompt": prompt, "gate": gates}, (attention, asked, None))

    assert torch.autograd.gradcheck(added, (adapter.prompt, adapter.gate, query))


@KERNEL
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(kernel: str, reentrant: bool) -> None:
    plain, checkpointed = adapted(), adapted()
    for model in (plain, checkpointed):
        model.set_attn_implementation(kernel)
    checkpointed.activation_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed.train()
    if reentrant:
        checkpointed.enable_input_require_grads()
    assert checkpointed.is_activation_checkpointing
    for model in (plain, checkpointed):
        backward(model)
    for ours, theirs in zip(adapters(checkpointed), adapters(plain), strict=True):
        torch.testing.assert_close(ours.prompt.grad, theirs.prompt.grad)
        torch.testing.assert_close(ours.gate.grad, theirs.gate.grad)


def test_misfits_say_what_is_missing() -> None:
    attention = base_model("qwen3").model.layers[0].self_attn
    assert misfit(attention) == ""
    other = copy.deepcopy(attention)
    other.v_norm = nn.LayerNorm(8)
    assert misfit(other) == "has a v_norm that prompts do not know"
    other = copy.deepcopy(attention)
    other.k_norm = nn.LayerNorm(4)
    assert misfit(other) == "has a k_norm that prompts do not know"
    other = copy.deepcopy(attention)
    other.is_causal = False
    assert misfit(other) == "is not causal"
    other = copy.deepcopy(attention)
    other.o_proj = nn.Identity()
    assert misfit(other) == "has no linear layer o_proj"
