"""Adaption prompts of PEFT: theirs here and ours there compute the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_bases import IDS, adapted, adapters, base_model, open_gates
from peft import AdaptionPromptConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from algorithms import ParameterError
from models.llm.adapter import AdapterConfig, adapter_root, insert_adapter
from models.llm.checkpoint import CONFIG, TENSORS
from models.llm.peft_prompt import PEFT_TYPES, export_peft, import_peft

pytestmark = [
    # PEFT asks transformers by a name that transformers has replaced.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]

FAMILY = pytest.mark.parametrize("family", PEFT_TYPES)
EXACT: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def base(family: str = "llama") -> Any:
    """Heads of width / heads features, which PEFT takes for granted."""
    return base_model(family, head_dim=12)


def ours(family: str = "llama", **values: Any) -> Any:
    model = base(family)
    insert_adapter(model, AdapterConfig.make(
        **{"layers": 2, "prompt": 5, "gate": "scalar", **values}))
    open_gates(model)
    return model


def theirs(family: str = "llama") -> Any:
    model = get_peft_model(base(family), AdaptionPromptConfig(
        adapter_len=5, adapter_layers=2, task_type="CAUSAL_LM"))
    torch.manual_seed(6)
    for name, values in model.named_parameters():
        if name.endswith("adaption_gate"):
            nn.init.normal_(values)
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    out: Tensor = model(input_ids=IDS).logits
    return out


@FAMILY
def test_theirs_here(tmp_path: Path, family: str) -> None:
    model = theirs(family)
    model.save_pretrained(tmp_path)
    here = base(family)
    root = import_peft(here, tmp_path)
    assert (root.config.gate, root.config.tanh, root.config.prompt) == ("scalar", False, 5)
    torch.testing.assert_close(logits(here), logits(model), **EXACT)
    assert (logits(here) - logits(base(family))).abs().max() > 1e-2


@FAMILY
@pytest.mark.parametrize("tanh", [True, False])
def test_ours_there(tmp_path: Path, family: str, tanh: bool) -> None:
    model = ours(family, tanh=tanh)
    export_peft(model, tmp_path)
    there = PeftModel.from_pretrained(base(family), str(tmp_path)).eval()
    torch.testing.assert_close(logits(there), logits(model), **EXACT)
    assert (logits(there) - logits(base(family))).abs().max() > 1e-2
    again = base(family)
    import_peft(again, tmp_path)
    torch.testing.assert_close(logits(again), logits(model), **EXACT)


def test_files_have_peft_s_keys_and_shapes(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path / "theirs")
    export_peft(ours(), tmp_path / "ours")
    shapes = [{name: tuple(values.shape) for name, values in load_file(at / TENSORS).items()}
              for at in (tmp_path / "theirs", tmp_path / "ours")]
    assert shapes[0] == shapes[1]
    assert shapes[1]["base_model.model.model.layers.2.self_attn.adaption_prompt"] == (1, 5, 48)
    assert len(shapes[1]) == 4
    kept = load_file(tmp_path / "ours" / TENSORS)
    gate = adapters(ours())[1].gate.detach()
    assert torch.equal(kept["base_model.model.model.layers.2.self_attn.adaption_gate"], gate.tanh())


def test_what_peft_has_no_counterpart_for_is_refused(tmp_path: Path) -> None:
    for model, message in (
        (ours(gated=False), "gated=False: PEFT has no prompts without gates; nearest .*: True"),
        (ours(gate="head"), "gate='head': PEFT has one gate a layer"),
        (ours(visual="late", image_width=4), "visual='late': PEFT has no prompts with images"),
        (ours("qwen2"), "base='qwen2': PEFT has adaption prompts for llama and mistral of"),
        (ours("llama-bias"), "layers.0.self_attn.o_proj.bias': PEFT adds it twice"),
        (adapted(gate="scalar"), "head_dim 8': PEFT takes heads for width / head_dim"),
    ):
        with pytest.raises(ParameterError, match=message):
            export_peft(model, tmp_path / "none")
        assert not (tmp_path / "none").exists()


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path)
    for family, message in (("qwen2", "PEFT has adaption prompts"), ("llama-bias", "twice")):
        with pytest.raises(ParameterError, match=message):
            import_peft(base(family), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    model = base()
    for changes, message in (
        ({"peft_type": "LORA"}, "'LORA': must have the peft_type ADAPTION_PROMPT"),
        ({"target_modules": "attn"}, "'attn': must have the target_modules self_attn"),
        ({"adapter_len": 0}, "prompt=0"), ({"adapter_layers": None}, "layers=None"),
        ({"adapter_layers": 4}, "layers=4: must be from 1 to 3"),
        ({"adapter_len": 6}, r"prompt=\(5, 48\): must have the shape \(6, 48\)"),
        ({"adapter_layers": 3}, "layers.0.* is missing"),
    ):
        (tmp_path / CONFIG).write_text(json.dumps({**config, **changes}))
        with pytest.raises(ParameterError, match=message):
            import_peft(model, tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    tensors = load_file(tmp_path / TENSORS)
    save_file({**tensors, "lora_A": torch.zeros(1)}, tmp_path / TENSORS)
    with pytest.raises(ParameterError, match="'lora_A': must end in adaption_prompt or adaption_"):
        import_peft(model, tmp_path)
    (tmp_path / TENSORS).unlink()
    with pytest.raises(ParameterError, match="there is no such file; pickles are not read"):
        import_peft(model, tmp_path)
    assert not adapters(model)
    save_file(tensors, tmp_path / TENSORS)
    assert import_peft(model, tmp_path) is adapter_root(model)
