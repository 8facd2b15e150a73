"""SR-STE's decay of what the forward pass prunes."""

from __future__ import annotations

from torch import Tensor, nn

from algorithms.layers import sparse_layers
from algorithms.masks import apply_mask

__all__ = ["decay_pruned"]


def decay_pruned(model: nn.Module, gradient_scale: float | Tensor = 1.0) -> None:
    """Add SR-STE's decay, ``decay * (1 - mask) * W``, to the gradients (arXiv:2102.04010).

    Once before each optimiser step, so that neither accumulated micro-batches nor the mean over
    data-parallel ranks count it twice. Gradients are those of the loss times ``gradient_scale``. It
    acts only where the method has a decay and FF prunes. With an adaptive optimiser the decay goes
    through its preconditioner. Under FSDP it gathers the weights, so every rank must call it.

    Raises :class:`RuntimeError` if FSDP still holds weights gathered, for a pass after the backward
    one: the gradients are then out of reach, and the optimiser's step would be, too.
    """
    seen: set[int] = set()
    for _, module in sparse_layers(model):
        plan, weight = module.nm_plan, module.weight
        active = plan.method.decays and not plan.forward.pattern.is_dense
        if active and module.is_gathered and weight.requires_grad:
            raise RuntimeError("decay under FSDP: after a forward pass between backward and step, "
                               "call reshard() on the modules that fully_shard was applied to")
        if active and weight.grad is not None and id(weight) not in seen:
            seen.add(id(weight))
            pruned = apply_mask(weight.detach(), ~module.forward_mask())
            weight.grad.add_(pruned * gradient_scale, alpha=plan.method.decays)
