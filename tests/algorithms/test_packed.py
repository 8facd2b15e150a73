"""Packed checkpoints: every operand comes back bit for bit, in the words that the chip writes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from algorithms import sparse_layers, sparsify, unsparsify
from algorithms.packed import METADATA, VERSION, load_packed, save_packed
from algorithms.packed_checkpoint import PackedCheckpoint, pack_model
from algorithms.packed_form import OperandForm
from algorithms.packed_operand import PackedOperand
from compiler.chip.tensors import PackedWeights
from rtl.chunk import LANES, ChunkFormat
from rtl.pattern import DENSE, NmPattern

RUNNABLE = ("1:2", "2:4", "1:4", "2:8", "1:8", "2:16")


def network() -> nn.Sequential:
    """3x3, 1x1, with groups, with stride; sizes that 16 divides and sizes that nothing divides."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 37, 3, stride=2), nn.Conv2d(37, 32, 1), nn.Conv2d(32, 38, 3, groups=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(38, 33, bias=False), nn.Linear(33, 10))
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Conv2d | nn.Linear):  # ties, zeros and negative zeros
                layer.weight[:, ::3] = layer.weight[:, ::3].sign() * 0.25
                layer.weight[1] *= -0.0
    return model


def sparse_network(pattern: str, method: str = "bdwp", dtype: torch.dtype = torch.float32
                   ) -> nn.Sequential:
    model = network().to(dtype)
    sparsify(model, method, pattern)
    return model


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype == torch.float16 and torch.equal(
        a.view(torch.int16), b.view(torch.int16))


