"""Bias tuning of LLaMA-Adapter V2 (arXiv:2304.15010, section 4.1): norms, biases, scales learn.

Every linear layer of the decoder gets a scale and a bias (equations 1 and 2), which start at one
and zero, so that training starts from the base model exactly; every norm's weight learns as it is:

    output side, the paper's:          y = s * (W x + b)
    input side, the released code's:   y = W (s * x) + b

W stays frozen and keeps its name. Scales and biases sit beside it, ``q_proj.adapter.scale`` and
``q_proj.adapter.bias``, and act through hooks, outside whatever product the layer computes: also a
pruned one of :func:`algorithms.sparsify`, called before or after. All that learns is float32; what
a layer returns is rounded to the base's dtype once. Embedding and head stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from algorithms import NmLayer, ParameterError
from models.llm.choices import one_of

__all__ = [
    "UNLOCKED_HOOKS", "ScaleSide", "UnlockedCount", "UnlockedLinear", "UnlockedNorm",
    "count_unlocked", "enable_unlocked", "fold", "is_unlocked", "lock", "unlock",
    "unlocked_parameters",
]

ScaleSide = Literal["output", "input"]
"""Where a scale acts: behind the product and its bias, or in front of the product."""


class UnlockedCount(NamedTuple):
    """How many numbers learn, by kind."""

    norm: int
    bias: int
    scale: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


class UnlockedLinear(nn.Module):
    """Scale and bias of one linear layer, float32, of which it is the child ``adapter``.

    ``scale`` (C_out,) on the output side and (C_in,) on the input side, ``bias`` (C_out,); either
    is ``None`` where it is not wanted. ``frozen`` is what :func:`lock` lets learn again.
    """

    def __init__(self, linear: nn.Linear, bias: bool, scale: bool, side: ScaleSide) -> None:
        super().__init__()
        self.side, self.enabled = side, True
        self.frozen: list[nn.Parameter] = []
        features = linear.out_features if side == "output" else linear.in_features
        device = linear.weight.device
        self.scale = nn.Parameter(torch.ones(features, device=device)) if scale else None
        self.bias = (nn.Parameter(torch.zeros(linear.out_features, device=device)) if bias
                     else None)
        self._hooks: list[RemovableHandle] = [linear.register_forward_hook(_behind)]
        if scale and side == "input":
            self._hooks.append(linear.register_forward_pre_hook(_in_front))
        linear.add_module("adapter", self)

    def forward(self, product: Tensor) -> Tensor:
        """(..., C_out) to the same: what the layer computed, with bias and output scale."""
        made = product if self.bias is None else product + self.bias
        if self.scale is not None and self.side == "output":
            made = made * self.scale
        return made.to(product.dtype)

    def scaled_input(self, x: Tensor) -> Tensor:
        """(..., C_in) to the same, scaled."""
        return x if self.scale is None else (x * self.scale).to(x.dtype)

    def merge(self, linear: nn.Linear) -> None:
        """Put scale and bias into ``linear``, and leave it."""
        with torch.no_grad():
            biases = [values.float() for values in (linear.bias, self.bias) if values is not None]
            if self.scale is not None:
                behind = self.side == "output"
                linear.weight.copy_(linear.weight * (self.scale[:, None] if behind else self.scale))
                biases = [values * self.scale for values in biases] if behind else biases
            if biases:
                total = torch.stack(biases).sum(0).to(linear.weight.dtype)
                if linear.bias is None:
                    linear.bias = nn.Parameter(total, requires_grad=False)
                else:
                    linear.bias.copy_(total)
        self.leave(linear)

    def leave(self, linear: nn.Linear) -> None:
        """Take the hooks off; the layer is what it was."""
        for hook in self._hooks:
            hook.remove()
        del linear.adapter


class UnlockedNorm(nn.Module):
    """Child ``adapter`` of a norm whose ``weight`` learns, float32; remembers the base's own.

    Holds no parameter, and its buffer is in no checkpoint. ``frozen`` as for
    :class:`UnlockedLinear`.
    """

    other: Tensor

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        locked = norm.get_parameter("weight")
        self.enabled, self.dtype = True, locked.dtype
        self.frozen: list[nn.Parameter] = []
        self._locked = (locked,)  # in a tuple, or it would be a parameter of this module
        self.register_buffer("other", locked.detach(), persistent=False)
        norm.weight = nn.Parameter(locked.detach().to(torch.float32, copy=True))
        self._hook = norm.register_forward_hook(_rounded)
        norm.add_module("adapter", self)

    def enable(self, norm: nn.Module, enabled: bool) -> None:
        """Let the norm use what was learnt, or its own weight; the other is kept."""
        if enabled is not self.enabled:
            weight = norm.get_parameter("weight")
            self.other, weight.data = weight.detach(), self.other
            self.enabled = enabled

    def merge(self, norm: nn.Module) -> None:
        """Round what was learnt to the base's dtype, and leave the norm."""
        weight = norm.get_parameter("weight").detach().to(self.dtype)
        self.leave(norm)
        locked = self._locked[0].requires_grad_(False)
        locked.data = weight

    def leave(self, norm: nn.Module) -> None:
        """Take the hook off; the norm has its own weight."""
        self.enable(norm, False)
        self._hook.remove()
        locked = self._locked[0]
        locked.data = norm.get_parameter("weight").data
        norm.weight = locked
        del norm.adapter


