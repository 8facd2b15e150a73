"""Captured GEMMs against autograd: every gradient comes back out of the matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms import METHODS, Method, get_method, sparse_layers, sparsify
from compiler.array.capture import Captured, capture
from rtl.pattern import DENSE, NmPattern
from sim import golden

CONVOLUTIONS = [
    nn.Conv2d(3, 8, 3, padding=1, bias=False),
    nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2),
    nn.Conv2d(4, 5, (3, 2), stride=(2, 3), padding=(0, 2), dilation=(1, 2)),
    nn.Conv2d(4, 6, 3, padding="same", dilation=2),
    nn.Conv2d(8, 8, 3, padding=1, groups=8),
    nn.Conv2d(5, 7, 1, stride=2),
]


def half(value: Tensor) -> Tensor:
    return value.detach().to(torch.float16).float()


def step(model: nn.Module, x: Tensor, weights: Tensor) -> Callable[[], None]:
    """A forward and backward pass whose output gradient is ``weights``."""

    def run() -> None:
        model.zero_grad()
        (model(x) * weights).sum().backward()

    return run


def products(captured: Captured, stage: str) -> dict[str, np.ndarray]:
    return {
        g.layer: golden.gemm(g.a, g.b, g.pattern) for g in captured.gemms if g.stage == stage
    }


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_convolution_gemms_are_the_three_passes(layer: nn.Conv2d) -> None:
    """Operands with few bits make every sum exact, so all must be equal, not close."""
    torch.manual_seed(0)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-4, 5, layer.weight.shape) / 4)
    x = (torch.randint(-4, 5, (2, layer.in_channels, 11, 10)) / 4).requires_grad_()
    y = layer(x)
    gradient = torch.randint(-4, 5, y.shape) / 4
    captured = capture(layer, step(layer, x, gradient))
    assert captured.unsupported == ()
    assert {g.stage for g in captured.gemms} == {"FF", "BP", "WU"}
    for gemm in captured.gemms:
        np.testing.assert_array_equal(golden.gemm(gemm.a, gemm.b, gemm.pattern), gemm.torch_c)

    bias = 0 if layer.bias is None else layer.bias[:, None, None]
    ff = list(products(captured, "FF").values())
    out = (y - bias).detach().permute(0, 2, 3, 1).flatten(0, 2)
    np.testing.assert_allclose(np.concatenate(ff, 1), out, atol=1e-6)
    assert layer.weight.grad is not None
    wu = [c.reshape(*layer.kernel_size, -1, c.shape[1]) for c in products(captured, "WU").values()]
    dw = np.concatenate([c.transpose(3, 2, 0, 1) for c in wu])
    np.testing.assert_array_equal(dw, layer.weight.grad)
    assert x.grad is not None
    total = sum(float(c.sum()) for c in products(captured, "BP").values())
    assert total == float(x.grad.sum())


def trained_like(
    method: str | Method, gradient: str = "1:2"
) -> tuple[nn.Module, Captured]:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(24 * 9, 20), nn.Tanh(), nn.Linear(20, 4),
    )
    sparsify(model, method, "2:8", gradient=gradient)
    x = torch.randn(3, 2, 8, 8)
    return model, capture(model, step(model, x, torch.randn(3, 4)))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_torch_its_own_result(method: str) -> None:
    """PyTorch pruned with its masks, golden with its own selection: the errors must be tiny."""
    _, captured = trained_like(method)
    sparse = {g.name for g in captured.gemms if g.pattern != DENSE}
    assert bool(sparse) == (method != "dense")
    for gemm in captured.gemms:
        yardstick = golden.Yardstick.of(gemm.a, gemm.b, gemm.pattern)
        assert yardstick.error(gemm.torch_c) < 2e-6, gemm.name


@pytest.mark.parametrize("gradient", ["1:2", "2:4"])
def test_sampled_gradients_are_those_that_wu_read(gradient: str) -> None:
    """Packing keeps every element that is not zero: the weight gradients are autograd's."""
    model, captured = trained_like("bdwp+wu", gradient)
    pattern = NmPattern.parse(gradient)
    wu = {g.layer: g for g in captured.gemms if g.stage == "WU"}
    assert {layer: g.pattern for layer, g in wu.items()} == {
        "0": DENSE, "2": pattern, "5": pattern, "7": DENSE}
    for layer in "25":
        gemm = wu[layer]
        np.testing.assert_array_equal(golden.gemm(gemm.a, gemm.b, gemm.pattern),
                                      golden.gemm(gemm.a, gemm.b))
        kept = gemm.b.astype(bool)
        padded = np.pad(kept, ((0, -len(kept) % pattern.m), (0, 0)))
        assert padded.reshape(-1, pattern.m, kept.shape[1]).sum(1).max() <= pattern.n
        grad = model.get_parameter(f"{layer}.weight").grad
        assert grad is not None
        c = golden.gemm(gemm.a, gemm.b, gemm.pattern)
        ours = c.reshape(*grad.shape[2:], -1, len(grad)) if grad.dim() == 4 else c
        turned = ours.transpose(3, 2, 0, 1) if grad.dim() == 4 else ours.T
        np.testing.assert_allclose(turned, grad, rtol=1e-5, atol=1e-6)
    assert all(watched._nm_watcher is None for _, watched in sparse_layers(model))


