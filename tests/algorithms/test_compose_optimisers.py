"""Any optimiser: masks follow the weights, and the numbers are those of a reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms import NmLayer, nm_mask, sparsify
from rtl.pattern import NmPattern

X = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
TARGET = torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
PATTERN = NmPattern(2, 8)


class Signs(torch.optim.Optimizer):
    """Hand-written, in place: each weight moves by the rate, against its gradient's sign."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        """One step."""
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(parameter.grad.sign(), alpha=-group["lr"])


OPTIMISERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.05, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "by hand": lambda p: Signs(p, lr=0.02),
}


class Reference(torch.autograd.Function):
    """BDWP of a matrix in three lines, its masks made anew in each pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """x (rows, C_in), weight (C_out, C_in)."""
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight * nm_mask(weight, PATTERN, 1, rounding=torch.float32))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """dX and dW."""
        x, weight = ctx.saved_tensors
        mask = nm_mask(weight, PATTERN, 0, rounding=torch.float32)
        return grad @ (weight * mask), grad.T @ x


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(16, 16, generator=generator) / 4) for _ in range(2)]


def train(
    parameters: list[nn.Parameter], run: Callable[[Tensor], Tensor], name: str
) -> list[float]:
    """Losses of five steps."""
    optimiser = OPTIMISERS[name](parameters)
    losses = []

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.mse_loss(run(X), TARGET)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for _ in range(5):
        losses.append(F.mse_loss(run(X), TARGET).item())
        if name == "lbfgs":
            optimiser.step(closure)  # type: ignore[arg-type]
        else:
            closure()
            optimiser.step()
    return losses


@pytest.mark.parametrize("name", OPTIMISERS)
def test_training_equals_the_reference(name: str) -> None:
    expected = matrices()
    reference: Any = Reference.apply
    losses = train(
        expected, lambda x: reference(reference(x, expected[0]).relu(), expected[1]), name)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 16, bias=False))
    first, last = model[0], model[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    first.weight, last.weight = matrices()
    sparsify(model, "bdwp", PATTERN, rules={"*": PATTERN}, precision="native")
    assert isinstance(first, NmLayer)
    mask = first.forward_mask()
    actual = train(list(model.parameters()), model, name)
    assert actual == pytest.approx(losses, rel=1e-4)
    assert actual[-1] < actual[0]
    assert not torch.equal(first.forward_mask(), mask)
    for found, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
