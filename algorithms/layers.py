"""``nn.Linear`` and ``nn.Conv2d`` with an N:M training step, made by swapping a module's class.

The swap touches neither parameters nor hooks nor state_dict keys. Everything derived from the
weights (FP16 copies, masks) is a cache that is never saved, copied or pickled.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.functions import ConvShape, nm_conv2d, nm_linear
from algorithms.masks import apply_mask, nm_mask
from algorithms.plan import LayerPlan
from rtl.pattern import DENSE, NmPattern

__all__ = ["NmConv2d", "NmLayer", "NmLinear"]


class _Operands(NamedTuple):
    """The weight operands of one weight version, float32 holding FP16 values."""

    weight: weakref.ref[Tensor]
    version: tuple[int, int]
    forward: Tensor
    backward: Tensor


class NmLayer(nn.Module):
    """What both layers share: the plan, and the weight operands derived from the FP32 master.

    Operands are recomputed when the weight's version counter or storage changes. An in-place edit
    through ``weight.data`` moves neither; call :meth:`refresh` after one.
    """

    weight: Tensor
    nm_plan: LayerPlan
    _nm_operands: _Operands | None

    @property
    def conv_groups(self) -> int:
        """Convolution groups, between which no N:M group may reach."""
        return 1

    def adopt(self, plan: LayerPlan) -> None:
        """Run with ``plan`` from now on."""
        self.nm_plan = plan
        self.refresh()

    def refresh(self) -> None:
        """Forget the cached operands."""
        self._nm_operands = None

    def forward_mask(self) -> Tensor:
        """Boolean, the weight's shape: what FF keeps, ranked on the FP16 rounding of the master."""
        blocks = torch.unflatten(self.weight.detach(), 0, (self.conv_groups, -1))
        return nm_mask(blocks, self.nm_plan.forward.pattern, 2).flatten(0, 1)

    def backward_mask(self) -> Tensor:
        """Boolean, the weight's shape: what BP keeps of the dense master."""
        blocks = torch.unflatten(self.weight.detach(), 0, (self.conv_groups, -1))
        return nm_mask(blocks, self.pass_patterns()["BP"], 1).flatten(0, 1)

    def forward_weight(self) -> Tensor:
        """float16, the weight's shape: the operand of FF, groups along C_in."""
        return self._operands().forward.to(torch.float16)

    def backward_weight(self) -> Tensor:
        """float16, the weight's shape: the operand of BP, groups along C_out."""
        return self._operands().backward.to(torch.float16)

    def pass_patterns(self) -> dict[str, NmPattern]:
        """Pattern of the weight operand in ``"FF"``, ``"BP"`` and ``"WU"``."""
        return self.nm_plan.weight_patterns()

    def extra_repr(self) -> str:
        """The layer's own line with method and patterns added."""
        patterns = ", ".join(f"{s}={p}" for s, p in self.nm_plan.executed_patterns().items())
        return f"{super().extra_repr()}, method={self.nm_plan.method.name}, {patterns}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_nm_operands": None}

    def _grad_pattern(self) -> NmPattern:
        plan = self.nm_plan
        return plan.backward.pattern if plan.method.backward == "grad" else DENSE

    def _operands(self) -> _Operands:
        weight, held = self.weight, self._nm_operands
        # Inference tensors carry no version counter, so nothing can be cached for them.
        version = None if weight.is_inference() else (weight._version, weight.data_ptr())
        if held is not None and held.version == version and held.weight() is weight:
            return held
        # Left to inference mode, the copies could not serve a later training step.
        with torch.inference_mode(False), torch.no_grad():
            fresh = _Operands(weakref.ref(weight), version or (0, 0), *self._derive())
        if version is not None:
            self._nm_operands = fresh
        return fresh

    def _derive(self) -> tuple[Tensor, Tensor]:
        rounded = self.weight.detach().to(torch.float16)
        dense = rounded.float()
        forward = backward = dense
        if not self.nm_plan.forward.pattern.is_dense:
            forward = apply_mask(dense, self.forward_mask())
        if self.nm_plan.method.backward != "weight":
            backward = forward
        elif not self.nm_plan.backward.pattern.is_dense:
            backward = apply_mask(dense, self.backward_mask())
        return forward, backward


class NmLinear(NmLayer, nn.Linear):
    """``nn.Linear`` whose FF and BP read N:M weights; output is float32."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., C_in) to (..., C_out)."""
        operands = self._operands()
        return nm_linear(input, self.weight, self.bias, operands.forward, operands.backward,
                         self._grad_pattern())


class NmConv2d(NmLayer, nn.Conv2d):
    """``nn.Conv2d`` whose FF and BP read N:M weights, groups over the channels of one pixel."""

    @property
    def conv_groups(self) -> int:
        """Convolution groups, between which no N:M group may reach."""
        return self.groups

    def forward(self, input: Tensor) -> Tensor:
        """(B, C_in, H, W) or (C_in, H, W) to the same with C_out; output is float32."""
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        left, right, top, bottom = self._reversed_padding_repeated_twice
        padding = (top, left)
        if self.padding_mode != "zeros" or (left, top) != (right, bottom):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input, padding = F.pad(input, (left, right, top, bottom), mode=mode), (0, 0)
        pair = self.stride[0], self.stride[1]
        shape = ConvShape(pair, padding, (self.dilation[0], self.dilation[1]), self.groups)
        operands = self._operands()
        return nm_conv2d(input, self.weight, self.bias, operands.forward, operands.backward,
                         self._grad_pattern(), shape)
