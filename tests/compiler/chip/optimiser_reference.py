"""The optimiser steps of :mod:`compiler.chip.update_code` in numpy float32, operation by operation.

Each function takes float32 arrays of one shape and all scalar registers, and returns the new
weights and state; nothing is changed in place. Every line below rounds once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from compiler.chip.scalars import Scalar

__all__ = ["adamw", "sgd"]

Single = npt.NDArray[np.float32]


def sgd(
    weights: Single, gradient: Single, scalars: Sequence[float], momentum: Single | None = None,
    *, weight_decay: bool = True,
) -> tuple[Single, Single | None]:
    """Weights and momentum after a step of :func:`compiler.chip.update_code.emit_sgd`."""
    bank = np.array(scalars, np.float32)
    step = gradient * bank[Scalar.INVERSE_SCALE]
    if weight_decay:
        decay = weights * bank[Scalar.WEIGHT_DECAY]
        step = step + decay
    if momentum is not None:
        momentum = momentum * bank[Scalar.MOMENTUM]
        step = momentum = momentum + step
    change = step * bank[Scalar.LEARNING_RATE]
    return weights - change, momentum


def adamw(
    weights: Single, gradient: Single, scalars: Sequence[float], mean: Single, square: Single
) -> tuple[Single, Single, Single]:
    """Weights, mean and mean square after :func:`compiler.chip.update_code.emit_adamw`."""
    bank = np.array(scalars, np.float32)
    gradient = gradient * bank[Scalar.INVERSE_SCALE]
    weights = weights * bank[Scalar.DECAY]
    mean = mean * bank[Scalar.BETA1]
    share = gradient * bank[Scalar.REST1]
    mean = mean + share
    square = square * bank[Scalar.BETA2]
    share = gradient * gradient
    share = share * bank[Scalar.REST2]
    square = square + share
    root = np.sqrt(square)
    root = root * bank[Scalar.ROOT_CORRECTION]
    root = root + bank[Scalar.EPSILON]
    change = mean * bank[Scalar.STEP_SIZE]
    change = change / root
    return weights - change, mean, square
