"""Sparse layers under autocast and a loss scaler: dtypes and numbers of the plain layer."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from algorithms import NmLayer, Schedule, sparsify

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
KINDS = pytest.mark.parametrize("kind", ["linear", "conv"])


def plain(kind: str) -> tuple[nn.Module, Tensor]:
    """One layer and its input."""
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(32, 24), torch.randn(6, 32)
    return nn.Conv2d(16, 24, 3, padding=1), torch.randn(2, 16, 5, 5)


def sparse(layer: nn.Module, method: str, precision: str) -> NmLayer:
    sparsify(layer, method, "2:8", rules={"*": "2:8"}, precision=precision)
    assert isinstance(layer, NmLayer)
    return layer


def step(layer: nn.Module, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Output, and gradients of input, weight and bias, under autocast to ``dtype``."""
    own = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y: Tensor = layer(own)
        loss = y.float().square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [own.grad, layer.get_parameter("weight").grad, layer.get_parameter("bias").grad]
    return y.detach(), [gradient for gradient in gradients if gradient is not None]


@DTYPES
@KINDS
def test_native_dense_equals_the_plain_layer(kind: str, dtype: torch.dtype) -> None:
    layer, x = plain(kind)
    expected, of_plain = step(copy.deepcopy(layer), x, dtype)
    actual, gradients = step(sparse(layer, "dense", "native"), x, dtype)
    assert actual.dtype == expected.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(actual, expected, rtol=8 * eps, atol=eps / 8)
    assert len(gradients) == len(of_plain) == 3
    for gradient, other in zip(gradients, of_plain, strict=True):
        assert gradient.dtype == other.dtype == torch.float32
        torch.testing.assert_close(gradient, other, rtol=8 * eps, atol=eps / 8)


@DTYPES
@KINDS
def test_native_masks_are_those_of_the_operand_that_autocast_makes(
    kind: str, dtype: torch.dtype
) -> None:
    layer, x = plain(kind)
    with torch.no_grad():  # equal in bfloat16, where the lower index wins; not in float32
        layer.get_parameter("weight").copy_(
            1 + torch.rand_like(layer.get_parameter("weight")) * 2.0**-12)
    module = sparse(layer, "srste", "native")
    y, _ = step(module, x, dtype)
    assert y.dtype == dtype
    if dtype == torch.bfloat16:
        kept = torch.unflatten(module.forward_mask().movedim(1, -1), -1, (-1, 8))
        assert kept[..., :2].all() and not kept[..., 2:].any()


@DTYPES
@KINDS
def test_fp16_precision_ignores_autocast(kind: str, dtype: torch.dtype) -> None:
    layer, x = plain(kind)
    module = sparse(layer, "bdwp", "fp16")
    expected = module(x)
    actual, gradients = step(module, x, dtype)
    assert actual.dtype == torch.float32 and torch.equal(actual, expected)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


def test_masks_are_made_once_a_step_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    derive = NmLayer._derive

    def counted(self: NmLayer, *args: object) -> object:
        nonlocal made
        made += 1
        return derive(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(NmLayer, "_derive", counted)
    layer, x = plain("linear")
    handle = sparsify(layer, "srste", "2:8", rules={"*": "2:8"}, precision="native")
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle.attach(optimiser)  # decay reads the mask of the forward pass
    for _ in range(3):
        step(layer, x, torch.bfloat16)
        optimiser.step()
    assert made == 3


def test_evaluation_between_two_steps_leaves_no_trace() -> None:
    layer, x = plain("linear")
    module = sparse(layer, "bdwp", "native")
    first = step(module, x, torch.bfloat16)
    with torch.inference_mode():
        full = module(x)
    module.zero_grad()
    torch.testing.assert_close(step(module, x, torch.bfloat16), first, rtol=0, atol=0)
    assert full.dtype == torch.float32


@pytest.mark.parametrize("fused", [False, True])
def test_decay_is_free_of_the_loss_scale_and_skipped_steps_count_for_nothing(fused: bool) -> None:
    def weights(scale: float | None) -> Tensor:
        layer, x = plain("linear")
        handle = sparsify(layer, "srste", "2:8", rules={"*": "2:8"}, precision="native",
                          schedule=Schedule(10))
        optimiser = torch.optim.SGD(layer.parameters(), lr=0.5, fused=fused)
        handle.attach(optimiser)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        # Without a scaler the overflowing step is left out by hand.
        for factor in (1.0, math.inf, 1.0) if scale else (1.0, 1.0):
            loss = layer(x).square().mean() * factor
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad()
        assert handle.steps == 2
        return layer.get_parameter("weight").detach()

    torch.testing.assert_close(weights(1024.0), weights(None), rtol=1e-5, atol=1e-7)
