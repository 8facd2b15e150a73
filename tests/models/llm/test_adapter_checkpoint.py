"""Adapters in files: exact round trips, sizes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_bases import IDS, adapted, adapters, base_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from algorithms import ParameterError
from models.llm.adapter import (
    AdapterConfig,
    adapter_parameters,
    adapter_root,
    image_context,
    insert_adapter,
)
from models.llm.checkpoint import CONFIG, TENSORS, load_adapter, save_adapter
from models.llm.llama import Llama, llama_adapter

IMAGES: dict[str, Any] = {"visual": "late", "image_width": 12, "image_hidden": 6}


def logits(model: nn.Module) -> Tensor:
    out: Tensor = model(input_ids=IDS).logits
    return out


@pytest.mark.parametrize("values", [
    {}, {"gate": "scalar", "tanh": False}, {"zero_init": False, "prompt": 3}, {"gated": False},
    IMAGES])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_round_trips_are_exact(tmp_path: Path, family: str, values: dict[str, Any]) -> None:
    model = adapted(family, **values)
    save_adapter(Llama(model), tmp_path / "new" / "folder")
    other = base_model(family)
    root = load_adapter(other, tmp_path / "new" / "folder")
    assert root is adapter_root(other) and root.config == adapter_root(model).config
    wanted, found = adapter_parameters(model), adapter_parameters(other)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(values.requires_grad == (name in found) for name, values in other.named_parameters())
    assert torch.equal(logits(other), logits(model))
    if values is IMAGES:
        features = torch.ones(2, 12)
        with image_context(model, features), image_context(other, features):
            assert torch.equal(logits(other), logits(model))


def test_loading_draws_nothing(tmp_path: Path) -> None:
    save_adapter(adapted(zero_init=False), tmp_path)
    base = base_model()
    state = torch.get_rng_state()
    load_adapter(base, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_adapter_of_a_bfloat16_base_is_saved_in_float32(tmp_path: Path) -> None:
    base = base_model().bfloat16()
    insert_adapter(base, AdapterConfig(layers=2, prompt=5))
    save_adapter(base, tmp_path)
    assert {values.dtype for values in load_file(tmp_path / TENSORS).values()} == {torch.float32}
    other = base_model().bfloat16()
    load_adapter(other, tmp_path)
    assert all(torch.equal(ours.prompt, theirs.prompt)
               for ours, theirs in zip(adapters(other), adapters(base), strict=True))


def test_an_adapter_of_llama_7b_takes_less_than_5_mb(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = llama_adapter("full").base
    with torch.no_grad():
        for name, values in adapter_parameters(model).items():
            owner, _, part = name.rpartition(".")
            setattr(model.get_submodule(owner), part, nn.Parameter(torch.zeros(values.shape)))
    save_adapter(model, tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 4 * 1_229_760 < size < 5_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, TENSORS]


def _without(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _edit(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    contents = json.loads((folder / CONFIG).read_text())
    edit(contents)
    (folder / CONFIG).write_text(json.dumps(contents))


def _tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / TENSORS)
    edit(tensors)
    save_file(tensors, folder / TENSORS)


GATE = "model.layers.2.self_attn.adapter.gate"
DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda at: _without(at, CONFIG), r"adapter_config.json.*cannot be read \(No such file"),
    (lambda at: _without(at, TENSORS), "adapter_model.safetensors': there is no such file"),
    (lambda at: (at / CONFIG).write_text('{"format":\n oops}'), "adapter_config.json:2': is not"),
    (lambda at: (at / CONFIG).write_text("[]"), "must hold a JSON object"),
    (lambda at: (at / TENSORS).write_bytes(b"no tensors here"), "is not a safetensors file"),
    (lambda at: _edit(at, lambda c: c.update(version=2)), "adapter_config.json: version='2'"),
    (lambda at: _edit(at, lambda c: c.pop("base")), "adapter_config.json: base=None: field req"),
    (lambda at: _edit(at, lambda c: c["adapter"].update(prompt=0)), "prompt=0"),
    (lambda at: _edit(at, lambda c: c.update(peft_type="LORA")), "of PEFT; use import_peft"),
    (lambda at: _edit(at, lambda c: c["base"].update(width=64)),
     "base='width 48': the adapter in .* is for another model, width 64"),
    (lambda at: _edit(at, lambda c: c["base"].update(model_type="mistral")),
     "base='model_type llama': .* for another model, model_type mistral"),
    (lambda at: _edit(at, lambda c: c["adapter"].update(layers=3)), "layers.0.* is missing"),
    (lambda at: _edit(at, lambda c: c["adapter"].update(layers=1)), "belongs to no adapter"),
    (lambda at: _tensors(at, lambda t: t.update({GATE: torch.zeros(3)})),
     rf"{GATE}=\(3,\): must have the shape \(4,\)"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    save_adapter(adapted(), tmp_path)
    damage(tmp_path)
    base, reference = base_model(), base_model()
    with pytest.raises(ParameterError, match=message) as caught:
        load_adapter(base, tmp_path)
    assert "\n" not in str(caught.value)
    assert base.state_dict().keys() == reference.state_dict().keys()
    assert all(values.requires_grad for values in base.parameters())
    assert torch.equal(logits(base), logits(reference))


def test_a_model_without_an_adapter_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="has no adapter"):
        save_adapter(base_model(), tmp_path / "none")
    assert not (tmp_path / "none").exists()