def chip_words(weight: Tensor, pattern: NmPattern, backward: bool, groups: int) -> np.ndarray[
    tuple[int, ...], np.dtype[np.uint16]
]:
    """What the pruning engine writes, from 16 x 16 pieces of the dense master, one by one."""
    form, masters = ChunkFormat(pattern), weight.detach().half().numpy()
    result = []
    for master in np.split(masters, groups):
        taps = master.reshape(*master.shape[:2], -1).transpose(2, 1, 0)
        _, c_in, c_out = taps.shape
        full = np.zeros((len(taps), -(-c_in // 16) * 16, -(-c_out // 16) * 16), np.float16)
        full[:, :c_in, :c_out] = taps
        chunks = full.reshape(len(taps), full.shape[1] // 16, 16, -1, 16).swapaxes(2, 3)
        if backward:
            chunks = chunks.transpose(0, 2, 1, 4, 3)
        result.append([[form.pack(np.ascontiguousarray(chunks[tap, row, panel]))[0, 0]
                        for tap in range(len(taps)) for row in range(chunks.shape[1])]
                       for panel in range(chunks.shape[2])])
    return np.array(result, np.uint16)


@pytest.mark.parametrize("pattern", [*RUNNABLE, "3:5", "3:32"])
def test_operands_come_back_bit_for_bit(pattern: str, tmp_path: Path) -> None:
    model = sparse_network(pattern)
    save_packed(model, tmp_path / "model.safetensors")
    read = load_packed(tmp_path / "model.safetensors")
    layers = dict(sparse_layers(model))
    assert list(read.layers) == list(layers)
    for name, layer in layers.items():
        packed, patterns = read.layers[name], layer.pass_patterns()
        for operand, stage, expected in (
            (packed.forward, "FF", layer.forward_weight()),
            (packed.backward, "BP", layer.backward_weight()),
        ):
            backward, groups = stage == "BP", layer.conv_groups
            assert operand.pattern == patterns[stage]
            assert np.array_equal(operand.dense().numpy(), expected.numpy())
            assert operand.nbytes == sum(array.nbytes for array in operand.arrays.values())
            check_logical(operand, expected, groups, backward)
            if operand.pattern == DENSE or pattern not in RUNNABLE:
                assert operand.words is None
                continue
            assert operand.words is not None
            words = chip_words(layer.weight, operand.pattern, backward, groups)
            np.testing.assert_array_equal(operand.words, words)
            if groups == 1:
                taps = layer.weight.detach().half().flatten(2) if layer.weight.dim() == 4 else (
                    layer.weight.detach().half().unsqueeze(2))
                stored = PackedWeights(taps.shape[2], taps.shape[1], taps.shape[0],
                                       operand.pattern, backward)
                expected_words = stored.pack(taps.permute(2, 1, 0).numpy())
                np.testing.assert_array_equal(operand.words[0], expected_words)


def check_logical(operand: PackedOperand, weight: Tensor, groups: int, backward: bool) -> None:
    """Values and indices against the pattern's own packing of each reduction, one by one."""
    pattern, values, indices = operand.pattern, operand.values, operand.indices
    assert not values.flags.writeable and not indices.flags.writeable
    assert values.dtype == np.float16 and indices.dtype == np.uint8
    rows = (torch.unflatten(weight, 0, (groups, -1)).transpose(1, 2).flatten(0, 1) if backward
            else weight).movedim(1, -1)  # (rows, *kernel, channels)
    assert values.shape[:-2] == rows.shape[:-1]
    columns = rows.reshape(-1, rows.shape[-1]).T.contiguous().numpy()
    packed = pattern.pack(columns)
    assert values.shape[-2:] == packed.values.shape[:2]
    shape = (-1, *values.shape[-2:])
    np.testing.assert_array_equal(values.reshape(shape), packed.values.transpose(2, 0, 1))
    np.testing.assert_array_equal(indices.reshape(shape), packed.indices.transpose(2, 0, 1))


@pytest.mark.parametrize("method", ["dense", "srste", "sdgp", "sdwp"])
def test_dense_passes_are_plain(method: str) -> None:
    """Also those whose operand has zeros, because FF pruned it, or whose gradient is pruned."""
    model = sparse_network("2:8", method)
    for name, layer in sparse_layers(model):
        packed = pack_model(model).layers[name]
        assert same_bits(packed.forward.dense(), layer.forward_weight())
        assert same_bits(packed.backward.dense(), layer.backward_weight())
        if packed.backward.pattern == DENSE:
            assert set(packed.backward.arrays) == {"dense"}
            assert packed.backward.compression == 1
        if packed.forward.pattern == packed.backward.pattern == DENSE:
            assert packed.forward.arrays["dense"] is packed.backward.arrays["dense"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_plain_model_loads_what_the_sparse_one_computed(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    sparse = sparse_network("2:8", dtype=dtype).eval()
    save_packed(sparse, tmp_path / "model")
    plain = nn.Sequential(*network().to(dtype).children()).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    load_packed(tmp_path / "model").load_into(plain)
    expected = copy.deepcopy(sparse)
    unsparsify(expected, prune=True)
    for name, parameter in plain.state_dict().items():
        wanted = expected.state_dict()[name]
        rounded = wanted.half().to(dtype) if name.endswith("weight") and name[0] != "1" else wanted
        assert torch.equal(parameter, rounded), name
    image = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(plain.float()(image), sparse.float()(image), rtol=2e-2, atol=2e-3)


def test_one_layer_computes_the_same_bits_on_fp16_inputs() -> None:
    model = nn.Sequential(nn.Linear(40, 24))
    x = torch.randn(5, 40).half().float()
    plain = copy.deepcopy(model)
    sparsify(model, pattern="2:8", rules={"0": "2:8"})
    pack_model(model).load_into(plain)
    assert torch.equal(plain(x), model(x))


def test_plain_safetensors_reads_the_file(tmp_path: Path) -> None:
    model = sparse_network("2:8")
    save_packed(model, tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        names = set(file.keys())
        contents = json.loads(file.metadata()[METADATA])
        words = file.get_tensor("5.weight.BP.words")
        assert words.dtype == np.uint16 and words.shape == (2, 1, 9 * 2, 5, LANES)
        np.testing.assert_array_equal(file.get_tensor("1.running_var"), np.ones(16, np.float32))
    weights = {f"{name}.weight" for name, _ in sparse_layers(model)}
    assert names >= set(model.state_dict()) - weights
    assert not names & weights
    assert contents["version"] == VERSION
    assert contents["aliases"] == {}
    layer = contents["layers"]["5"]
    assert layer["class"] == "Conv2d"
    assert layer["shape"] == [38, 16, 3, 3] and layer["groups"] == 2
    assert layer["passes"]["BP"] == {
        "pattern": "2:8", "padded": [16, 32], "arrays": {"words": "5.weight.BP.words"}}
    assert contents["layers"]["0"]["passes"]["BP"]["arrays"] == {"dense": "0.weight.FF.dense"}


def test_compression_counts_padding() -> None:
    def operand(*shape: int) -> PackedOperand:
        form = OperandForm(shape, 1, NmPattern(2, 8), False)
        return PackedOperand(form, form.pack(torch.ones(shape)))

    assert operand(64, 64).compression == 16 / 5
    assert operand(1, 16).compression == 1 / 5
    assert operand(64, 64).nbytes == 16 * 5 * 32


class Tied(nn.Module):
    """Two layers of one weight, one of them under two names, and an embedding that shares it."""

    def __init__(self, embedding: bool) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.again = self.first
        self.second = nn.Linear(32, 32)
        self.second.weight = self.first.weight
        self.table = nn.Embedding(32, 32)
        if embedding:
            self.table.weight = self.first.weight


def tied(embedding: bool) -> Tied:
    torch.manual_seed(1)
    return Tied(embedding)


@pytest.mark.parametrize("embedding", [False, True])
def test_tied_weights_are_stored_once(embedding: bool, tmp_path: Path) -> None:
    model = tied(embedding)
    sparsify(model, pattern="2:8", rules={"*": "2:8"})
    save_packed(model, tmp_path / "tied")
    with safe_open(tmp_path / "tied", "np") as file:
        names = set(file.keys())
        assert json.loads(file.metadata()[METADATA])["aliases"] == {"again.bias": "first.bias"}
    assert names == {"first.weight.FF.words", "first.weight.BP.words", "first.bias", "second.bias",
                     "table.weight"}
    read = load_packed(tmp_path / "tied")
    assert read.layers["first"].forward.arrays["words"] is (
        read.layers["second"].forward.arrays["words"])
    plain = tied(embedding)
    table = plain.table.weight.detach().clone()
    read.load_into(plain)
    assert torch.equal(plain.table.weight, table)
    second = dict(sparse_layers(model))["second"]
    assert same_bits(plain.second.weight.half(), second.forward_weight())
    assert torch.equal(plain.first.weight, plain.second.weight)
    assert (plain.first.weight is plain.second.weight) is not embedding


def test_later_training_does_not_reach_a_packed_model() -> None:
    model = sparse_network("2:8")
    packed = pack_model(model)
    bias, weight = packed.tensors["3.bias"].clone(), packed.layers["3"].forward.dense()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(packed.tensors["3.bias"], bias)
    assert torch.equal(packed.layers["3"].forward.dense(), weight)


def test_a_checkpoint_can_be_written_again(tmp_path: Path) -> None:
    save: Callable[[nn.Module | PackedCheckpoint, Path], PackedCheckpoint] = save_packed
    save(sparse_network("2:8"), tmp_path / "a")
    for _ in range(8):  # safetensors writes several metadata entries in a new order each time
        save(load_packed(tmp_path / "a"), tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
