"""ResNet-9 on scikit-learn's handwritten digits: 1797 real 8x8 grey images of ten classes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean
from typing import ClassVar

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import StratifiedKFold  # type: ignore[import-untyped]
from torch import Tensor, nn

from algorithms import sparsify
from benchmarks.macs import training_macs
from benchmarks.training import Recipe, minimise, reported_patterns
from benchmarks.workload import Batch, Claim, Metric, Progress, Trained, TrainResult, Workload
from models.resnet9 import RESNET9_SIZES, resnet9
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

__all__ = ["FOLDS", "RECIPE", "ResNet9Digits", "digits_fold"]

FOLDS = 5
"""Folds of the one fixed stratified split; seed s tests on fold s % FOLDS."""

RECIPE = Recipe(epochs=8, batch=64, rate=0.1)
"""One recipe for every method, chosen with a look at dense and BDWP on these same folds."""

LABEL_SMOOTHING = 0.1

PAPER_LOSS, PAPER_SPEEDUP = 0.56, 1.75
"""arXiv:2309.13015, abstract: mean accuracy loss in points and mean speed-up at 2:8."""


@lru_cache(maxsize=FOLDS)
def digits_fold(fold: int) -> tuple[Batch, Batch]:
    """Training and test data of a fold: images (count, 1, 8, 8) float32 and labels (count,) int64.

    Pixels are shifted and scaled by mean and standard deviation of the training part.
    """
    pixels, labels = load_digits(return_X_y=True)
    split = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(pixels, labels)
    train, test = (torch.from_numpy(part) for part in list(split)[fold])
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8)
    images = (images - images[train].mean()) / images[train].std()
    targets = torch.from_numpy(labels)
    return Batch(images[train], targets[train]), Batch(images[test], targets[test])


class ResNet9Digits(Workload):
    """The spine's workload. Size ``full`` has the CIFAR-10 shape and is compiled only."""

    name: ClassVar[str] = "resnet9"
    title: ClassVar[str] = "ResNet-9 on scikit-learn's handwritten digits"
    train_batch: ClassVar[int] = RECIPE.batch

    def model(self, size: str, seed: int) -> nn.Module:
        """A dense ResNet-9."""
        return resnet9(RESNET9_SIZES[self.check_size(size)], seed)

    def batch(self, size: str, count: int, seed: int = 0) -> Batch:
        """Digits from the training part of the seed's fold.

        For ``full``, of whose data nothing is shipped, Gaussian noise in the shape of CIFAR-10.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.check_size(size) == "full":
            config = RESNET9_SIZES[size]
            shape = (count, config.channels, config.image, config.image)
            return Batch(torch.randn(shape, generator=generator),
                         torch.randint(config.classes, (count,), generator=generator))
        train, _ = digits_fold(seed % FOLDS)
        available = len(train.inputs)
        if not 1 <= count <= available:
            rule = f"must lie between 1 and the {available} training images"
            raise ParameterError("batch", count, rule, min(max(count, 1), available))
        chosen = torch.randperm(available, generator=generator)[:count]
        return Batch(train.inputs[chosen], train.targets[chosen])

    def score_loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy with label smoothing."""
        return F.cross_entropy(scores, targets, label_smoothing=LABEL_SMOOTHING)

    def claim(
        self, dense: Sequence[Trained], sparse: Sequence[Trained], speedup: float, size: str
    ) -> Claim:
        """The paper's mean over its networks, 2:8: at most 0.56 points lost, 1.75x as fast."""
        baseline, ours = (fmean(run.result.metric.value for run in runs)
                          for runs in (dense, sparse))
        return Claim(
            text=f"at most {PAPER_LOSS} points of accuracy lost, a training step of batch "
                 f"{self.train_batch} at least {PAPER_SPEEDUP}x as fast as dense",
            baseline=baseline,
            ours=ours,
            holds=baseline - ours <= PAPER_LOSS and speedup >= PAPER_SPEEDUP,
        )

    def fit(
        self,
        method: str = "bdwp",
        pattern: str | NmPattern = "2:8",
        epochs: int | None = None,
        seed: int = 0,
        size: str = "small",
        progress: Progress | None = None,
        *,
        gradient: str | NmPattern = "1:2",
    ) -> Trained:
        """Train on four folds and test on the fifth."""
        start = time.perf_counter()
        epochs = RECIPE.epochs if epochs is None else epochs
        model = self.model(self.check_size(size, trained=True), seed)
        chosen = NmPattern.parse(pattern) if isinstance(pattern, str) else pattern
        sparsify(model, method, chosen, gradient=gradient)
        train, test = digits_fold(seed % FOLDS)
        scale = minimise(model, self.loss, train, RECIPE, epochs, seed, progress)
        model.eval()
        with torch.no_grad():
            correct = (model(test.inputs).argmax(1) == test.targets).double().mean().item()
        result = TrainResult(
            workload=self.name,
            method=method,
            **reported_patterns(model, chosen, gradient),
            seed=seed,
            epochs=epochs,
            metric=Metric(name="test accuracy, %", value=100 * correct, higher_is_better=True),
            train_mac_ratio=training_macs(model, train.inputs[: RECIPE.batch]).ratio,
            seconds=time.perf_counter() - start,
        )
        return Trained(model, result, scale)
