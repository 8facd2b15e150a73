"""LoRA of PEFT on sparse models, and sparsity on models with LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from algorithms import NmLayer, NmLinear, Schedule, sparse_layers, sparsify, unsparsify

pytestmark = [
    # PEFT asks transformers by a name that transformers has replaced.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]

IDS = torch.randint(64, (2, 7), generator=torch.Generator().manual_seed(1))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, use_cache=False))


def adapted(base: nn.Module, *targets: str) -> Any:
    """``base`` with LoRA of rank 8 whose product is not zero, the same at every call."""
    torch.manual_seed(3)
    config = LoraConfig(r=8, target_modules=list(targets or ("q_proj", "v_proj")),
                        task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(base, config)


def logits(model: nn.Module) -> Tensor:
    out: Tensor = model(input_ids=IDS).logits
    return out


def train(model: nn.Module, steps: int, rate: float = 0.05) -> None:
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimiser.step()


def test_base_layers_are_swapped_and_adapters_stay_dense() -> None:
    model = adapted(llama())
    handle = sparsify(model, "bdwp", "2:8", precision="native")
    notes = {row.name.removeprefix("base_model.model."): row.note for row in handle.layers}
    adapters = [name for name, note in notes.items() if note == "adapter of low rank"]
    assert len(adapters) == 8 and all(".lora_A." in name or ".lora_B." in name for name in adapters)
    assert notes["model.layers.0.self_attn.q_proj.base_layer"] == "first linear layer"
    assert notes["lm_head"] == "last linear layer" and len(handle.sparse_layers) == 13
    assert type(model.base_model.model.model.layers[1].self_attn.v_proj.base_layer) is NmLinear
    unsparsify(model)
    again = sparsify(model, "bdwp", "2:8", rules={"*.lora_A.*": "2:8"})
    assert len(again.sparse_layers) == 17


def test_an_adapter_at_the_end_is_not_the_last_layer() -> None:
    handle = sparsify(adapted(llama(), "q_proj", "lm_head"), "bdwp", "2:8")
    notes = {row.name.removeprefix("base_model.model."): row.note for row in handle.layers}
    assert notes["lm_head.base_layer"] == "last linear layer"
    assert notes["lm_head.lora_B.default"] == "adapter of low rank"


def test_either_order_gives_the_same_model() -> None:
    first, second = llama(), adapted(llama())
    sparsify(first, "bdwp", "2:8", precision="native")
    sparsify(second, "bdwp", "2:8", precision="native")
    first = adapted(first)
    assert type(first.base_model.model.model.layers[1].self_attn.v_proj.base_layer) is NmLinear
    assert torch.equal(logits(first), logits(second))
    assert not torch.equal(logits(first), logits(adapted(llama())))
    for model in (first, second):
        train(model, 2)
    # PEFT makes the adapters of the first after the swap: plain layers, and dense in both.
    torch.testing.assert_close(logits(first), logits(second))


def test_a_frozen_base_costs_no_masks_no_update_and_no_activations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    derive = NmLayer._derive

    def counted(self: NmLayer, *args: object) -> object:
        made.append(id(self))
        return derive(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(NmLayer, "_derive", counted)
    base = llama()
    sparsify(base, "bdwp", "2:8", precision="native")
    model = adapted(base)
    train(model, 3)
    assert len(made) == len(set(made)) == 15
    assert all(layer.weight.grad is None for _, layer in sparse_layers(model))

    layer = base.model.layers[1].self_attn.v_proj.base_layer
    one = 2 * IDS.numel() * layer.weight.numel()
    frozen, frozen_flops = held_for_backward(model), backward_flops(layer)
    base.requires_grad_(True)
    assert frozen < held_for_backward(model)
    assert (frozen_flops, backward_flops(layer)) == (one, 2 * one)


def held_for_backward(model: nn.Module) -> int:
    """Bytes of distinct tensors."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=IDS, labels=IDS)
    return sum(held.values())


def backward_flops(layer: nn.Module) -> int:
    """Of one layer whose input needs a gradient."""
    y = layer(torch.randn(*IDS.shape, 64, requires_grad=True)).sum()
    with FlopCounterMode(display=False) as flops:
        y.backward()
    return int(flops.get_total_flops())


def test_a_schedule_goes_on_when_layers_get_wrapped() -> None:
    base = llama()
    handle = sparsify(base, "bdwp", "2:8", schedule=Schedule(10, warmup=0.3))
    model = adapted(base)
    assert all(plan.is_dense for plan in handle.plans().values())
    handle.step(5)
    plan = handle.plans()["model.layers.1.self_attn.v_proj.base_layer"]
    assert str(plan.forward.pattern) == "2:8 25.0%" or str(plan.forward.pattern) == "2:8"
    assert len(dict(sparse_layers(model))) == 15


def test_an_adapter_can_be_switched_off_saved_and_loaded(tmp_path: Path) -> None:
    base = llama()
    sparsify(base, "bdwp", "2:8", precision="native")
    bare = logits(base)
    model = adapted(base)
    train(model, 1)
    trained = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), bare)
    assert torch.equal(logits(model), trained) and not torch.equal(trained, bare)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)

    again = llama()
    sparsify(again, "bdwp", "2:8", precision="native")
    loaded = PeftModel.from_pretrained(again, str(tmp_path))
    assert torch.equal(logits(loaded), trained)
    plain = PeftModel.from_pretrained(llama(), str(tmp_path))  # nothing of ours in the file
    assert sorted(plain.state_dict()) == sorted(loaded.state_dict())


def test_merging_prunes_the_sum_of_weights_and_adapter() -> None:
    model = adapted(llama())
    expected = adapted(llama()).merge_and_unload()
    sparsify(expected, "bdwp", "2:8", precision="native")
    handle = sparsify(model, "bdwp", "2:8", precision="native")
    before = logits(model)
    merged = model.merge_and_unload()
    handle.refresh()  # PEFT merges through .data, unseen
    assert type(merged.model.layers[1].self_attn.v_proj) is NmLinear
    assert torch.equal(logits(merged), logits(expected))
    assert not torch.allclose(logits(merged), before)


def test_merging_after_unsparsify_keeps_what_the_model_computes() -> None:
    model = adapted(llama())
    sparsify(model, "bdwp", "2:8", precision="native")
    expected = logits(model)
    unsparsify(model, prune=True)
    merged = model.merge_and_unload()
    assert type(merged.model.layers[1].self_attn.v_proj) is nn.Linear
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)
