"""Packed checkpoints: what cannot be written, read or loaded is named, and nothing is half done."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from algorithms import sparsify
from algorithms.packed import METADATA, load_packed, save_packed
from algorithms.packed_checkpoint import pack_model
from algorithms.packed_form import OperandForm
from algorithms.packed_operand import PackedOperand
from rtl.errors import ParameterError
from rtl.pattern import NmPattern


def network(hidden: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=2), nn.Flatten(),
                         nn.Linear(16, hidden), nn.Linear(hidden, 10))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good file, in a folder of its own."""
    model = network()
    sparsify(model, pattern="2:4")
    save_packed(model, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def one_line(message: str) -> str:
    return f"^{message}$"


def test_bad_paths(path: Path) -> None:
    with pytest.raises(ParameterError, match=one_line(
            r"path='.*modell.safetensors': must be a file that save_packed wrote; "
            r"nearest legal value: .*model.safetensors")):
        load_packed(path.with_name("modell.safetensors"))
    with pytest.raises(ParameterError, match=r"^path='.*': must be a file that save_packed wrote$"):
        load_packed(path / "missing" / "file")
    model = network()
    sparsify(model, pattern="2:4")
    for bad in (path.parent / "missing" / "model.safetensors", path.parent):
        with pytest.raises(ParameterError, match=r"^path=.*: must name a file that can be written"):
            save_packed(model, bad)
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left\non device")

    monkeypatch.setattr("algorithms.packed.save_file", full)
    model = network(64)
    sparsify(model, pattern="2:4")
    with pytest.raises(ParameterError, match=r"written \(no space left on device\)"):
        save_packed(model, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_truncated_files(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ParameterError, match=one_line(
            r"path=.*: must be a whole safetensors file \(.*\)")):
        load_packed(path)


def test_other_safetensors_files(path: Path) -> None:
    save_file({"a": torch.zeros(1)}, path)
    message = r"path=.*: is a safetensors file without 'nmsat.packed' metadata; save_packed .* it"
    with pytest.raises(ParameterError, match=one_line(message)):
        load_packed(path)


def _version(contents: dict[str, Any]) -> None:
    contents["version"] = 2


def _no_version(contents: dict[str, Any]) -> None:
    del contents["version"]


def _no_groups(contents: dict[str, Any]) -> None:
    del contents["layers"]["3"]["groups"]


def _shape(contents: dict[str, Any]) -> None:
    contents["layers"]["3"]["shape"] = [32, 48]


def _groups(contents: dict[str, Any]) -> None:
    contents["layers"]["1"]["groups"] = 3


def _pattern(contents: dict[str, Any]) -> None:
    contents["layers"]["3"]["passes"]["FF"]["pattern"] = "5:4"


def _tensor(contents: dict[str, Any]) -> None:
    contents["layers"]["3"]["passes"]["FF"]["arrays"]["words"] = "3.weight.FF.word"


def _passes(contents: dict[str, Any]) -> None:
    del contents["layers"]["3"]["passes"]["BP"]


@pytest.mark.parametrize(("damage", "message"), [
    (_version, "version=2: this package reads one format; nearest legal value: 1"),
    (_no_version, r"nmsat.packed='.*': must be JSON with a version"),
    (_no_groups, r"nmsat.packed: layers.3.groups=.*: Field required"),
    (_shape, r"words='torch.uint16 \(1, 2, 1, 10, 16\)': must be torch.uint16 of the shape "
             r"\(1, 2, 3, 10, 16\)"),
    (_groups, "groups=3: must divide the 16 output channels; nearest legal value: 1"),
    (_pattern, "3.FF='5:4': N:M needs 1 <= N <= M; nearest legal value: 4:4"),
    (_tensor, "tensor='3.weight.FF.word': the file's metadata names it .*; "
              "nearest legal value: 3.weight.FF.words"),
    (_passes, r"3.passes=\['FF'\]: must be FF and BP"),
])
def test_damaged_metadata(
    path: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    with safe_open(path, "pt") as file:
        contents = json.loads(file.metadata()[METADATA])
        names = list(file.keys())
        tensors = {name: file.get_tensor(name).clone() for name in names}
    damage(contents)
    save_file(tensors, path, {METADATA: json.dumps(contents)})
    with pytest.raises(ParameterError, match=one_line(message)):
        load_packed(path)


def _deeper() -> nn.Module:
    return nn.Sequential(*network(), nn.Linear(10, 10))


def _other_class() -> nn.Module:
    model = network()
    model[3] = nn.Conv2d(16, 32, 1)
    return model


def _other_groups() -> nn.Module:
    model = network()
    model[1] = nn.Conv2d(8, 16, 3)
    return model


def _no_bias() -> nn.Module:
    model = network()
    model[4] = nn.Linear(32, 10, bias=False)
    return model


@pytest.mark.parametrize(("build", "message"), [
    (lambda: network()[:4], "layer='4': the file has it and the model does not.*"),
    (lambda: network(64), r"3.bias.shape=\(64,\): must be the file's; "
                          r"nearest legal value: \(32,\)"),
    (_deeper, "tensor='5.(weight|bias)': the model has it and the file does not.*"),
    (_no_bias, "tensor='4.bias': the file has it and the model does not.*"),
    (_other_class, "3='Conv2d': must be of the class that the file holds; "
                   "nearest legal value: Linear"),
    (_other_groups, "1.groups=1: must be as many as the file holds; nearest legal value: 2"),
    (lambda: network().bfloat16(), "0.weight.dtype='torch.bfloat16': must hold the file's FP16 "
                                   "weights exactly; nearest legal value: torch.float32"),
])
def test_models_that_do_not_match_stay_as_they_are(
    path: Path, build: Callable[[], nn.Module], message: str
) -> None:
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ParameterError, match=one_line(message)):
        load_packed(path).load_into(model)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_tensors_tied_in_the_model_alone(path: Path) -> None:
    model = network()
    model[1].bias = nn.Parameter(torch.zeros(16))
    wide = network(16)
    sparsify(wide, pattern="2:4")
    packed = pack_model(wide)
    target = network(16)
    target[3].bias = target[1].bias
    with pytest.raises(ParameterError, match=r"^tensor='3.bias': is tied to 1.bias in the model, "
                                             r"and has other values in the file$"):
        packed.load_into(target)


class _Stateful(nn.Linear):
    def get_extra_state(self) -> str:
        return "state"


def test_models_that_cannot_be_packed() -> None:
    with pytest.raises(ParameterError, match=r"^model='Sequential': has no sparse layer to pack"):
        pack_model(network())
    with pytest.raises(ParameterError, match=r"^model='int': must be a torch.nn.Module$"):
        save_packed(3, "unused")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"^model='int': must be a torch.nn.Module$"):
        pack_model(_sparse(network())).load_into(3)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"^5._extra_state='str': must be a tensor"):
        pack_model(_sparse(nn.Sequential(*network(), _Stateful(10, 10))))


