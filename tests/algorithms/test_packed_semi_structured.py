"""2:4 operands as torch's semi-structured tensors, against torch's own conversion."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from algorithms import NmLayer, sparsify
from algorithms.packed_checkpoint import pack_model
from algorithms.packed_semi_structured import semi_structured_arrays, to_semi_structured
from rtl.errors import ParameterError

PROTOTYPE = "ignore:The PyTorch API of SparseSemiStructuredTensor is in prototype stage"


def sparse(layer: nn.Module, pattern: str = "2:4") -> NmLayer:
    sparsify(layer, pattern=pattern, rules={"*": pattern})
    assert isinstance(layer, NmLayer)
    return layer


def filled(shape: torch.Size, zeros: bool) -> Tensor:
    """Distinct values, or few of them, so that kept values are often zero."""
    generator = torch.Generator().manual_seed(5)
    if zeros:
        return torch.randint(-1, 2, shape, generator=generator).float() / 4
    return torch.randn(shape, generator=generator)


def layers(zeros: bool) -> dict[str, NmLayer]:
    made = {"linear": sparse(nn.Linear(192, 64)), "large": sparse(nn.Linear(64, 320)),
            "conv": sparse(nn.Conv2d(64, 64, 3))}
    for layer in made.values():
        with torch.no_grad():
            layer.weight.copy_(filled(layer.weight.shape, zeros))
    return made


def matrix(weight: Tensor, backward: bool) -> Tensor:
    """Rows of results, columns (taps, channels)."""
    rows = weight.transpose(0, 1) if backward else weight
    return rows.movedim(1, -1).reshape(rows.shape[0], -1).contiguous()


def torch_arrays(dense: Tensor) -> tuple[Tensor, Tensor]:
    values, metadata = sparse_semi_structured_from_dense_cutlass(  # type: ignore[no-untyped-call]
        dense)
    return values, metadata


def torch_dense(values: Tensor, metadata: Tensor) -> Tensor:
    dense: Tensor = sparse_semi_structured_to_dense_cutlass(  # type: ignore[no-untyped-call]
        values, metadata)
    return dense


@pytest.mark.parametrize("backward", [False, True], ids=["FF", "BP"])
@pytest.mark.parametrize("name", ["linear", "large", "conv"])
def test_arrays_are_those_of_torch(name: str, backward: bool) -> None:
    layer = layers(zeros=False)[name]
    dense = matrix(layer.backward_weight() if backward else layer.forward_weight(), backward)
    values, metadata = semi_structured_arrays(layer, backward)
    expected_values, expected_metadata = torch_arrays(dense)
    assert values.dtype == torch.float16 and metadata.dtype == torch.int16
    assert torch.equal(values, expected_values)
    assert torch.equal(metadata, expected_metadata)


@pytest.mark.parametrize("backward", [False, True], ids=["FF", "BP"])
@pytest.mark.parametrize("name", ["linear", "large", "conv"])
def test_kept_zeros_are_valid_places(name: str, backward: bool) -> None:
    """torch may note another place for a zero; what it reads back is the same matrix."""
    layer = layers(zeros=True)[name]
    dense = matrix(layer.backward_weight() if backward else layer.forward_weight(), backward)
    values, metadata = semi_structured_arrays(layer, backward)
    assert (values == 0).any()
    assert torch.equal(torch_dense(values, metadata), dense)


def test_packed_operands_convert_as_their_layer_does() -> None:
    model = nn.Sequential(nn.Linear(64, 96))
    sparsify(model, pattern="2:4", rules={"*": "2:4"})
    layer, packed = model[0], pack_model(model).layers["0"]
    assert isinstance(layer, NmLayer)
    for ours, theirs in zip(semi_structured_arrays(packed.forward), semi_structured_arrays(layer),
                            strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings(PROTOTYPE)
def test_the_tensor_subclass_reads_the_arrays() -> None:
    layer = layers(zeros=False)["linear"]
    values, metadata = semi_structured_arrays(layer)
    tensor = SparseSemiStructuredTensorCUTLASS(
        layer.weight.shape, values, metadata, None, None, None)
    dense = tensor.to_dense()  # type: ignore[no-untyped-call]
    assert torch.equal(dense, layer.forward_weight())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="semi-structured tensors need CUDA")
@pytest.mark.filterwarnings(PROTOTYPE)
def test_on_cuda() -> None:
    layer = layers(zeros=False)["linear"]
    tensor = to_semi_structured(layer)
    assert tensor.is_cuda and tensor.shape == layer.weight.shape
    dense = tensor.to_dense()  # type: ignore[no-untyped-call]
    assert torch.equal(dense.cpu(), layer.forward_weight())


@pytest.mark.parametrize(("layer", "pattern", "message"), [
    (nn.Linear(64, 32), "2:8", "pattern='2:8': torch's semi-structured tensors are 2:4; "
                               "nearest legal value: 2:4"),
    (nn.Linear(64, 32), "dense", "pattern='dense': torch's semi-structured tensors are 2:4; "
                                 "nearest legal value: 2:4"),
    (nn.Conv2d(64, 64, 1, groups=2), "2:4", "groups=2: must be 1: a semi-structured tensor is one "
                                            "matrix; nearest legal value: 1"),
    (nn.Linear(66, 40), "2:4", "matrix=(40, 66): must be whole groups of 4 channels, rows a "
                               "multiple of 32 and columns (taps x channels) of 64; "
                               "nearest legal value: (64, 128)"),
])
def test_what_torch_has_no_form_for(layer: nn.Module, pattern: str, message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        semi_structured_arrays(sparse(layer, pattern))


def test_devices_that_cannot_multiply_it() -> None:
    layer = sparse(nn.Linear(64, 32))
    rule = "torch multiplies semi-structured tensors on CUDA devices only"
    with pytest.raises(ParameterError, match=f"^device='cpu': {rule}; nearest legal value: cuda$"):
        to_semi_structured(layer, "cpu")
    if not torch.cuda.is_available():
        message = f"^device='cuda': {rule}, and this machine has none$"
        with pytest.raises(ParameterError, match=message):
            to_semi_structured(layer)
