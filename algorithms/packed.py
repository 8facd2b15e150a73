"""Sparse checkpoints as files: each weight as the chip's packed words, in one safetensors file.

What the file holds, all of it readable with safetensors alone:

* For each pass of each sparse layer, as ``<layer>.weight.<FF or BP>.<array>``: ``words`` (uint16,
  exactly what the chip's pruning engine writes, :mod:`rtl.chunk`) for a pattern that the chip runs,
  ``values`` and ``indices`` for any other N:M, ``dense`` (float16) for a dense pass. Arrays of one
  weight that are equal, such as those of tied layers, are stored once.
* Every other parameter and buffer of the state_dict as it is, under its own name; tied ones once.
* One metadata entry, :data:`METADATA`: JSON with the format's ``version``; ``layers``, name to
  class, weight shape, convolution groups and, for each pass, pattern, the (C_in, C_out) that one
  convolution group is padded to, and the names of its arrays; and ``aliases``, further names of
  tied tensors. How convolution groups and leftovers lie: :mod:`algorithms.packed_form`.

The dense master weights are not in it: it serves inference, not further training.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from algorithms.packed_checkpoint import PackedCheckpoint, PackedLayer, pack_model
from algorithms.packed_form import OperandForm
from algorithms.packed_operand import PackedOperand
from rtl.errors import ParameterError, closest
from rtl.pattern import NmPattern

__all__ = ["METADATA", "VERSION", "load_packed", "save_packed"]

METADATA = "nmsat.packed"
"""Key of the JSON string among the file's metadata."""

VERSION = 1
"""Format of the file; another number is refused."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class _Pass(_Strict):
    pattern: str
    padded: tuple[int, int]
    arrays: dict[str, str]


class _Layer(_Strict):
    model_config = ConfigDict(populate_by_name=True)

    kind: str = Field(alias="class")
    shape: tuple[int, ...]
    groups: int
    passes: dict[str, _Pass]


class _Contents(_Strict):
    version: int
    layers: dict[str, _Layer]
    aliases: dict[str, str]


def save_packed(
    model: nn.Module | PackedCheckpoint, path: str | os.PathLike[str]
) -> PackedCheckpoint:
    """Write a model that :func:`algorithms.sparsify` made sparse; returns what was written.

    The file appears under its name when it is complete, or not at all; one of that name is
    replaced.

    Parameters
    ----------
    model: on any device, its masters of any floating type: operands are their FP16 roundings.
        Or what :func:`algorithms.packed_checkpoint.pack_model` made of one.
    path: of the file, by custom ``*.safetensors``.

    Raises
    ------
    ParameterError: a model that cannot be packed (:func:`pack_model`), or a path that cannot be
        written.
    """
    checkpoint = model if isinstance(model, PackedCheckpoint) else pack_model(model)
    names: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}

    def store(name: str, tensor: Tensor) -> str:
        first = names.setdefault(id(tensor), name)
        if first == name:
            tensors[name] = tensor
        return first

    layers = {name: _Layer(
        kind=layer.kind, shape=layer.shape, groups=layer.groups,
        passes={stage: _Pass(
            pattern=str(operand.pattern), padded=operand.form.padded,
            arrays={array: store(f"{layer.key}.{stage}.{array}", tensor)
                    for array, tensor in operand.arrays.items()})
            for stage, operand in (("FF", layer.forward), ("BP", layer.backward))},
    ) for name, layer in checkpoint.layers.items()}
    for name, tensor in checkpoint.tensors.items():
        first = store(name, tensor)
        if first != name:
            aliases[name] = first
    contents = _Contents(version=VERSION, layers=layers, aliases=aliases)
    text = contents.model_dump_json(by_alias=True)
    _write(Path(path), tensors, {METADATA: text})  # one entry: several come in random order
    return checkpoint


def load_packed(path: str | os.PathLike[str]) -> PackedCheckpoint:
    """Read a file of :func:`save_packed`, all of it, and check it.

    Raises
    ------
    ParameterError: no such file, a file that is truncated or of another kind, or of a format that
        this version of the package does not know.
    """
    path = Path(path)
    metadata, tensors = _read(path)
    if METADATA not in metadata:
        rule = f"is a safetensors file without {METADATA!r} metadata; save_packed writes it"
        raise ParameterError("path", str(path), rule)
    contents = _contents(metadata[METADATA])
    layers = {name: _layer(name, layer, tensors) for name, layer in contents.layers.items()}
    claimed = {key for layer in contents.layers.values() for stage in layer.passes.values()
               for key in stage.arrays.values()}
    others = {name: tensor for name, tensor in tensors.items() if name not in claimed}
    for name, first in contents.aliases.items():
        others[name] = _stored(first, others)
    return PackedCheckpoint(layers, others)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".packed-") as scratch:
            whole = Path(scratch, "whole")
            save_file(tensors, whole, metadata)
            os.replace(whole, path)
    except (OSError, SafetensorError) as error:
        folder = next(parent for parent in path.absolute().parents if parent.is_dir())
        rule = f"must name a file that can be written ({_line(error)})"
        raise ParameterError("path", str(path), rule, folder / (path.name or "model.safetensors")
                             ) from error


def _read(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    if not path.is_file():
        near = path.parent.glob(f"*{path.suffix}") if path.parent.is_dir() else ()
        found = closest(path.name, (file.name for file in near if file.is_file()))
        raise ParameterError("path", str(path), "must be a file that save_packed wrote",
                             path.with_name(found) if found else None)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        rule = f"must be a whole safetensors file ({_line(error)})"
        raise ParameterError("path", str(path), rule) from error


def _contents(text: str) -> _Contents:
    try:
        raw: Any = json.loads(text)
        version = raw["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ParameterError(METADATA, text[:40], "must be JSON with a version") from error
    if version != VERSION:
        raise ParameterError("version", version, "this package reads one format", VERSION)
    try:
        return _Contents.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        value = str(first["input"])[:40]
        raise ParameterError(f"{METADATA}: {where}", value, first["msg"]) from error


def _layer(name: str, layer: _Layer, tensors: Mapping[str, Tensor]) -> PackedLayer:
    if set(layer.passes) != {"FF", "BP"}:
        raise ParameterError(f"{name}.passes", sorted(layer.passes), "must be FF and BP")
    operands = []
    for stage in ("FF", "BP"):
        record = layer.passes[stage]
        form = OperandForm(layer.shape, layer.groups,
                           NmPattern.parse(record.pattern, f"{name}.{stage}"), stage == "BP")
        arrays = {array: _stored(key, tensors) for array, key in record.arrays.items()}
        operands.append(PackedOperand(form, arrays))
    return PackedLayer(name, layer.kind, *operands)


def _stored(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    if name not in tensors:
        rule = "the file's metadata names it and the file has no such tensor"
        raise ParameterError("tensor", name, rule, closest(name, tensors))
    return tensors[name]


def _line(error: Exception) -> str:
    """The error's text as one line."""
    return " ".join(str(error).split())