def test_layers_that_cannot_be_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _sparse(network())
    layer = model.get_submodule("3")
    monkeypatch.setattr(layer, "forward_weight", lambda: torch.ones(32, 16).half())
    with pytest.raises(ParameterError, match=r"^3.FF='2:4': the layer's operand keeps more than N"):
        pack_model(model)
    model = _sparse(network())
    layer = model.get_submodule("3")
    layer.weight = layer.__dict__["_parameters"].pop("weight").detach()
    with pytest.raises(ParameterError, match=r"^3.weight='Tensor': must be a parameter of the lay"):
        pack_model(model)


def _sparse(model: nn.Module) -> nn.Module:
    sparsify(model, pattern="2:4")
    return model


@pytest.mark.parametrize(("arguments", "message"), [
    (((8, 8), 1, NmPattern(3, 512), False),
     "pattern='3:512': packed indices are uint8, so M must be at most 256; "
     "nearest legal value: 3:256"),
    (((9, 8), 2, NmPattern(2, 4), False),
     "groups=2: must divide the 9 output channels; nearest legal value: 1"),
    (((8,), 1, NmPattern(2, 4), False),
     "shape=(8,): must be (C_out, C_in / groups, *kernel), all at least 1"),
])
def test_forms_that_do_not_exist(
    arguments: tuple[tuple[int, ...], int, NmPattern, bool], message: str
) -> None:
    with pytest.raises(ParameterError, match=one_line(re.escape(message))):
        OperandForm(*arguments)


def test_operands_that_do_not_fit_their_form() -> None:
    form = OperandForm((8, 5), 1, NmPattern(3, 5), False)
    arrays = form.pack(torch.ones(8, 5))
    with pytest.raises(ParameterError, match=r"^weight=\(5, 8\): must have the shape; .*\(8, 5\)$"):
        form.pack(torch.ones(5, 8))
    with pytest.raises(ParameterError, match=r"^arrays=\['words'\]: must be those of the pattern"):
        PackedOperand(form, {"words": arrays["values"]})
    arrays["indices"][0, 0, 2] = 5
    with pytest.raises(ParameterError, match=r"^indices=5: must increase .* stay below M=5$"):
        PackedOperand(form, arrays)