def unlock(
    base: PreTrainedModel,
    *,
    norm: bool = True,
    bias: bool = True,
    scale: bool = True,
    scale_side: ScaleSide = "output",
) -> UnlockedCount:
    """Let norms, biases and scales of ``base`` learn, in place, and freeze its linear layers.

    Parameters
    ----------
    base: a Llama-family model of Hugging Face: linear layers and norms in ``layers`` of its decoder
        and a final ``norm``. May be sparse, and may be on the meta device.
    norm, bias, scale: which of the three.
    scale_side: see :data:`ScaleSide`.

    Returns
    -------
    How many parameters that makes.

    Raises
    ------
    ParameterError: none of the three, an unknown side, a model without such a decoder, or one that
        is unlocked already. The model is then unchanged.
    """
    if not (norm or bias or scale):
        raise ParameterError("unlock", "nothing", "must be some of norm, bias, scale")
    one_of("scale_side", scale_side, get_args(ScaleSide))
    linears, norms = _decoder(base)
    if _unlocked(base):
        raise ParameterError("base", type(base).__name__, "is unlocked already; lock(base) first")
    frozen = [values for linear in linears for values in linear.parameters()
              if values.requires_grad]
    for linear in linears:
        linear.requires_grad_(False)
        if bias or scale:
            UnlockedLinear(linear, bias, scale, scale_side)
    if norm:
        for module in norms:
            UnlockedNorm(module)
    _unlocked(base)[0][2].frozen = frozen  # by one for all: with norms alone, linears have none
    return count_unlocked(base)


