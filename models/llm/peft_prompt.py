"""LLaMA-Adapter V1 to and from the AdaptionPrompt of PEFT.

PEFT has one gate a layer and multiplies by the gate itself, without tanh; the prompt's share goes
through the output projection on its own, which is the same sum where that projection has no bias.
So a scalar gate g of ours with tanh is a gate tanh(g) of PEFT, and one gate a head has no
counterpart: values are frozen projections, into which a factor a head cannot be folded.

PEFT keeps prompts and gates in the dtype of its base; a float32 file is rounded when it loads it
on another one. Files alone are read and written here: PEFT need not be installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from algorithms import ParameterError
from models.llm.adapter import Adapter, AdapterConfig, adapter_base, adapter_root, attentions
from models.llm.checkpoint import CONFIG, TENSORS, fill, read_json, read_tensors
from models.llm.prompt_attention import PromptAttention

__all__ = ["PEFT_TYPES", "export_peft", "import_peft"]

PEFT_TYPES = ("llama", "mistral")
"""Families that PEFT and this package both have adaption prompts for."""

_KIND, _TARGET = "ADAPTION_PROMPT", "self_attn"
_PROMPT, _GATE = "adaption_prompt", "adaption_gate"
_PREFIX = "base_model.model."


def import_peft(base: PreTrainedModel, folder: Path | str) -> Adapter:
    """Insert the AdaptionPrompt in ``folder`` as an adapter with scalar gates and without tanh.

    Raises
    ------
    ParameterError: not an AdaptionPrompt, no safetensors, tensors that do not fit the base, or a
        base on which PEFT computes something else. The base is then unchanged.
    """
    source = Path(folder)
    raw = read_json(source / CONFIG)
    if raw.get("peft_type") != _KIND:
        raise ParameterError(str(source / CONFIG), raw.get("peft_type"),
                             f"must have the peft_type {_KIND}")
    if raw.get("target_modules") not in (None, _TARGET):
        raise ParameterError(str(source / CONFIG), raw["target_modules"],
                             f"must have the target_modules {_TARGET}")
    config = AdapterConfig.make(layers=raw.get("adapter_layers"), prompt=raw.get("adapter_len"),
                                gate="scalar", tanh=False)
    _check_base(base)
    tensors = {}
    for key, values in read_tensors(source / TENSORS).items():
        name, _, kind = key.removeprefix(_PREFIX).rpartition(".")
        if kind == _PROMPT:
            tensors[f"{name}.adapter.prompt"] = values.squeeze(0)
        elif kind == _GATE:
            tensors[f"{name}.adapter.gate"] = values
        else:
            raise ParameterError(str(source / TENSORS), key, f"must end in {_PROMPT} or {_GATE}")
    return fill(base, config, tensors, str(source / TENSORS))


def export_peft(model: nn.Module, folder: Path | str) -> None:
    """Write the adapter of ``model`` as an AdaptionPrompt of the same function, float32.

    Raises
    ------
    ParameterError: no gates, or a gate a head, an adapter that sees images, or a base on which
        PEFT computes something else.
    """
    base, config = adapter_base(model), adapter_root(model).config
    if not config.gated:
        raise ParameterError("gated", False, "PEFT has no prompts without gates", True)
    if config.gate != "scalar":
        raise ParameterError("gate", config.gate, "PEFT has one gate a layer, which a gate a head "
                             "cannot be turned into; train with", "scalar")
    if config.visual != "none":
        raise ParameterError("visual", config.visual, "PEFT has no prompts with images", "none")
    for field in ("unlock_norm", "unlock_bias", "unlock_scale"):
        if getattr(config, field):
            raise ParameterError(field, True, "PEFT has no bias tuning with prompts; "
                                 "fold_adapter(model) first", False)
    _check_base(base)
    tensors: dict[str, Tensor] = {}
    for name, attention in attentions(base).items():
        adapter = getattr(attention, "adapter", None)
        if isinstance(adapter, PromptAttention):
            tensors[f"{_PREFIX}{name}.{_PROMPT}"] = adapter.prompt.detach().unsqueeze(0)
            tensors[f"{_PREFIX}{name}.{_GATE}"] = adapter.strength.detach()
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_file({key: values.to("cpu", torch.float32, copy=True) for key, values in tensors.items()},
              target / TENSORS)
    contents: dict[str, Any] = {
        "peft_type": _KIND, "task_type": "CAUSAL_LM", "inference_mode": True,
        "base_model_name_or_path": base.config.name_or_path or None,
        "adapter_len": config.prompt, "adapter_layers": config.layers, "target_modules": _TARGET,
    }
    (target / CONFIG).write_text(json.dumps(contents, indent=2) + "\n")


def _check_base(base: PreTrainedModel) -> None:
    kind = base.config.model_type
    if kind not in PEFT_TYPES:
        raise ParameterError("base", kind, "PEFT has adaption prompts for "
                             f"{' and '.join(PEFT_TYPES)} of the families known here")
    for name, attention in attentions(base).items():
        if attention.o_proj.bias is not None:
            raise ParameterError("base", f"{name}.o_proj.bias", "PEFT adds it twice, so that its "
                                 "function is another one")
        groups = attention.q_proj.out_features // attention.k_proj.out_features
        theirs = attention.k_proj.in_features // attention.k_proj.out_features
        if groups != theirs:
            raise ParameterError("base", f"{name}.head_dim {attention.head_dim}", "PEFT takes "
                                 "heads for width / head_dim, which they are not here")
