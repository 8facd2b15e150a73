"""Vision transformer (arXiv:2010.11929) at the scale of CIFAR, in three sizes.

Patches become tokens, a learned class token goes in front, learned positions are added. Blocks of
attention and a two-layer perceptron follow, each of the two behind a layer normalisation and beside
an identity. The class token alone, normalised, is classified.

Biases: the patch embedding, the projection behind the attention, both layers of the perceptron, the
classifier and every layer normalisation have one. Queries, keys and values are one linear layer
without.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["VIT_SIZES", "ViT", "ViTConfig", "vit"]

POSITION_DEVIATION = 0.02
"""Standard deviation of the initial positions, that of the authors' code."""


@dataclass(frozen=True)
class ViTConfig:
    """Everything that shapes one vision transformer.

    width: features of a token, a multiple of ``heads``. depth: blocks.
    hidden: features inside the perceptron.
    patch: side of a patch; divides ``image``.
    channels, image: input channels and side of the square input image.
    classes: outputs of the classifier.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    channels: int
    image: int
    classes: int

    @property
    def tokens(self) -> int:
        """Length of the sequence: one token a patch, and the class token."""
        return (self.image // self.patch) ** 2 + 1


VIT_SIZES: dict[str, ViTConfig] = {
    "tiny": ViTConfig(32, 2, 2, 32, patch=2, channels=1, image=8, classes=10),
    "small": ViTConfig(64, 6, 4, 64, patch=2, channels=1, image=8, classes=10),
    "full": ViTConfig(512, 6, 8, 512, patch=4, channels=3, image=32, classes=100),
}
"""``tiny`` and ``small`` read 8x8 grey digits as 17 tokens. ``full`` reads CIFAR-100 as 65, in the
shape in use for training from scratch there: width 512, depth 6, 8 heads, perceptron 512."""


class Attention(nn.Module):
    """Self-attention of all tokens: (B, T, width) to the same shape."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.split = (3, heads, width // heads)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """project(softmax(q k^T / sqrt(head)) v), the heads side by side."""
        # (B, T, 3 * width) to three of (B, heads, T, head).
        qkv = self.qkv(x).unflatten(2, self.split).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        out: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention and perceptron, each with an identity shortcut: (B, T, width) to the same shape."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.expand = nn.Linear(config.width, config.hidden)
        self.contract = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """x + attention, then that + perceptron."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.contract(F.gelu(self.expand(self.norm2(x))))
        return out


class ViT(nn.Module):
    """Images (B, channels, image, image), float32, to class scores (B, classes)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        # One linear layer over the pixels of every patch.
        self.embed = nn.Conv2d(config.channels, config.width, config.patch, config.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.positions = nn.Parameter(
            POSITION_DEVIATION * torch.randn(1, config.tokens, config.width))
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width)
        self.classifier = nn.Linear(config.width, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores, before softmax."""
        patches = self.embed(images).flatten(2).transpose(1, 2)
        token = self.class_token.expand(images.shape[0], -1, -1)
        x = self.blocks(torch.cat([token, patches], 1) + self.positions)
        scores: Tensor = self.classifier(self.norm(x[:, 0]))
        return scores


def vit(config: ViTConfig, seed: int) -> ViT:
    """A vision transformer initialised from ``seed`` alone; torch's global generator is left as it
    was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViT(config)
