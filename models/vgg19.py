"""VGG-19 for small images (arXiv:1409.1556, configuration E), in three sizes.

Five stages of 3x3 convolutions with max pooling behind them, and one linear classifier in place of
the published three, which were made for 7x7 maps: the form in use for CIFAR. Every convolution is
free of bias and followed by batch normalisation and ReLU; the classifier has a bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["VGG19_SIZES", "Vgg19", "Vgg19Config", "VggStage", "vgg19"]


class VggStage(NamedTuple):
    """``convs`` convolutions of ``width`` channels; then, with ``pool``, half the side."""

    width: int
    convs: int
    pool: bool = True


@dataclass(frozen=True)
class Vgg19Config:
    """Everything that shapes one VGG-19.

    stages: in order; the pooling in them must bring the image down to a single pixel.
    channels, image: input channels and side of the square input image.
    classes: outputs of the classifier.
    """

    stages: tuple[VggStage, ...]
    channels: int
    image: int
    classes: int


_SMALL = (VggStage(16, 2, pool=False), VggStage(32, 2), VggStage(64, 4, pool=False),
          VggStage(64, 4), VggStage(64, 4))
_FULL = (VggStage(64, 2), VggStage(128, 2), VggStage(256, 4), VggStage(512, 4), VggStage(512, 4))

VGG19_SIZES: dict[str, Vgg19Config] = {
    "tiny": Vgg19Config((VggStage(8, 1), VggStage(16, 2), VggStage(16, 2)), 1, 8, 10),
    "small": Vgg19Config(_SMALL, channels=1, image=8, classes=10),
    "full": Vgg19Config(_FULL, channels=3, image=32, classes=100),
}
"""``tiny`` and ``small`` read 8x8 grey digits, ``small`` at the published depth; ``full`` has the
CIFAR-100 shape."""


class Vgg19(nn.Module):
    """Images (B, channels, image, image), float32, to class scores (B, classes)."""

    def __init__(self, config: Vgg19Config) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        inputs = config.channels
        for stage in config.stages:
            for _ in range(stage.convs):
                layers += [nn.Conv2d(inputs, stage.width, 3, padding=1, bias=False),
                           nn.BatchNorm2d(stage.width), nn.ReLU(inplace=True)]
                inputs = stage.width
            if stage.pool:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores, before softmax."""
        scores: Tensor = self.classifier(self.features(images).flatten(1))
        return scores


def vgg19(config: Vgg19Config, seed: int) -> Vgg19:
    """A VGG-19 initialised from ``seed`` alone; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Vgg19(config)
