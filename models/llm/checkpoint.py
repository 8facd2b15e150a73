"""An adapter in a folder: ``adapter_config.json`` and ``adapter_model.safetensors``, no pickle.

The tensors are float32 under their names in the base, 4.9 MB for LLaMA-7B. The configuration also
says what shape the base had, so that an adapter is not put on another model unawares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from algorithms import ParameterError
from models.llm.adapter import (
    Adapter,
    AdapterConfig,
    adapter_base,
    adapter_parameters,
    adapter_root,
    attentions,
    insert_adapter,
    remove_adapter,
)
from models.llm.unlocked import enable_unlocked

__all__ = [
    "CONFIG", "TENSORS", "BaseShape", "fill", "load_adapter", "read_json", "read_tensors",
    "save_adapter",
]

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


class BaseShape(BaseModel):
    """What the base of an adapter must have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_type: str = Field(description="As transformers calls the family.")
    layers: int = Field(description="Decoder layers.")
    width: int = Field(description="Features of a token.")
    heads: int = Field(description="Query heads of the topmost layer.")
    kv_heads: int = Field(description="Key and value heads of the topmost layer.")
    head_dim: int = Field(description="Features of a head.")

    @classmethod
    def of(cls, base: nn.Module) -> BaseShape:
        """The shape of a model; errors as :func:`models.llm.adapter.attentions`."""
        found = list(attentions(base).values())
        top = found[-1]
        return cls(
            model_type=top.config.model_type, layers=len(found), width=top.k_proj.in_features,
            heads=top.q_proj.out_features // top.head_dim,
            kv_heads=top.k_proj.out_features // top.head_dim, head_dim=top.head_dim)


class _Contents(BaseModel):
    """``adapter_config.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["nmsat-adapter"]
    version: Literal[1]
    adapter: dict[str, Any]
    base: BaseShape


def save_adapter(model: nn.Module, folder: Path | str) -> None:
    """Write the adapter of ``model`` to ``folder``, which is made where it is missing.

    Raises :class:`ParameterError` for a model without one.
    """
    base = adapter_base(model)
    contents = _Contents(format="nmsat-adapter", version=1, base=BaseShape.of(base),
                         adapter=adapter_root(base).config.model_dump())
    was_on = enable_unlocked(base)  # off, norms hold the weights of the base
    tensors = {name: values.detach().float().cpu().contiguous()
               for name, values in adapter_parameters(base).items()}
    enable_unlocked(base, was_on)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / TENSORS)
    (target / CONFIG).write_text(contents.model_dump_json(indent=2) + "\n")


def load_adapter(base: PreTrainedModel, folder: Path | str) -> Adapter:
    """Insert the adapter that :func:`save_adapter` wrote; the base is frozen.

    Torch's global generator is left as it was.

    Raises
    ------
    ParameterError: a file is missing or not ours, the base has another shape, or tensors are
        missing, too many or of another shape. The base is then unchanged.
    """
    source = Path(folder)
    raw = read_json(source / CONFIG)
    if "peft_type" in raw:
        raise ParameterError(str(source / CONFIG), raw["peft_type"],
                             "is an adapter of PEFT; use import_peft")
    try:
        contents = _Contents.model_validate(raw)
    except ValidationError as failure:
        first = failure.errors()[0]
        where = ".".join(map(str, first["loc"]))
        value = None if first["type"] == "missing" else str(first["input"])[:40]
        raise ParameterError(f"{source / CONFIG}: {where}", value,
                             first["msg"].lower()) from None
    config = AdapterConfig.make(**contents.adapter)
    have = BaseShape.of(base)
    for field in BaseShape.model_fields:
        found, needed = getattr(have, field), getattr(contents.base, field)
        if found != needed:
            raise ParameterError("base", f"{field} {found}",
                                 f"the adapter in {source} is for another model, {field} {needed}")
    tensors = read_tensors(source / TENSORS)
    return fill(base, config, tensors, str(source / TENSORS))


def fill(
    base: PreTrainedModel, config: AdapterConfig, tensors: Mapping[str, Tensor], origin: str
) -> Adapter:
    """Insert an adapter with the tensors of :func:`adapter_parameters`; all of them or an error."""
    with torch.random.fork_rng():
        root = insert_adapter(base, config)
    try:
        wanted = adapter_parameters(base)
        for name in sorted(wanted.keys() ^ tensors.keys()):
            rule = "is missing" if name in wanted else "belongs to no adapter of this shape"
            raise ParameterError(origin, name, rule)
        for name, values in wanted.items():
            if tensors[name].shape != values.shape:
                raise ParameterError(f"{origin}: {name}", tuple(tensors[name].shape),
                                     f"must have the shape {tuple(values.shape)}")
    except ParameterError:
        remove_adapter(base)
        raise
    with torch.no_grad():
        for name, values in wanted.items():
            values.copy_(tensors[name])
    return root


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; :class:`ParameterError` for a missing file, and file and line for others."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as failure:
        raise ParameterError("adapter", str(path), f"cannot be read ({failure.strerror})") from None
    except ValueError as failure:
        line = getattr(failure, "lineno", 1)
        raise ParameterError("adapter", f"{path}:{line}", "is not JSON") from None
    if not isinstance(raw, dict):
        raise ParameterError("adapter", str(path), "must hold a JSON object")
    return raw


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; :class:`ParameterError` for any other."""
    if not path.is_file():
        raise ParameterError("adapter", str(path), "there is no such file; pickles are not read")
    try:
        return load_file(path)
    except SafetensorError as failure:
        raise ParameterError("adapter", str(path),
                             f"is not a safetensors file ({failure})") from None
