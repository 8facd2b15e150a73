"""``nn.Linear`` and ``nn.Conv2d`` with an N:M training step, made by swapping a module's class.

The swap touches neither parameters nor hooks nor state_dict keys. Everything derived from the
weights (operands, masks) is a cache that is never saved, copied or pickled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from algorithms.functions import nm_conv2d, nm_linear
from algorithms.gemms import ConvShape, Operands
from algorithms.operators import LAYERS
from algorithms.plan import LayerPlan
from algorithms.rounding import Precision
from algorithms.sharded import Shard, as_shard, refuse_shards, sharded_like
from algorithms.weights import MaskStore, Weight
from rtl.pattern import NmPattern

__all__ = ["NmConv2d", "NmLayer", "NmLinear", "sparse_layers"]

_numbers = itertools.count()


class _Steps:
    """How many optimiser steps this process has made, over all optimisers."""

    made = 0

    @classmethod
    def count(cls, *_: object) -> None:
        cls.made += 1


# Some optimisers write through ``.data``, and foreach steps on DTensors, past the version counter.
register_optimizer_step_post_hook(_Steps.count)


class _Cached(NamedTuple):
    """Operands, what they were made for, and the weight, whose storage thus cannot be reused.

    Both are ``None`` once the weight has been exchanged.
    """

    key: tuple[object, ...]
    weight: Tensor | None
    operands: Operands | None


class NmLayer(nn.Module):
    """What both layers share: the plan, and the weight operands derived from the master.

    Operands are made anew when the weight's version counter or storage changes, and, for weights
    that learn, after each step of a ``torch.optim`` optimiser. In-place edits through
    ``weight.data``, and collectives into the weight, are seen by none of these; call
    :meth:`refresh` after one. Under FSDP they live
    as long as the gathered weight. Masks and operands of a sharded weight are sharded like it, and
    asking for them gathers it, so every rank must ask.
    """

    weight: Tensor
    nm_plan: LayerPlan
    nm_precision: Precision
    _nm_number: int
    _nm_cached: _Cached | None
    _nm_masks: MaskStore
    _nm_buffers: dict[str, Tensor]
    _nm_shard: Shard
    _nm_watcher: Callable[[Tensor], None] | None

    @property
    def conv_groups(self) -> int:
        """Convolution groups, between which no N:M group may reach."""
        return 1

    @property
    def is_gathered(self) -> bool:
        """Whether FSDP has the whole weight in the place of its shard, which has the gradient."""
        return self._nm_shard.version is not None and as_shard(self.weight) is None

    def adopt(self, plan: LayerPlan, precision: Precision = "fp16") -> None:
        """Run with ``plan`` from now on."""
        self.nm_plan, self.nm_precision = plan, precision
        if "_nm_number" in self.__dict__:  # compiled graphs go on finding this layer
            self.refresh()
        else:
            self._enrol()

    def __setattr__(self, name: str, value: Any) -> None:
        # FSDP assigns like this to modules that have a ``__setattr__`` of their own.
        if name == "weight" and "_nm_shard" in self.__dict__:
            self._exchange(value)
        super().__setattr__(name, value)

    @contextmanager
    def running(self, plan: LayerPlan) -> Iterator[None]:
        """Run with ``plan`` inside; all is as before afterwards, operands and held masks too."""
        kept = self.nm_plan, self._nm_cached, self._nm_masks, self._nm_buffers
        self._nm_buffers = {}
        self.adopt(plan, self.nm_precision)
        try:
            yield
        finally:
            self.nm_plan, self._nm_cached, self._nm_masks, self._nm_buffers = kept

    def refresh(self) -> None:
        """Forget the cached operands and masks."""
        self._nm_cached = None
        self._nm_masks = MaskStore(self.nm_plan.method.mask_interval)

    def forward_mask(self) -> Tensor:
        """Boolean, the weight's shape: what FF keeps."""
        return self._as_weight(_support(self._in_use().forward, self.nm_plan.forward.pattern))

    def backward_mask(self) -> Tensor:
        """Boolean, the weight's shape: what BP keeps of the master."""
        return self._as_weight(_support(self._in_use().backward, self.pass_patterns()["BP"]))

    def forward_weight(self) -> Tensor:
        """float16, the weight's shape: the operand of FF, groups along C_in."""
        return self._as_weight(self._present().forward.to(torch.float16, copy=True))

    def backward_weight(self) -> Tensor:
        """float16, the weight's shape: the operand of BP, groups along C_out."""
        return self._as_weight(self._present().backward.to(torch.float16, copy=True))

    def watch_update(self, watcher: Callable[[Tensor], None] | None) -> None:
        """Show dY as WU reads it, (rows, C_out) or (B, C_out, H, W), in each backward pass.

        The only way to see what BDWP+WU drew. ``None`` ends it.
        """
        self._nm_watcher = watcher

    def note_update(self, gradient: Tensor) -> None:
        """Show ``gradient`` to the watcher, if there is one."""
        if self._nm_watcher is not None:
            self._nm_watcher(gradient)

    def pass_patterns(self) -> dict[str, NmPattern]:
        """Pattern of the weight operand in ``"FF"``, ``"BP"`` and ``"WU"``."""
        return self.nm_plan.weight_patterns()

    def extra_repr(self) -> str:
        """The layer's own line with method and patterns added."""
        patterns = ", ".join(f"{s}={p}" for s, p in self.nm_plan.executed_patterns().items())
        return f"{super().extra_repr()}, method={self.nm_plan.method.name}, {patterns}"

    def operands(self, weight: Tensor, rounding: torch.dtype, dtype: torch.dtype) -> Operands:
        """The weight operands of FF and BP, from the cache if ``weight`` is as it was.

        ``weight`` is this layer's, perhaps as autograd or FSDP hands it on.
        """
        held, key = self._nm_cached, (*self._state(weight), rounding, dtype)
        known = key[0] is not None
        if known and held is not None and held.operands is not None and held.key == key:
            return held.operands
        if held is not None and held.key[:3] != key[:3]:
            self._nm_masks.next_version()
        # Left to inference mode, the copies could not serve a later training step.
        with torch.inference_mode(False), torch.no_grad():
            made = self._derive(weight.detach(), rounding, dtype)
        self._nm_cached = _Cached(key, weight.detach(), made) if known else None
        return made

    def __getstate__(self) -> dict[str, Any]:
        derived = ("_nm_cached", "_nm_number", "_nm_masks", "_nm_buffers", "_nm_shard",
                   "_nm_watcher")
        return {name: value for name, value in self.__dict__.items() if name not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._enrol()

    def _enrol(self) -> None:
        """Take a number of its own, under which the operators find this layer."""
        self._nm_number, self._nm_buffers, self._nm_watcher = next(_numbers), {}, None
        self._nm_shard = Shard()
        LAYERS[self._nm_number] = self
        self.refresh()

    def _derive(self, master: Tensor, rounding: torch.dtype, dtype: torch.dtype) -> Operands:
        plan = self.nm_plan
        weight = Weight(master, self.conv_groups, rounding, dtype, self._nm_masks,
                        self._nm_buffers)
        forward = plan.method.forward_weight(weight, plan.forward.pattern)
        return Operands(forward, plan.method.backward_weight(weight, self.pass_patterns()["BP"],
                                                             forward))

    def _state(self, weight: Tensor) -> tuple[object, ...]:
        """What changes whenever the weights may have; its first item is ``None`` if unknown.

        The first three items change with the weights alone.
        """
        steps = _Steps.made if weight.requires_grad else None
        if weight.is_inference():  # no version counter, so nothing can be cached
            return None, weight.shape, weight.dtype, steps
        if self._nm_shard.version is not None:
            return (self._nm_shard.version, steps), weight.shape, weight.dtype, weight._version
        return (weight._version, weight.data_ptr()), weight.shape, weight.dtype, steps

    def _exchange(self, weight: object) -> None:
        """``weight`` becomes the parameter: FSDP's gathered weight, its shard, or other weights."""
        same = self._nm_shard.exchange(self._parameters.get("weight"), weight)
        self._drop_operands()
        if self._nm_cached is not None and not same:
            self._nm_cached = _Cached((), None, None)

    def _drop_operands(self) -> None:
        """Free the operands, and remember only what they were made for."""
        self._nm_buffers = {}
        if self._nm_cached is not None:
            self._nm_cached = _Cached(self._nm_cached.key, None, None)

    def _in_use(self) -> Operands:
        """Operands of the latest pass over the present weights, or of a plain call."""
        held = self._nm_cached
        if held is None or not held.key:
            return self._present()
        if as_shard(self.weight) is not None:
            return self._of_parameter(*held.key[-2:])
        state = self._state(self.weight)
        if held.operands is not None and state[0] is not None and held.key[: len(state)] == state:
            return held.operands  # autocast may have ranked in another precision
        return self._present()

    def _present(self) -> Operands:
        """Operands of the present weights, in the precision that a plain call would use."""
        native = self.nm_precision == "native"
        dtype = (self._nm_shard.dtype or self.weight.dtype) if native else torch.float32
        return self._of_parameter(dtype if native else torch.float16, dtype)

    def _of_parameter(self, rounding: Any, dtype: Any) -> Operands:
        """Operands of the parameter; a shard is gathered for them, and they are not kept."""
        shard = as_shard(self.weight)
        if shard is None:
            return self.operands(self.weight, rounding, dtype)
        made = self.operands(self._nm_shard.gather(shard), rounding, dtype)
        self._drop_operands()
        return made

    def _as_weight(self, whole: Tensor) -> Tensor:
        """``whole``, sharded as the parameter is."""
        shard = as_shard(self.weight)
        return whole if shard is None else sharded_like(shard, whole)

    def _autocast(self, x: Tensor) -> Tensor:
        """The input as autocast hands it to the plain layer."""
        kind = x.device.type
        if self.nm_precision == "native" and torch.is_autocast_enabled(kind):
            return x.to(torch.get_autocast_dtype(kind))
        return x


def _support(operand: Tensor, pattern: NmPattern) -> Tensor:
    return torch.ones_like(operand, dtype=torch.bool) if pattern.is_dense else operand != 0


class NmLinear(NmLayer, nn.Linear):
    """``nn.Linear`` whose GEMMs are N:M."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., C_in) to (..., C_out)."""
        refuse_shards(input, self.weight)
        return nm_linear(self._autocast(input), self.weight, self.bias, self, self._nm_number)


class NmConv2d(NmLayer, nn.Conv2d):
    """``nn.Conv2d`` whose GEMMs are N:M, weight groups over the channels of one pixel."""

    @property
    def conv_groups(self) -> int:
        """Convolution groups, between which no N:M group may reach."""
        return self.groups

    def forward(self, input: Tensor) -> Tensor:
        """(B, C_in, H, W) or (C_in, H, W) to the same with C_out."""
        refuse_shards(input, self.weight)
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        left, right, top, bottom = self._reversed_padding_repeated_twice
        padding = (top, left)
        if self.padding_mode != "zeros" or (left, top) != (right, bottom):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input, padding = F.pad(input, (left, right, top, bottom), mode=mode), (0, 0)
        pair = self.stride[0], self.stride[1]
        shape = ConvShape(pair, padding, (self.dilation[0], self.dilation[1]), self.groups)
        return nm_conv2d(self._autocast(input), self.weight, self.bias, self, self._nm_number,
                         shape)


def sparse_layers(model: nn.Module) -> Iterator[tuple[str, NmLayer]]:
    """Dotted name and module of every layer that :func:`algorithms.sparsify` swapped."""
    for name, module in model.named_modules():
        if isinstance(module, NmLayer):
            yield name, module
