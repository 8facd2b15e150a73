"""Sparse layers under torch.compile: one graph, the same numbers, no recompilation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithms import Schedule, sparse_layers, sparsify

IMAGES = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    """A convolution and a linear layer of each kind: sparse, and dense by default."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(144, 32), nn.GELU(), nn.Linear(32, 10))


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def compiled(model: nn.Module, backend: str = "aot_eager") -> Callable[[Tensor], Tensor]:
    function: Any = torch.compile(model, fullgraph=True, backend=backend)
    return function  # type: ignore[no-any-return]


def backward(run: Callable[[Tensor], Tensor], model: nn.Module) -> tuple[Tensor, list[Tensor]]:
    """Output, and the gradients of input and parameters."""
    model.zero_grad()
    x = IMAGES.clone().requires_grad_()
    y = run(x)
    y.square().mean().backward()  # type: ignore[no-untyped-call]
    gradients = [x.grad, *(parameter.grad for parameter in model.parameters())]
    return y.detach(), [gradient for gradient in gradients if gradient is not None]


def check(precision: str, method: str, backend: str, steps: int) -> None:
    """A few optimiser steps, eager and compiled in turn from the same weights."""
    model = network()
    sparsify(model, method, "2:8", precision=precision)
    run = compiled(model, backend)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    masks = [[layer.forward_mask() for _, layer in sparse_layers(model)]]
    for _ in range(steps):
        twin = copy.deepcopy(model)
        expected, of_twin = backward(twin, twin)
        actual, gradients = backward(run, model)
        torch.testing.assert_close(actual, expected, rtol=2e-3, atol=2e-4)
        assert len(gradients) == len(of_twin) == 1 + len(list(model.parameters()))
        for gradient, other in zip(gradients, of_twin, strict=True):
            torch.testing.assert_close(gradient, other, rtol=2e-3, atol=2e-4)
        optimiser.step()
        masks.append([layer.forward_mask() for _, layer in sparse_layers(model)])
    assert graphs() == 1
    assert any(not torch.equal(left, right) for left, right
               in zip(masks[0], masks[-1], strict=True))


@pytest.mark.parametrize("precision", ["fp16", "native"])
@pytest.mark.parametrize("method", ["bdwp", "sdgp"])
def test_one_graph_equals_eager_while_masks_follow_the_weights(
    precision: str, method: str
) -> None:
    if method == "sdgp":
        model = network()
        sparsify(model, method, "2:8", precision=precision)
        expected = backward(model, model)
        actual = backward(compiled(model), model)
        torch.testing.assert_close(actual, expected)
    else:
        check(precision, method, "aot_eager", steps=3)


# Inductor scripts functions of its own, which torch itself deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.slow
def test_inductor_equals_eager() -> None:
    check("fp16", "bdwp", "inductor", steps=3)


def test_a_hand_written_update_is_seen() -> None:
    model = network()
    sparsify(model, precision="native")
    run = compiled(model)
    backward(run, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.flip(0))
    actual, _ = backward(run, model)
    expected, _ = backward(model, model)
    torch.testing.assert_close(actual, expected)
    assert graphs() == 1


def test_phases_of_a_schedule_share_one_graph() -> None:
    model = network()
    handle = sparsify(model, "bdwp", "2:8", schedule=Schedule(6, warmup=0.34, gradual=0.5))
    run = compiled(model)
    handle.attach(torch.optim.SGD(model.parameters(), lr=0.0))
    outputs = []
    for step in range(6):
        handle.restore(step)
        actual, gradients = backward(run, model)
        expected, of_eager = backward(model, model)
        torch.testing.assert_close((actual, gradients), (expected, of_eager))
        outputs.append(actual)
    assert len({str(output.tolist()) for output in outputs}) > 2
    assert graphs() == 1
