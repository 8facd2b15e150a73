"""Which scalar register of the chip holds what. The host writes them before a step."""

from __future__ import annotations

import enum
import math

from rtl.isa import SCALARS

__all__ = ["Scalar", "adamw_scalars", "sgd_scalars"]


class Scalar(enum.IntEnum):
    """Scalar registers by number."""

    INVERSE_SCALE = 0
    """1 / loss scale."""
    LEARNING_RATE = 1
    MOMENTUM = 2
    WEIGHT_DECAY = 3
    """SGD: what is added to the gradient for each unit of weight."""
    DECAY = 4
    """AdamW: 1 - learning rate * weight decay."""
    BETA1 = 5
    REST1 = 6
    """1 - beta1."""
    BETA2 = 7
    REST2 = 8
    """1 - beta2."""
    EPSILON = 9
    STEP_SIZE = 10
    """AdamW: learning rate / (1 - beta1^step)."""
    ROOT_CORRECTION = 11
    """AdamW: 1 / sqrt(1 - beta2^step)."""
    ERROR_SCALE = 12
    """Squared error: dY = (y - target) * this; for the mean, 2 * loss scale / elements."""


def _bank(values: dict[Scalar, float]) -> list[float]:
    return [values.get(Scalar(n), 0.0) if n in list(Scalar) else 0.0 for n in range(SCALARS)]


def sgd_scalars(
    learning_rate: float, *, momentum: float = 0.0, weight_decay: float = 0.0,
    loss_scale: float = 1.0, error_scale: float = 0.0,
) -> list[float]:
    """All scalar registers for a step of SGD."""
    return _bank({
        Scalar.INVERSE_SCALE: 1 / loss_scale, Scalar.LEARNING_RATE: learning_rate,
        Scalar.MOMENTUM: momentum, Scalar.WEIGHT_DECAY: weight_decay,
        Scalar.ERROR_SCALE: error_scale,
    })


def adamw_scalars(
    learning_rate: float, step: int, *, betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8, weight_decay: float = 0.01, loss_scale: float = 1.0,
    error_scale: float = 0.0,
) -> list[float]:
    """All scalar registers for step number ``step``, from 1, of AdamW."""
    beta1, beta2 = betas
    return _bank({
        Scalar.INVERSE_SCALE: 1 / loss_scale, Scalar.LEARNING_RATE: learning_rate,
        Scalar.DECAY: 1 - learning_rate * weight_decay,
        Scalar.BETA1: beta1, Scalar.REST1: 1 - beta1, Scalar.BETA2: beta2, Scalar.REST2: 1 - beta2,
        Scalar.EPSILON: epsilon, Scalar.STEP_SIZE: learning_rate / (1 - beta1**step),
        Scalar.ROOT_CORRECTION: 1 / math.sqrt(1 - beta2**step),
        Scalar.ERROR_SCALE: error_scale,
    })
