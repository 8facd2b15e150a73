"""SparsityCallback: what a loop written by hand does, the Trainer of transformers does too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from algorithms import (
    NmLayer,
    Schedule,
    SparseHandle,
    decay_pruned,
    get_method,
    plan_model,
    sparsify,
    unsparsify,
)
from algorithms.diagnostics.monitor import Monitor
from algorithms.trainer import SparsityCallback
from rtl.errors import ParameterError

pytestmark = [
    # accelerate pins memory of data loaders whether or not there is an accelerator.
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
]

IDS = torch.randint(64, (8, 9), generator=torch.Generator().manual_seed(1))
SRSTE = get_method("srste", decay=0.5)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, use_cache=False))


def trainer(
    folder: Path, model: nn.Module, callback: SparsityCallback, **options: Any
) -> Trainer:
    """Full batches of IDS with plain gradient descent, unless told otherwise."""
    settings: dict[str, Any] = {
        "max_steps": 4, "per_device_train_batch_size": 8, "optim": "sgd", "learning_rate": 0.2,
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "logging_steps": 1,
        "save_strategy": "no"}
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True,
        **settings | options)
    rows: Any = [{"input_ids": row, "labels": row} for row in IDS]
    return Trainer(model, arguments, train_dataset=rows, callbacks=[callback])


def by_hand(model: LlamaForCausalLM, steps: int) -> list[Tensor]:
    """Weights after the steps that the Trainer is to make."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        decay_pruned(model)
        optimiser.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def close(model: nn.Module, expected: list[Tensor]) -> None:
    for parameter, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", [8, 4])
def test_decay_is_that_of_a_loop_by_hand_whatever_the_accumulation(
    batch: int, tmp_path: Path
) -> None:
    reference, model = llama(), llama()
    sparsify(reference, SRSTE, "2:8", precision="native")
    expected = by_hand(reference, 3)
    handle = sparsify(model, SRSTE, "2:8", precision="native")
    run = trainer(tmp_path, model, SparsityCallback(handle), per_device_train_batch_size=batch,
                  gradient_accumulation_steps=8 // batch, max_steps=2)
    run.train()
    run.args.max_steps = 1
    run.train()  # a second training does not decay twice
    close(model, expected)
    assert handle.steps == 1


@pytest.mark.parametrize("method", ["dense", "bdwp", "srste"])
def test_loss_falls_and_the_checkpoint_is_a_dense_one(method: str, tmp_path: Path) -> None:
    model = llama()
    keys = list(model.state_dict())
    handle = sparsify(model, method, "2:8", precision="native")
    monitor = Monitor(handle, every=3)
    run = trainer(tmp_path, model, SparsityCallback(handle, monitor), optim="adamw_torch",
                  learning_rate=3e-3, max_steps=6, bf16=True, activation_checkpointing=True)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.3
    shares = {entry["sparsity_ff"] for entry in run.state.log_history}
    assert shares == {0.0} if method == "dense" else min(shares) > 0.5
    assert monitor.steps == 6 and ("mask_sad/FF" in monitor.scalars) == (method != "dense")

    run.save_model()
    loaded = LlamaForCausalLM.from_pretrained(str(tmp_path))
    assert list(loaded.state_dict()) == keys
    assert type(loaded.model.layers[0].mlp.up_proj) is nn.Linear
    assert all(torch.equal(tensor, loaded.state_dict()[key].to(tensor.dtype))
               for key, tensor in model.state_dict().items())
    sparsify(loaded, method, "2:8", precision="native")
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as accelerate left it on the trained one
        assert torch.equal(loaded(input_ids=IDS).logits.float(), model(input_ids=IDS).logits)


def scheduled(model: nn.Module) -> SparseHandle:
    return sparsify(model, SRSTE, "2:8", precision="native",
                    schedule=Schedule(6, warmup=0.34, gradual=0.34))


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    model, resumed = llama(), llama()
    whole = trainer(tmp_path, model, SparsityCallback(scheduled(model)), max_steps=6,
                    save_strategy="steps", save_steps=4)
    whole.train()
    phases = [entry["sparsity_ff"] for entry in whole.state.log_history if "loss" in entry]
    assert phases[0] == 0 and phases == sorted(phases) and len(set(phases)) == 3

    handle = scheduled(resumed)
    assert all(plan.is_dense for plan in handle.plans().values())
    run = trainer(tmp_path, resumed, SparsityCallback(handle), max_steps=6)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert handle.steps == 6 and not handle.plans()["model.layers.1.mlp.up_proj"].is_dense
    assert [entry["sparsity_ff"] for entry in run.state.log_history if "loss" in entry] == phases
    close(resumed, [parameter.detach() for parameter in model.parameters()])


def test_decay_is_free_of_the_loss_scale(tmp_path: Path) -> None:
    layer = nn.Linear(16, 16)
    callback = SparsityCallback(sparsify(layer, SRSTE, "2:8", rules={"*": "2:8"}))
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    callback.on_train_begin(arguments, TrainerState(), TrainerControl(), optimizer=optimiser)
    assert isinstance(layer, NmLayer)
    before, mask = layer.weight.detach().clone(), layer.forward_mask()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(layer(torch.ones(2, 16)).sum() * 0).backward()
    scaler.step(optimiser)
    torch.testing.assert_close(layer.weight, torch.where(mask, before, before * (1 - 0.1 * 0.5)))
    callback.on_train_end(arguments, TrainerState(), TrainerControl())
    assert not optimiser._optimizer_step_pre_hooks


def test_an_optimiser_that_cannot_be_hooked_is_refused(tmp_path: Path) -> None:
    model = llama()
    callback = SparsityCallback(sparsify(model))
    run = trainer(tmp_path, model, callback)
    with pytest.raises(ParameterError, match=r"^optimizer='NoneType': must be a torch\.optim"):
        callback.on_train_begin(run.args, run.state, run.control, optimizer=None)


def test_the_trained_model_becomes_plain_again(tmp_path: Path) -> None:
    model = llama()
    callback = SparsityCallback(scheduled(model))
    trainer(tmp_path, model, callback, max_steps=1).train()
    unsparsify(model)
    assert all(row.kind == "Linear" for row in plan_model(model).layers)
    callback.handle.step()  # has no layer left to put into a phase
    assert callback.handle.plans() == {}
