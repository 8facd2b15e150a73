"""ResNet-9, the smallest network of the SAT paper (arXiv:2309.13015), in three sizes.

Stem, a strided 5x5 convolution, two residual blocks around a pooled widening, one narrowing
convolution, global max pooling and a linear classifier. Every convolution is free of bias and
followed by batch normalisation and ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["RESNET9_SIZES", "ResNet9", "ResNet9Config", "resnet9"]


@dataclass(frozen=True)
class ResNet9Config:
    """Everything that shapes one ResNet-9.

    widths: channels after the stem, the strided convolution, the widening and the narrowing.
    channels, image: input channels and side of the square input image.
    last_padding: padding of the narrowing 3x3 convolution; 0 needs feature maps of 3x3 or more.
    classes: outputs of the classifier.
    """

    widths: tuple[int, int, int, int]
    channels: int
    image: int
    last_padding: int
    classes: int = 10


RESNET9_SIZES: dict[str, ResNet9Config] = {
    "tiny": ResNet9Config((16, 32, 64, 32), channels=1, image=8, last_padding=1),
    "small": ResNet9Config((32, 64, 128, 64), channels=1, image=8, last_padding=1),
    "full": ResNet9Config((128, 256, 512, 256), channels=3, image=32, last_padding=0),
}
"""``tiny`` and ``small`` read 8x8 grey digits; ``full`` has the published CIFAR-10 shape."""


def _block(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Two 3x3 blocks with an identity shortcut: (B, width, H, W) to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _block(width, width, 3, 1, 1)
        self.second = _block(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x + second(first(x))."""
        out: Tensor = x + self.second(self.first(x))
        return out


class ResNet9(nn.Module):
    """Images (B, channels, image, image), float32, to class scores (B, classes)."""

    def __init__(self, config: ResNet9Config) -> None:
        super().__init__()
        stem, early, wide, narrow = config.widths
        self.config = config
        self.stem = _block(config.channels, stem, 3, 1, 1)
        self.reduce = _block(stem, early, 5, 2, 2)
        self.residual1 = Residual(early)
        self.widen = _block(early, wide, 3, 1, 1)
        self.pool = nn.MaxPool2d(2)
        self.residual2 = Residual(wide)
        self.narrow = _block(wide, narrow, 3, 1, config.last_padding)
        self.global_pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = nn.Linear(narrow, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores, before softmax."""
        x = self.residual1(self.reduce(self.stem(images)))
        x = self.residual2(self.pool(self.widen(x)))
        x = self.global_pool(self.narrow(x)).flatten(1)
        scores: Tensor = self.classifier(x)
        return scores


def resnet9(config: ResNet9Config, seed: int) -> ResNet9:
    """A ResNet-9 initialised from ``seed`` alone; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet9(config)
