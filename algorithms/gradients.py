"""dY as a sparse-training method sees it: pruned for BP, sampled for WU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.masks import apply_mask, nm_mask
from algorithms.mvue import MinimumVarianceSampler
from rtl.pattern import NmPattern

__all__ = ["Gradient"]


@dataclass(frozen=True)
class Gradient:
    """The gradient at a layer's output, (rows, C_out) or (B, C_out, H, W).

    tensor: dY as the GEMMs read it.
    groups: convolution groups, between which no N:M group along C_out may reach.
    rounding: dtype to whose values ``tensor`` is rounded.
    """

    tensor: Tensor
    groups: int
    rounding: torch.dtype

    def pruned(self, pattern: NmPattern) -> Tensor:
        """The N largest of M along C_out, inside each convolution group; the others zero."""
        if pattern.is_dense:
            return self.tensor
        blocks = torch.unflatten(self.tensor, 1, (self.groups, -1))
        mask = nm_mask(blocks, pattern, 2, rounding=self.rounding)
        return apply_mask(blocks, mask).flatten(1, 2)

    def sampled(self, pattern: NmPattern) -> Tensor:
        """At most N of M along batch and pixels, drawn without bias; rounded again.

        Pixels are in the order (image, row, column), as the reduction of WU runs.
        """
        if pattern.is_dense:
            return self.tensor
        sampler, tensor = MinimumVarianceSampler(pattern), self.tensor
        if tensor.dim() == 2:
            drawn = sampler.sample(tensor, 0)
        elif tensor[0, 0].numel() % pattern.m == 0:  # no group reaches into the next image
            drawn = sampler.sample(tensor.flatten(2), 2)
        else:
            rows = tensor.flatten(2).transpose(1, 2)
            drawn = sampler.sample(rows.flatten(0, 1), 0).view(rows.shape).transpose(1, 2)
        return drawn.reshape(self.tensor.shape).to(self.rounding).to(self.tensor.dtype)
