"""ResNet-18 and ResNet-50 (arXiv:1512.03385, table 1), in three sizes.

A 7x7 stem of stride 2, overlapping max pooling, four stages of residual blocks that halve the side
and double the width, global average pooling and a linear classifier. Every convolution is free of
bias and followed by batch normalisation; the classifier has a bias. In a bottleneck that halves the
side, the stride is on the 3x3 convolution and the 1x1 before it works at the full side: the
authors' own models have it on the first 1x1, but the usual figures of ResNet-50 (4.09 GMAC an
image) are for this form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "RESNET18_SIZES",
    "RESNET18_TINY_IMAGENET_SIZES",
    "RESNET50_SIZES",
    "BasicBlock",
    "BottleneckBlock",
    "ResNet",
    "ResNetConfig",
    "resnet",
]


@dataclass(frozen=True)
class ResNetConfig:
    """Everything that shapes one ResNet.

    widths: channels of each stage's 3x3 convolutions; the stem has those of the first stage.
    blocks: residual blocks of each stage.
    bottleneck: three convolutions a block, ending in four times the width, instead of two.
    channels, image: input channels and side of the square input image.
    classes: outputs of the classifier.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    bottleneck: bool
    channels: int
    image: int
    classes: int


_WIDTHS = (64, 128, 256, 512)
_BLOCKS18, _BLOCKS50 = (2, 2, 2, 2), (3, 4, 6, 3)

RESNET18_SIZES: dict[str, ResNetConfig] = {
    "tiny": ResNetConfig((8, 16, 32), (1, 1, 1), False, channels=1, image=32, classes=10),
    "small": ResNetConfig((16, 32, 64, 64), _BLOCKS18, False, channels=1, image=32, classes=10),
    "full": ResNetConfig(_WIDTHS, _BLOCKS18, False, channels=3, image=224, classes=1000),
}
"""``tiny`` and ``small`` read 8x8 grey digits enlarged to 32x32, because the stem and the pooling
behind it quarter the side; ``small`` has the published depth, ``full`` the ImageNet shape."""

RESNET18_TINY_IMAGENET_SIZES: dict[str, ResNetConfig] = {
    **RESNET18_SIZES,
    "full": ResNetConfig(_WIDTHS, _BLOCKS18, False, channels=3, image=64, classes=200),
}
"""ResNet-18 as above, with ``full`` in the shape of Tiny-ImageNet behind the same stem."""

RESNET50_SIZES: dict[str, ResNetConfig] = {
    "tiny": ResNetConfig((8, 8, 16), (1, 2, 1), True, channels=1, image=32, classes=10),
    "small": ResNetConfig((16, 16, 32, 32), _BLOCKS50, True, channels=1, image=32, classes=10),
    "full": ResNetConfig(_WIDTHS, _BLOCKS50, True, channels=3, image=224, classes=1000),
}
"""Images as for ResNet-18."""


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution that keeps the side but for its stride, and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """A 1x1 convolution where the block changes the shape; nothing, the identity, elsewhere."""
    unchanged = inputs == outputs and stride == 1
    return None if unchanged else _conv(inputs, outputs, 1, stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: (B, inputs, H, W) to (B, width, H / stride, W / stride)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(inputs, width, 3, stride)
        self.second = _conv(width, width, 3)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """relu(branch + shortcut)."""
        branch = self.second(F.relu(self.first(x)))
        return F.relu(branch + (x if self.shortcut is None else self.shortcut(x)))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1: (B, inputs, H, W) to (B, 4 * width, H / stride, W / stride)."""

    EXPANSION = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.EXPANSION * width
        self.narrow = _conv(inputs, width, 1)
        self.spatial = _conv(width, width, 3, stride)
        self.widen = _conv(width, outputs, 1)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """relu(branch + shortcut)."""
        branch = self.widen(F.relu(self.spatial(F.relu(self.narrow(x)))))
        return F.relu(branch + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    """Images (B, channels, image, image), float32, to class scores (B, classes)."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = _conv(config.channels, config.widths[0], 7, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        stages: list[nn.Module] = []
        inputs = config.widths[0]
        for index, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            layers: list[nn.Module] = []
            for number in range(blocks):
                # The pooling has just halved the side in front of the first stage.
                stride = 2 if index and not number else 1
                if config.bottleneck:
                    layers.append(BottleneckBlock(inputs, width, stride))
                    inputs = BottleneckBlock.EXPANSION * width
                else:
                    layers.append(BasicBlock(inputs, width, stride))
                    inputs = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores, before softmax."""
        x = self.stages(self.pool(F.relu(self.stem(images))))
        scores: Tensor = self.classifier(self.global_pool(x).flatten(1))
        return scores


def resnet(config: ResNetConfig, seed: int) -> ResNet:
    """A ResNet initialised from ``seed`` alone; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(config)
