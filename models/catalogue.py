"""The networks of the SAT paper (arXiv:2309.13015) by name, each in three sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.resnet import (
    RESNET18_SIZES,
    RESNET18_TINY_IMAGENET_SIZES,
    RESNET50_SIZES,
    resnet,
)
from models.resnet9 import RESNET9_SIZES, resnet9
from models.vgg19 import VGG19_SIZES, vgg19
from models.vit import VIT_SIZES, vit

__all__ = ["CATALOGUE", "CatalogueEntry", "ImageConfig"]


class ImageConfig(Protocol):
    """What the configurations of all networks have in common."""

    @property
    def channels(self) -> int:
        """Channels of an input image."""

    @property
    def image(self) -> int:
        """Side of the square input image."""

    @property
    def classes(self) -> int:
        """Scores that an image gets."""


@dataclass(frozen=True)
class CatalogueEntry:
    """One network.

    name: its key in :data:`CATALOGUE`.
    summary: one line for reports: the network and what ``full`` is shaped for.
    configs: what shapes the network, by size.
    make: network from one of the configurations and a seed.
    full_batch: examples of a training step at size ``full``; the paper's own are not known.

    Methods raise :class:`ValueError` for a size that is not in ``configs``.
    """

    name: str
    summary: str
    configs: Mapping[str, ImageConfig]
    make: Callable[[Any, int], nn.Module]
    full_batch: int = 512

    def config(self, size: str) -> ImageConfig:
        """What shapes the network at ``size``."""
        if size not in self.configs:
            raise ValueError(f"size={size!r}: must be one of {', '.join(self.configs)}")
        return self.configs[size]

    def build(self, size: str, seed: int = 0) -> nn.Module:
        """A dense network whose initial weights depend on ``seed`` alone.

        Under ``torch.device("meta")`` it has shapes only.
        """
        return self.make(self.config(size), seed)

    def input_shape(self, size: str) -> tuple[int, int, int]:
        """(channels, height, width) of one example."""
        config = self.config(size)
        return config.channels, config.image, config.image

    def classes(self, size: str) -> int:
        """Outputs of the classifier."""
        return self.config(size).classes

    def batch(self, size: str) -> int:
        """Examples of a training step where nobody says how many."""
        self.config(size)
        return {"tiny": 4, "small": 64, "full": self.full_batch}[size]

    def example(
        self, size: str, batch: int | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Inputs (batch, channels, height, width), float32: the same Gaussian noise at every call.

        On ``meta``, where values do not exist, nothing is drawn.
        """
        count = self.batch(size) if batch is None else batch
        shape = (count, *self.input_shape(size))
        if torch.device(device).type == "meta":
            return torch.zeros(shape, device="meta")
        generator = torch.Generator().manual_seed(0)
        return torch.randn(shape, generator=generator, device="cpu").to(device)


CATALOGUE: dict[str, CatalogueEntry] = {
    entry.name: entry
    for entry in (
        CatalogueEntry("resnet9", "ResNet-9, CIFAR-10", RESNET9_SIZES, resnet9),
        CatalogueEntry("vgg19", "VGG-19, CIFAR-100", VGG19_SIZES, vgg19),
        CatalogueEntry("vit", "vision transformer, CIFAR-100", VIT_SIZES, vit),
        CatalogueEntry("resnet18", "ResNet-18, ImageNet", RESNET18_SIZES, resnet),
        CatalogueEntry("resnet18-tiny-imagenet", "ResNet-18, Tiny-ImageNet",
                       RESNET18_TINY_IMAGENET_SIZES, resnet),
        CatalogueEntry("resnet50", "ResNet-50, ImageNet", RESNET50_SIZES, resnet, full_batch=256),
    )
}
"""Every network, by name."""
