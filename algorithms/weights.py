"""The weight operands of FF and BP, derived from the master weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms.gpu import select
from algorithms.masks import apply_mask, nm_mask
from algorithms.native.kernels import prune_into, supports
from algorithms.transposable import transposable_mask
from rtl.pattern import NmPattern

__all__ = ["C_IN", "C_OUT", "Axis", "MaskStore", "Weight"]

Axis = Literal["C_in", "C_out"]

C_IN: Axis = "C_in"
"""Groups over input channels: the sum of FF."""
C_OUT: Axis = "C_out"
"""Groups over output channels: the sum of BP."""

Magnitudes = Literal["hard", "soft", "rescaled"]


@dataclass
class MaskStore:
    """Masks that stay for ``interval`` versions of the weights; with 1, none are held."""

    interval: int
    age: int = 0
    held: dict[str, Tensor] = field(default_factory=dict)

    def next_version(self) -> None:
        """The weights have changed."""
        self.age += 1
        if self.age >= self.interval:
            self.age = 0
            self.held.clear()

    def get(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """The mask called ``key``, made if it is not held."""
        if self.interval == 1:
            return make()
        if key not in self.held:
            self.held[key] = make()
        return self.held[key]


@dataclass(frozen=True)
class Weight:
    """One version of a layer's master weights, (C_out, C_in / groups, ...), and its operands.

    master: without gradient; any floating dtype.
    groups: convolution groups, between which no N:M group may reach.
    rounding: dtype to whose values operands are rounded before they are ranked.
    dtype: of the operands.
    masks: masks held over several versions.
    buffers: storage that operands of an earlier version leave behind, by name; operands replace it.
    ready: operands that were made together with the one asked for.

    ``magnitudes`` of what is kept, everywhere below: ``"hard"``, its own. ``"soft"``: less the
    largest pruned magnitude of its group, so that a weight enters and leaves at zero, then scaled
    over the whole tensor to the least squared error from W (S-STE, arXiv:2409.09099; the scale is
    made anew with each mask). ``"rescaled"``: times ``|W| / |kept|``, Euclidean norms of the whole
    tensor, which keeps the size of the products.
    """

    master: Tensor
    groups: int
    rounding: torch.dtype
    dtype: torch.dtype
    masks: MaskStore
    buffers: dict[str, Tensor]
    ready: dict[tuple[Axis, NmPattern], Tensor] = field(default_factory=dict)

    def rounded(self) -> Tensor:
        """All of W; the master itself where it is already what the GEMM reads."""
        if self.master.dtype == self.rounding == self.dtype:
            return self.master
        return self.master.to(self.rounding).to(self.dtype)

    def mask(self, axis: Axis, pattern: NmPattern, of: Tensor | None = None) -> Tensor:
        """Boolean, W's shape: the N largest of M along ``axis`` of W, or of ``of``."""
        source = self.master if of is None else of
        if axis == C_IN:
            return nm_mask(source, pattern, 1, rounding=self.rounding)
        blocks = torch.unflatten(source, 0, (self.groups, -1))
        return nm_mask(blocks, pattern, 1, rounding=self.rounding).flatten(0, 1)

    def pruned(
        self, axis: Axis, pattern: NmPattern, magnitudes: Magnitudes = "hard",
        of: Tensor | None = None,
    ) -> Tensor:
        """W with N of M kept along ``axis``; with ``of``, that operand pruned further."""
        if pattern.is_dense:
            return self.rounded() if of is None else of
        if of is not None:
            return apply_mask(of, self.masks.get(axis, lambda: self.mask(axis, pattern, of)))
        if magnitudes == "hard" and self.masks.interval == 1:
            if supports(self.master, pattern, self.rounding):
                return self._by_kernel(axis, pattern)
            if select.supports(self.master, pattern, self.rounding, self.dtype):
                return self._on_gpu(axis, pattern)
        mask = self.masks.get(axis, lambda: self.mask(axis, pattern))
        return self._values(mask, magnitudes, lambda: self._thresholds(axis, pattern, mask))

    def can_be_transposable(self, pattern: NmPattern) -> bool:
        """Whether both channel counts of a convolution group reach M, so both passes are N:M."""
        outputs, inputs = self.master.shape[0] // self.groups, self.master.shape[1]
        return not pattern.is_dense and min(outputs, inputs) >= pattern.m

    def transposable(self, pattern: NmPattern, magnitudes: Magnitudes = "hard") -> Tensor:
        """W with one mask that is N:M along both axes, inside each convolution group."""
        def make() -> Tensor:
            blocks = self.master.chunk(self.groups)
            return torch.cat([transposable_mask(block, pattern, self.rounding) for block in blocks])

        mask = self.masks.get("both", make)
        return self._values(mask, magnitudes, lambda: torch.minimum(
            self._thresholds(C_IN, pattern, mask), self._thresholds(C_OUT, pattern, mask)))

    def _values(
        self, mask: Tensor, magnitudes: Magnitudes, thresholds: Callable[[], Tensor]
    ) -> Tensor:
        """W under ``mask``, with the magnitudes asked for."""
        if magnitudes == "hard":
            return apply_mask(self.rounded(), mask)
        whole = self.master.to(self.rounding).float()
        kept = apply_mask(whole, mask)
        if magnitudes == "soft":
            kept = kept.sign() * (kept.abs() - thresholds()).clamp_min(0)
            scale = (whole * kept).sum() / kept.square().sum()
        else:
            scale = whole.norm() / kept.norm()
        # All-zero weights have no scale.
        return (kept * scale.nan_to_num(1.0)).to(self.rounding).to(self.dtype)

    def _thresholds(self, axis: Axis, pattern: NmPattern, mask: Tensor) -> Tensor:
        """The largest pruned magnitude of each element's group, float32 of W's shape."""
        dim = 1 if axis == C_IN else 0
        left = apply_mask(self.master.to(self.rounding).float().abs(), ~mask)
        blocks = left if dim == 1 else torch.unflatten(left, 0, (self.groups, -1))
        lines = blocks.movedim(1, -1)
        padded = F.pad(lines, (0, -lines.shape[-1] % pattern.m))
        groups = torch.unflatten(padded, -1, (-1, pattern.m))
        spread: Tensor = groups.amax(-1, keepdim=True).expand_as(groups).flatten(-2)
        found = spread[..., : lines.shape[-1]].movedim(-1, 1)
        return found if dim == 1 else found.flatten(0, 1)

    def _by_kernel(self, axis: Axis, pattern: NmPattern) -> Tensor:
        """:meth:`pruned` in one pass over W."""
        outputs, inputs, *taps = self.master.shape
        inner = torch.Size(taps).numel()
        view = ((outputs, inputs, inner) if axis == C_IN
                else (self.groups, outputs // self.groups, inputs * inner))
        out = self.buffers.get(axis)
        if out is None or out.shape != self.master.shape:
            out = self.buffers[axis] = torch.empty(self.master.shape)
        prune_into(self.master.contiguous(), out, pattern, *view, rounding=self.rounding)
        return out.to(self.dtype)

    def _on_gpu(self, axis: Axis, pattern: NmPattern) -> Tensor:
        """:meth:`pruned` in one pass over W: for both axes if the last version needed both."""
        made = self.ready.pop((axis, pattern), None)
        if made is None and axis == C_IN and self.buffers.pop("both", None) is not None:
            made, self.ready[C_OUT, pattern] = select.prune_both(
                self.master, pattern, self.groups, self.rounding, self.dtype)
        if made is None:
            view = select.both_views(self.master.shape, self.groups)[axis == C_OUT]
            made = select.prune(self.master, pattern, view, self.rounding, self.dtype)
        if axis == C_OUT:
            self.buffers["both"] = self.master.new_empty(0)  # holds nothing: it is a note
        return made
