"""Real digits without distortion: scikit-learn's 1797 images of 8x8 in the five folds of one split.

Seed s tests on fold s % 5, so five seeds test every image once. Training accuracy is 100 %: nothing
separates methods here but by a point or so, and one image is 0.28 points of a fold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import nn

from benchmarks.accuracy.networks import SmallResNet
from benchmarks.accuracy.tasks import Recipe, Task, epochs_of
from benchmarks.resnet9_digits import FOLDS, digits_fold
from benchmarks.workload import Batch
from models.vit import ViTConfig, vit

__all__ = ["DigitsCnn", "DigitsVit"]


class _Digits(Task):
    """What both networks share: the data."""

    fixed_test: ClassVar[bool] = False

    def batches(self, seed: int, steps: int, batch: int) -> Iterator[Batch]:
        """Shuffled epochs of four folds."""
        return epochs_of(digits_fold(seed % FOLDS)[0], seed, steps, batch)

    def test(self, seed: int) -> Batch:
        """The fifth fold."""
        return digits_fold(seed % FOLDS)[1]


class DigitsCnn(_Digits):
    """The small ResNet; eight epochs."""

    name: ClassVar[str] = "digits-cnn"
    title: ClassVar[str] = "small ResNet w-2w-4w on real digits, 5 folds"
    recipe: ClassVar[Recipe] = Recipe(steps=176, batch=64, rate=0.1, smoothing=0.1)
    width: ClassVar[int] = 16
    widths: ClassVar[tuple[int, ...]] = (16, 32)
    lengths: ClassVar[tuple[int, ...]] = (88, 176, 352)

    def model(self, width: int, seed: int) -> nn.Module:
        """The stem keeps all 8x8 pixels."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SmallResNet(width, stem_stride=1)


class DigitsVit(_Digits):
    """A tiny vision transformer; thirty epochs."""

    name: ClassVar[str] = "digits-vit"
    title: ClassVar[str] = "ViT of width w, depth 2, on real digits, 5 folds"
    recipe: ClassVar[Recipe] = Recipe(
        steps=660, batch=64, rate=3e-3, fall="cosine", optimiser="adamw", weight_decay=0.05,
        decay_vectors=False, smoothing=0.1)
    width: ClassVar[int] = 64
    widths: ClassVar[tuple[int, ...]] = (32, 64)
    lengths: ClassVar[tuple[int, ...]] = (330, 660)

    def model(self, width: int, seed: int) -> nn.Module:
        """Patches of 2x2, 17 tokens, 4 heads."""
        config = ViTConfig(width, 2, 4, 2 * width, patch=2, channels=1, image=8, classes=10)
        return vit(config, seed)
