"""Optimisers that the chip runs, each one object: scalars, state, code, and PyTorch's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.chip.builder import ProgramBuilder
from compiler.chip.scalars import adamw_scalars, sgd_scalars
from compiler.chip.update_code import Parameter, emit_adamw, emit_sgd

if TYPE_CHECKING:  # the scheduler's processes do without PyTorch
    import torch
    from torch import nn

__all__ = ["AdamW", "Optimiser", "Sgd"]


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with momentum and weight decay, as :class:`torch.optim.SGD`."""

    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0

    @property
    def states(self) -> int:
        """FP32 state tensors a parameter."""
        return int(self.momentum != 0)

    @property
    def vector_ops(self) -> int:
        """Vector operations on each line of weights."""
        return 3 + 2 * (self.weight_decay != 0) + 2 * self.states

    def scalars(self, step: int, loss_scale: float, error_scale: float) -> list[float]:
        """Scalar registers for step number ``step``, from 1."""
        return sgd_scalars(self.learning_rate, momentum=self.momentum,
                           weight_decay=self.weight_decay, loss_scale=loss_scale,
                           error_scale=error_scale)

    def emit(self, builder: ProgramBuilder, parameter: Parameter) -> None:
        """Code for one parameter."""
        emit_sgd(builder, parameter, weight_decay=self.weight_decay != 0)

    def torch(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The same in PyTorch."""
        import torch

        return torch.optim.SGD(parameters, self.learning_rate, self.momentum,
                               weight_decay=self.weight_decay)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay, as :class:`torch.optim.AdamW`."""

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.01

    states = 2
    vector_ops = 15

    def scalars(self, step: int, loss_scale: float, error_scale: float) -> list[float]:
        """Scalar registers for step number ``step``, from 1."""
        return adamw_scalars(self.learning_rate, step, betas=self.betas, epsilon=self.epsilon,
                             weight_decay=self.weight_decay, loss_scale=loss_scale,
                             error_scale=error_scale)

    def emit(self, builder: ProgramBuilder, parameter: Parameter) -> None:
        """Code for one parameter."""
        emit_adamw(builder, parameter)

    def torch(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The same in PyTorch."""
        import torch

        return torch.optim.AdamW(parameters, self.learning_rate, self.betas, self.epsilon,
                                 self.weight_decay)


Optimiser = Sgd | AdamW
"""Any of them."""