def unlocked_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Dotted name and tensor of everything that :func:`unlock` made learn."""
    for path, owner, unlocked in _unlocked(model):
        if isinstance(unlocked, UnlockedNorm):
            yield f"{path}.weight".removeprefix("."), owner.get_parameter("weight")
        else:
            yield from unlocked.named_parameters(prefix=f"{path}.adapter".removeprefix("."))


def count_unlocked(model: nn.Module) -> UnlockedCount:
    """What learns through :func:`unlock`; zeros for a model that was not."""
    counts = {"norm": 0, "bias": 0, "scale": 0}
    for name, values in unlocked_parameters(model):
        kind = name.rpartition(".")[2]
        counts["norm" if kind == "weight" else kind] += values.numel()
    return UnlockedCount(**counts)


def is_unlocked(module: nn.Module) -> bool:
    """Whether ``module`` computes with what was unlocked in it, switched on."""
    unlocked = getattr(module, "adapter", None)
    return isinstance(unlocked, UnlockedLinear | UnlockedNorm) and unlocked.enabled


def enable_unlocked(model: nn.Module, enabled: bool = True) -> bool:
    """Switch everything unlocked on or off, and return what it was; off, the model is its base.

    Not to be trained while it is off.
    """
    before = all(unlocked.enabled for _, _, unlocked in _unlocked(model))
    for _, owner, unlocked in _unlocked(model):
        if isinstance(unlocked, UnlockedNorm):
            unlocked.enable(owner, enabled)
        else:
            unlocked.enabled = enabled
    return before


def lock(base: nn.Module) -> None:
    """Undo :func:`unlock`: what was learnt is gone, parameters and outputs are the base's.

    Linear layers that it froze learn again.
    """
    for _, owner, unlocked in _unlocked(base):
        unlocked.leave(owner)
        for values in unlocked.frozen:
            values.requires_grad_(True)


def fold(base: PreTrainedModel) -> None:
    """Merge scales and biases into plain linear layers for inference, in place.

    The outputs stay those of the unlocked model, up to rounding; nothing of it is left, layers and
    norms are frozen, and the configuration says that layers have biases where it knows how. Does
    nothing to a model that is not unlocked.

    Raises
    ------
    ParameterError: a layer is sparse, where scaled weights would be pruned anew. Call
        ``algorithms.unsparsify(base, prune=True)`` first. The model is then unchanged.
    """
    found = list(_unlocked(base))
    for path, owner, _ in found:
        if isinstance(owner, NmLayer):
            raise ParameterError(path, type(owner).__name__,
                                 "is sparse; call unsparsify(base, prune=True) before fold(base)")
    enable_unlocked(base)
    biased = any(isinstance(unlocked, UnlockedLinear) and unlocked.bias is not None
                 for _, _, unlocked in found)
    for _, owner, unlocked in found:
        unlocked.merge(owner)
    for flag in ("attention_bias", "mlp_bias"):
        if biased and hasattr(base.config, flag):
            setattr(base.config, flag, True)


def _unlocked(model: nn.Module) -> list[tuple[str, Any, UnlockedLinear | UnlockedNorm]]:
    """Dotted name, module and child of all that is unlocked."""
    return [(path, module, module.adapter) for path, module in model.named_modules()
            if isinstance(getattr(module, "adapter", None), UnlockedLinear | UnlockedNorm)]


def _decoder(base: PreTrainedModel) -> tuple[list[nn.Linear], list[nn.Module]]:
    """Linear layers and norms: the latter have a vector ``weight`` and no other parameter."""
    decoder = getattr(base, "model", base)
    layers, final = getattr(decoder, "layers", None), getattr(decoder, "norm", None)
    found = list(layers.modules()) if isinstance(layers, nn.ModuleList) else []
    linears = [module for module in found if isinstance(module, nn.Linear)]
    norms = [module for module in (*found, final) if isinstance(module, nn.Module)
             and [*dict(module.named_parameters())] == ["weight"]
             and module.get_parameter("weight").dim() == 1]
    if not linears or len(norms) < 2:
        raise ParameterError("base", type(base).__name__,
                             "must be a Llama-family model: model.layers of linear layers and "
                             "norms, and model.norm")
    return linears, norms


def _behind(linear: Any, _: object, product: Tensor) -> Tensor:
    made: Tensor = linear.adapter(product) if linear.adapter.enabled else product
    return made


def _in_front(linear: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not linear.adapter.enabled:
        return given
    return (linear.adapter.scaled_input(given[0]), *given[1:])


def _rounded(_: object, given: tuple[Tensor, ...], normed: Tensor) -> Tensor:
    return normed.to(given[0].dtype)


UNLOCKED_HOOKS = (_behind, _in_front, _rounded)
"""What acts on unlocked layers: it depends on their own parameters alone."""
