"""A residual network without normalisation: convolution, bias, ReLU, residual, linear.

Every operator of it runs on the accelerator, forward and backward, so that a training step is one
uninterrupted program.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PLAIN_SIZES", "PlainNet", "PlainNetConfig", "plain_net"]


@dataclass(frozen=True)
class PlainNetConfig:
    """Everything that shapes one network.

    width: channels of the stem and of the residual block. wide: channels after the strided
    convolution. channels, image: input channels and side of the square input image.
    classes: outputs of the linear layer.
    """

    width: int
    wide: int
    channels: int
    image: int
    classes: int = 10


PLAIN_SIZES: dict[str, PlainNetConfig] = {
    "tiny": PlainNetConfig(16, 32, channels=1, image=8),
    "small": PlainNetConfig(32, 64, channels=1, image=8),
}
"""Both read 8x8 grey digits."""


class PlainNet(nn.Module):
    """Images (B, channels, image, image), float32, to class scores (B, classes)."""

    def __init__(self, config: PlainNetConfig) -> None:
        super().__init__()
        self.config = config
        side = config.image // 2
        self.stem = nn.Conv2d(config.channels, config.width, 3, padding=1)
        self.first = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.second = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.reduce = nn.Conv2d(config.width, config.wide, 3, stride=2, padding=1)
        self.hidden = nn.Conv2d(config.wide, config.wide, side)
        self.classifier = nn.Linear(config.wide, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores."""
        x = F.relu(self.stem(images))
        x = F.relu(self.second(F.relu(self.first(x))) + x)
        x = F.relu(self.reduce(x))
        x = F.relu(self.hidden(x))
        scores: Tensor = self.classifier(x.flatten(1))
        return scores


def plain_net(config: PlainNetConfig, seed: int) -> PlainNet:
    """A network initialised from ``seed`` alone; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PlainNet(config)
