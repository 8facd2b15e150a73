"""The small residual network of the study."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SmallResNet"]


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    """Two blocks beside an identity: (B, width, H, W) to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _block(width, width), _block(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x + second(first(x))."""
        out: Tensor = x + self.second(self.first(x))
        return out


class SmallResNet(nn.Module):
    """Images (B, channels, side, side) to scores (B, classes): widths w, 2w, 4w, seven layers.

    The stem strides by ``stem_stride``, and so does the step to 2w by 2. Most of the work thus lies
    in small feature maps, and a training run takes seconds.
    """

    def __init__(self, width: int, channels: int = 1, stem_stride: int = 2, classes: int = 10
                 ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _block(channels, width, stem_stride),
            _Residual(width),
            _block(width, 2 * width, 2),
            _Residual(2 * width),
            _block(2 * width, 4 * width),
        )
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores, before softmax."""
        pooled = F.adaptive_avg_pool2d(self.features(images), 1).flatten(1)
        scores: Tensor = self.classifier(pooled)
        return scores
