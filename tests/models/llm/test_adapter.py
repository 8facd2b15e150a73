"""Adapters: what they take, insertion and removal, images, gate statistics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from adapter_bases import FAMILIES, HEADS, IDS, adapted, adapters, base_model, open_gates, tokenwise
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from algorithms import ParameterError, sparse_layers, sparsify
from models.llm.adapter import (
    SUPPORTED,
    AdapterConfig,
    adapter_base,
    adapter_parameters,
    adapter_root,
    attentions,
    disabled,
    enable_adapter,
    gate_statistics,
    image_context,
    insert_adapter,
    remove_adapter,
)
from models.llm.llama import Llama

IMAGES: dict[str, Any] = {"visual": "late", "image_width": 12, "image_hidden": 6}
FEATURES = torch.randn(2, 12, generator=torch.Generator().manual_seed(4))


def logits(model: nn.Module) -> Tensor:
    out: Tensor = model(input_ids=IDS).logits
    return out


def test_adapters_alone_train_and_the_base_keeps_its_names() -> None:
    model = adapted()
    trained = {name for name, values in model.named_parameters() if values.requires_grad}
    assert trained == {f"model.layers.{layer}.self_attn.adapter.{name}"
                       for layer in (1, 2) for name in ("prompt", "gate")}
    assert trained == adapter_parameters(model).keys()
    missing, unexpected = model.load_state_dict(base_model().state_dict(), strict=False)
    assert not unexpected and set(missing) == trained
    inside = Llama(model)
    assert adapter_base(inside) is model and adapter_parameters(inside).keys() == trained


def test_families_said_to_be_tested_are() -> None:
    assert {family.partition("-")[0] for family in FAMILIES} == set(SUPPORTED)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "olmo2"])
def test_removal_restores_the_base(family: str) -> None:
    base = base_model(family)
    base.lm_head.requires_grad_(False)
    before, state = logits(base), copy.deepcopy(base.state_dict())
    trainable = [name for name, values in base.named_parameters() if values.requires_grad]
    kinds, config = [type(module) for module in base.modules()], base.config.to_dict()
    insert_adapter(base, AdapterConfig(layers=3, prompt=5))
    open_gates(base)
    assert not torch.equal(logits(base), before)
    remove_adapter(base)
    assert torch.equal(logits(base), before)
    assert [name for name, values in base.named_parameters() if values.requires_grad] == trainable
    assert [type(module) for module in base.modules()] == kinds
    assert base.config.to_dict() == config
    assert all(module.config is base.config for module in attentions(base).values())
    after = base.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)
    insert_adapter(base, AdapterConfig(layers=1, prompt=2))
    assert len(adapters(base)) == 1


def test_a_copy_is_independent() -> None:
    model = adapted(**IMAGES)
    other = copy.deepcopy(model)
    with torch.no_grad():
        expected = tokenwise(model)
        remove_adapter(other)
        assert torch.equal(tokenwise(model), expected)
        other = copy.deepcopy(model)
        adapters(other)[0].prompt.add_(1)
        assert not torch.allclose(tokenwise(other), expected)
        assert torch.equal(tokenwise(model), expected)


def test_switched_off_it_is_the_base() -> None:
    model, base = adapted(), base_model().requires_grad_(False)
    with torch.no_grad():
        on = tokenwise(model)
        with disabled(model):
            assert torch.equal(tokenwise(model), tokenwise(base))
        assert torch.equal(tokenwise(model), on)
        enable_adapter(model, False)
        with disabled(model):
            pass
        assert torch.equal(tokenwise(model), tokenwise(base))
        enable_adapter(model)
        assert torch.equal(tokenwise(model), on)


def test_statistics_of_gates() -> None:
    model = adapted(layers=3)
    gates = [adapter.gate.detach().tanh().abs() for adapter in adapters(model)]
    found = gate_statistics(model)
    assert [row.layer for row in found] == [0, 1, 2]
    assert [row.mean for row in found] == [float(gate.mean()) for gate in gates]
    assert [row.largest for row in found] == [float(gate.max()) for gate in gates]
    raw = adapted(tanh=False, gate="scalar")
    assert gate_statistics(raw)[0].mean == float(adapters(raw)[0].gate.detach().abs())


def test_random_initialisation_acts_from_the_first_step_on() -> None:
    base = base_model()
    before = logits(base)
    torch.manual_seed(7)
    insert_adapter(base, AdapterConfig(layers=2, prompt=5, zero_init=False))
    gates = torch.cat([adapter.gate for adapter in adapters(base)])
    assert gates.shape == (2 * HEADS,) and len(set(gates.tolist())) == 2 * HEADS
    assert 0.3 < gates.std() < 2
    assert (logits(base) - before).abs().max() > 1e-2
    logits(base).sum().backward()  # type: ignore[no-untyped-call]
    assert all(adapter.prompt.grad.any() for adapter in adapters(base))


def test_a_prompt_without_gates_acts_from_the_first_step_on_and_can_be_taken_out() -> None:
    base = base_model().requires_grad_(False)
    before = logits(base)
    insert_adapter(base, AdapterConfig(layers=2, prompt=5, gated=False))
    assert set(adapter_parameters(base)) == {
        f"model.layers.{layer}.self_attn.adapter.prompt" for layer in (1, 2)}
    assert gate_statistics(base) == [] and (logits(base) - before).abs().max() > 1e-2
    logits(base).sum().backward()  # type: ignore[no-untyped-call]
    assert all(values.grad is not None and values.grad.any()
               for values in adapter_parameters(base).values())
    with disabled(base):
        assert torch.equal(logits(base), before)
    remove_adapter(base)
    assert torch.equal(logits(base), before)


def test_images_are_added_to_every_prompt_row() -> None:
    model = adapted(**IMAGES)
    root = adapter_root(model)
    assert {name for name in adapter_parameters(model) if name.startswith("adapter.")} == {
        f"adapter.projection.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")}
    text = logits(model)
    with image_context(model, FEATURES):
        found, wrapped = logits(model), Llama(model)(IDS)
        with torch.no_grad():
            kept = tokenwise(model)
    assert torch.equal(found, wrapped)
    torch.testing.assert_close(kept, found, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), text)
    rows = root(FEATURES)
    assert rows.shape == (2, 1, 48)
    for index in range(2):
        # The same by hand: prompts that have the row in them.
        by_hand = adapted()
        for ours, theirs in zip(adapters(by_hand), adapters(model), strict=True):
            ours.load_state_dict({"prompt": theirs.prompt + rows[index], "gate": theirs.gate})
        torch.testing.assert_close(found[index], logits(by_hand)[index], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, text, atol=1e-3)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_projections_learn_also_when_layers_are_computed_twice(checkpointed: bool) -> None:
    model = adapted(**IMAGES).train()
    if checkpointed:
        model.activation_checkpointing_enable({"use_reentrant": False})
    with image_context(model, FEATURES):
        loss = logits(model).logsumexp(-1).sum()
    # Outside: the passes carry their own images.
    loss.backward()  # type: ignore[no-untyped-call]
    first = adapter_root(model).get_submodule("projection.0").weight.grad
    plain = adapted(**IMAGES)
    with image_context(plain, FEATURES):
        logits(plain).logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    expected = adapter_root(plain).get_submodule("projection.0").weight.grad
    assert isinstance(first, Tensor) and isinstance(expected, Tensor) and expected.any()
    torch.testing.assert_close(first, expected)


def test_several_answers_to_one_image() -> None:
    model = adapted(**IMAGES)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0,
                               "attention_mask": torch.ones_like(IDS)}
    with image_context(model, FEATURES):
        beams = model.generate(IDS, num_beams=3, num_return_sequences=1, **options)
    for index in range(2):
        with image_context(model, FEATURES[index:index + 1]):
            options["attention_mask"] = torch.ones_like(IDS[:1])
            alone = model.generate(IDS[index:index + 1], num_beams=3, **options)
        assert torch.equal(beams[index], alone[0])
    with (image_context(model, FEATURES[:1].expand(3, -1)),
          pytest.raises(ParameterError, match="images=3: must divide the batch of 2 sequences")):
        logits(model)


def test_wrong_images_are_refused() -> None:
    model = adapted(**IMAGES)
    with (image_context(model, FEATURES[:, :5]),
          pytest.raises(ParameterError, match=r"images=\(2, 5\): must be \(batch, 12\)")):
        logits(model)
    text = adapted()
    with (image_context(text, FEATURES),
          pytest.raises(ParameterError, match="this adapter takes none; insert it with visual=")):
        logits(text)


def test_sparse_bases_stay_what_they_are() -> None:
    base, other = base_model(), base_model()
    for model in (base, other):
        sparsify(model, "bdwp", "2:8", {"*.q_proj": "2:8"}, precision="native")
    expected = logits(other.requires_grad_(False))
    insert_adapter(base, AdapterConfig(layers=2, prompt=5, **IMAGES))
    assert torch.equal(logits(base), expected)
    late = adapted(**IMAGES)
    sparsify(late, "bdwp", "2:8", {"*.q_proj": "2:8"}, precision="native")
    assert all("adapter" not in name or layer.nm_plan.forward.pattern.is_dense
               for name, layer in sparse_layers(late))
    assert dict(sparse_layers(late)).keys() >= dict(sparse_layers(base)).keys()


@pytest.mark.parametrize(("kind", "shape", "why"), [
    ("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 8},
     "no attention with q_proj, k_proj, v_proj, o_proj"),
    ("opt", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 8,
             "vocab_size": 8, "word_embed_proj_dim": 16}, "no attention with q_proj"),
    ("phi3", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "num_key_value_heads": 2, "intermediate_size": 8, "vocab_size": 8,
              "pad_token_id": 0}, "no attention with q_proj"),
    ("gptj", {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 8, "rotary_dim": 4},
     "no attention with q_proj"),
])
def test_unknown_families_are_refused_by_name(kind: str, shape: dict[str, Any], why: str) -> None:
    made: Any = AutoModelForCausalLM  # untyped
    base = made.from_config(AutoConfig.for_model(kind, **shape))
    before = set(base.state_dict())
    message = rf"base='{kind}': adapters do not fit this family \({why}.*supported: llama, mistral"
    with pytest.raises(ParameterError, match=f"{message}, qwen2, qwen3, olmo2 and others"):
        insert_adapter(base, AdapterConfig(layers=1, prompt=2))
    assert set(base.state_dict()) == before
    assert all(values.requires_grad for values in base.parameters())


def test_bad_parameters_are_refused() -> None:
    base = base_model()
    with pytest.raises(ParameterError, match=r"layers=4: must be from 1 to 3; nearest .*: 3"):
        insert_adapter(base, AdapterConfig(layers=4, prompt=5))
    assert all(values.requires_grad for values in base.parameters()) and not adapters(base)
    for values, message in (
        ({"layers": 0, "prompt": 5}, r"layers=0: input should be greater than .* legal value: 1"),
        ({"layers": 1, "prompt": 0}, r"prompt=0: .*nearest legal value: 1"),
        ({"layers": 1}, "prompt=None: field required"),
        ({"layers": 1, "prompt": 1, "gate": "row"}, "gate='row': input should be 'head' or"),
        ({"layers": 1, "prompt": 1, "gates": "head"}, "gates='head': .*legal value: gate"),
        ({"layers": 1, "prompt": 1, "visual": "late"}, "image_width=0: must be above 0"),
        ({"layers": 1, "prompt": 1, "image_width": 3}, "image_width=3: must be above 0 .*without"),
        ({"layers": 1, "prompt": 1, "gated": False, "visual": "late", "image_width": 3},
         "visual='late': must be 'none' without gates; nearest legal value: none"),
    ):
        with pytest.raises(ParameterError, match=message):
            AdapterConfig.make(**values)
    insert_adapter(base, AdapterConfig(layers=1, prompt=5))
    with pytest.raises(ParameterError, match="has an adapter; remove_adapter"):
        insert_adapter(base, AdapterConfig(layers=1, prompt=5))
    for ask in (remove_adapter, adapter_parameters, gate_statistics, adapter_root, enable_adapter):
        with pytest.raises(ParameterError, match="has no adapter; insert_adapter"):
            ask(base_model())