@pytest.mark.parametrize("options", [
    {"backward_mask": "double"}, {"backward_mask": "transposable"}, {"magnitudes": "soft"},
    {"magnitudes": "rescaled"},
], ids=str)
def test_weights_that_sore_would_not_make_are_the_layers_own(options: dict[str, str]) -> None:
    model, captured = trained_like(get_method("bdwp+wu", **options))
    layer = dict(sparse_layers(model))["5"]
    (ff,) = (g for g in captured.gemms if g.name == "5 FF")
    np.testing.assert_array_equal(ff.b, layer.forward_weight().T)
    for gemm in captured.gemms:
        yardstick = golden.Yardstick.of(gemm.a, gemm.b, gemm.pattern)
        assert yardstick.error(gemm.torch_c) < 2e-6, gemm.name


def test_bdwp_prunes_ff_and_bp_of_inner_layers_only() -> None:
    _, captured = trained_like("bdwp")
    patterns: dict[str, dict[str, NmPattern]] = {}
    for gemm in captured.gemms:
        patterns.setdefault(gemm.layer.split("[")[0], {})[gemm.stage] = gemm.pattern
    sparse = NmPattern(2, 8)
    assert patterns == {
        "0": {"FF": DENSE, "WU": DENSE},
        "2": {"FF": sparse, "BP": sparse, "WU": DENSE},
        "5": {"FF": sparse, "BP": sparse, "WU": DENSE},
        "7": {"FF": DENSE, "BP": DENSE, "WU": DENSE},
    }


def test_leftover_channels_are_padded_and_reported() -> None:
    _, captured = trained_like("bdwp")
    (gemm,) = (g for g in captured.gemms if g.name == "5 BP")
    assert gemm.a.shape == (3, 24)
    assert gemm.padded_channels == 4


def test_shared_and_frozen_layers() -> None:
    """Each call of a layer gives its GEMMs; a frozen layer has no WU."""
    shared = nn.Linear(8, 8)
    frozen = nn.Linear(8, 8).requires_grad_(False)
    model = nn.Sequential(shared, nn.Tanh(), frozen, nn.Tanh(), shared)
    x = torch.randn(5, 8)
    captured = capture(model, step(model, x, torch.ones(5, 8)))
    names = [g.name for g in captured.gemms]
    assert names == ["0 FF", "0 WU", "0[#1] FF", "0[#1] BP", "0[#1] WU", "2 FF", "2 BP"]
    first, second = (products(captured, "WU")[name] for name in ("0", "0[#1]"))
    assert shared.weight.grad is not None
    np.testing.assert_allclose((first + second).T, shared.weight.grad, atol=2e-2)


class Product(nn.Module):
    """A linear layer and a matrix product that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y @ y.T


def test_unsupported_work_is_listed() -> None:
    model = nn.Sequential(Product(), nn.Conv1d(3, 2, 1))
    captured = capture(model, lambda: model(torch.randn(3, 4)[:, :]).sum().backward())
    found = {entry.module: entry for entry in captured.unsupported}
    assert set(found) == {"0", "1"}
    assert all(entry.flops > 0 for entry in found.values())
    assert str(found["1"]).startswith("1 (Conv1d): matrix products outside")


def test_padding_modes_are_refused() -> None:
    model = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    x = torch.randn(1, 2, 5, 5)
    captured = capture(model, step(model, x, torch.ones(1, 2, 5, 5)))
    assert captured.gemms == ()
    assert "padding_mode='circular'" in str(captured.unsupported[0])
