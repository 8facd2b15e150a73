"""Gradient checkpointing, and copies of whole sparse models."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from algorithms import NmLayer, get_method, sparse_layers, sparsify

IMAGES = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1))


class Network(nn.Module):
    """Blocks that may be recomputed in the backward pass."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reentrant = reentrant
        self.blocks = nn.ModuleList([
            nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.GELU()),
            nn.Sequential(nn.Conv2d(16, 16, 3, bias=False), nn.Dropout(0.3), nn.Flatten()),
            nn.Sequential(nn.Linear(256, 32), nn.GELU(), nn.Linear(32, 16)),
        ])
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(
                block, x, use_reentrant=self.reentrant)
        out: Tensor = self.head(x)
        return out


def gradients(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(5)  # of dropout
    x = IMAGES.clone().requires_grad_()
    model(x).square().sum().backward()
    found = [x.grad, *(parameter.grad for parameter in model.parameters())]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[NmLayer]:
    """Each layer once for each time that its operands are made."""
    made: list[NmLayer] = []
    derive = NmLayer._derive

    def counted(self: NmLayer, *args: object) -> object:
        made.append(self)
        return derive(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(NmLayer, "_derive", counted)
    return made


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["bdwp", "sdgp", "srste"])
def test_recomputation_gives_the_same_gradients_from_the_same_masks(
    reentrant: bool, method: str, derivations: list[NmLayer]
) -> None:
    expected, actual = Network(), Network(reentrant)
    sparsify(expected, method)
    sparsify(actual, method)
    for _ in range(2):  # two versions of the weights
        derivations.clear()
        wanted, found = gradients(expected), gradients(actual)
        assert all(torch.equal(left, right) for left, right in zip(wanted, found, strict=True))
        assert len(derivations) == len(set(derivations)) == 10
        for model in (expected, actual):
            torch.optim.SGD(model.parameters(), lr=0.1).step()
            model.zero_grad()


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded, nn.Module)
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_trains_on_by_itself(how: str, derivations: list[NmLayer]) -> None:
    model = Network()
    sparsify(model, get_method("bdwp", decay=1e-3), "2:8", precision="native")
    expected = gradients(model)
    twin = COPIES[how](model)
    twin.zero_grad()
    derivations.clear()
    assert all(torch.equal(left, right)
               for left, right in zip(gradients(twin), expected, strict=True))
    assert len(derivations) == 5  # nothing derived travels with a copy
    before = model.head.weight.detach().clone()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert torch.equal(model.head.weight, before)
    plans = [layer.nm_plan for _, layer in sparse_layers(model)]
    assert [layer.nm_plan for _, layer in sparse_layers(twin)] == plans
