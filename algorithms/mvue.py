"""Minimum-variance unbiased N:M sampling (MVUE) of PyTorch tensors.

Source: Chmiel et al., "Minimum Variance Unbiased N:M Sparsity for the Neural Gradients", ICLR 2023,
arXiv:2203.10991.

Of a group ``a_1 .. a_m`` at most ``n`` elements stay. Element ``i`` stays with probability ``p_i``
and becomes ``a_i / p_i`` (Horvitz-Thompson), so that its expectation is ``a_i``::

    p_i = min(1, |a_i| / tau)        tau such that    sum p_i = min(n, nonzero elements)
    a_i / p_i = a_i where p_i = 1, else sign(a_i) * tau
    total variance = sum of a_i**2 / p_i - a_i**2 = sum over p_i < 1 of |a_i| * tau - a_i**2

1. Unbiased and nonzero with probability p_i means a variance of a_i**2 / p_i - a_i**2 or more
   (Jensen); at most n nonzero elements mean sum p_i <= n.
2. Cauchy-Schwarz: (sum |a_i|)**2 <= (sum a_i**2 / p_i) * (sum p_i), equal iff p_i = |a_i| / tau.
3. What this puts above 1 is capped there and the rest shares the slots left (water-filling): with
   the k largest capped and T_k the sum of the others, tau = T_k / (n - k).

Systematic sampling draws the elements that are not capped from one uniform number ``u``: with
``S_i = p_1 + .. + p_i``, element ``i`` stays if one of ``u, u + 1, ..`` lies in [S_(i-1), S_i).
That keeps exactly ``n`` of more than ``n`` nonzero elements. For 1:2, ``a`` stays if ``u`` is less
than ``|a| / (|a| + |b|)``, else ``b`` does, and its magnitude becomes ``|a| + |b|``.

Rounding: all is computed in float32 (float64 for float64), and ``u`` drawn in that type resolves
probabilities to 2**-24 (2**-53). Then ``tau`` is rounded to the operand's type, in which it may
overflow to Inf: it can be ``m / n`` times the largest element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rtl.errors import ParameterError
from rtl.pattern import NmPattern

__all__ = ["MinimumVarianceSampler"]

_INF = float("inf")
_BITS = {
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float32: (torch.int32, 0x7F80_0000),
    torch.float64: (torch.int64, 0x7FF0 << 48),
}
"""Integers of the same width, and infinity among them; bits are sign and magnitude."""


class _Groups(NamedTuple):
    """Groups with position as the outermost axis: each step is one operation over all groups.

    bits: (m, groups, ...), integers; as a number times a Boolean they select without branches.
    magnitude: the same shape, float32 or float64; NaN counts as Inf.
    scaled: ``magnitude * scale``, of which m add up without overflow, and only 0 becomes 0.
    scale: (groups, ...), 1 or a smaller power of two.
    """

    bits: Tensor
    magnitude: Tensor
    scaled: Tensor
    scale: Tensor | float


def _check(operand: Tensor, dim: int) -> None:
    if operand.dtype not in _BITS:
        rule = f"must be one of {', '.join(str(dtype).removeprefix('torch.') for dtype in _BITS)}"
        raise ParameterError("operand", str(operand.dtype), rule, "torch.float16")
    _check_dim(operand.dim(), dim)


def _check_dim(axes: int, dim: int) -> None:
    if not -axes <= dim < axes:
        rule = f"must be an axis of an operand with {axes} axes"
        raise ParameterError("dim", dim, rule, max(axes - 1, 0) if dim > 0 else -axes)


def _compute_dtype(operand: Tensor) -> torch.dtype:
    return torch.float64 if operand.dtype == torch.float64 else torch.float32


def _split(operand: Tensor, pattern: NmPattern, dim: int) -> _Groups:
    (integer, infinity), m = _BITS[operand.dtype], pattern.m
    bits = operand.detach().movedim(dim, 0).view(integer)
    groups = pattern.groups(bits.shape[0])
    if short := groups * m - bits.shape[0]:
        bits = torch.cat([bits, bits.new_zeros(short, *bits.shape[1:])])
    bits = torch.unflatten(bits, 0, (groups, m)).transpose(0, 1).contiguous()
    magnitude = (bits & torch.iinfo(integer).max).clamp_(max=infinity).view(operand.dtype)
    magnitude = magnitude.to(_compute_dtype(operand))
    if operand.dtype == torch.float16:  # far from the limits of float32
        return _Groups(bits, magnitude, magnitude, 1.0)
    limits, factor = torch.finfo(magnitude.dtype), 0.5 ** (m.bit_length() + 1)
    top = magnitude.amax(0)
    scale = torch.ones_like(top).masked_fill_(top > limits.max * factor, factor)
    subnormal = limits.smallest_normal * limits.eps  # the smallest one
    scaled = torch.maximum(magnitude * scale, magnitude.clamp(max=subnormal))
    return _Groups(bits, magnitude, scaled, scale)


def _joined(planes: Tensor, operand: Tensor, dim: int) -> Tensor:
    """(m, groups, ...) back to the operand's shape."""
    return planes.transpose(0, 1).flatten(0, 1)[: operand.shape[dim]].movedim(0, dim).contiguous()


def _water_level(scaled: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """``T_k`` and ``n - k`` of each group, whose ratio is the (scaled) tau: two (groups, ...)."""
    largest: list[Tensor] = []  # by insertion into n sorted registers
    rest = torch.zeros_like(scaled[0])
    for plane in scaled.unbind(0):
        for rank, held in enumerate(largest):
            largest[rank], plane = torch.maximum(held, plane), torch.minimum(held, plane)
        if len(largest) < n:
            largest.append(plane)
        else:
            rest = rest + plane
    tails = [rest]
    for held in reversed(largest):
        tails.append(tails[-1] + held)
    tails.reverse()
    total, slots = tails[0], torch.full_like(rest, n)
    for k in range(n - 1):
        capped = largest[k] * (n - k) >= tails[k]
        total = torch.where(capped, tails[k + 1], total)
        slots = slots.masked_fill(capped, n - k - 1)
    return total, slots


def _design(groups: _Groups, n: int) -> tuple[Tensor, Tensor]:
    """Probabilities, (m, groups, ...), and tau where there is one below 1, (groups, ...)."""
    total, slots = _water_level(groups.scaled, n)
    nonzero = groups.magnitude > 0
    few = nonzero.sum(0, dtype=torch.int32) <= n
    # A ratio of sums is safe where tau itself is subnormal. Inf / Inf belongs to Inf.
    ratio = (groups.scaled * slots).div_(total.masked_fill(few, _INF))
    ratio.nan_to_num_(nan=1.0, posinf=1.0).clamp_(max=1.0)
    probability = torch.maximum(ratio, (nonzero & few).to(ratio.dtype))
    certain = probability == 1
    probability *= certain.cumsum(0, dtype=torch.int32) <= n  # of more than n Inf, the first n
    return probability, total / slots / groups.scale


def _general(groups: _Groups, n: int, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which elements have p = 1, which of the others stay, tau: two (m, groups, ...) and a plane.

    ``excess`` is ``S_i - u`` less the number kept so far. In exact arithmetic the two guards change
    nothing; under rounding they keep exactly as many elements as there are slots.
    """
    probability, tau = _design(groups, n)
    certain = probability == 1
    candidates = (probability > 0) & ~certain
    candidate = candidates.to(u.dtype)
    slots = n - certain.sum(0, dtype=u.dtype)
    left, excess, kept = candidate.sum(0), -u, []
    for position, share in enumerate((probability * candidate).unbind(0)):
        excess = excess + share
        due = ((excess > 0) & (slots > 0)) | (left <= slots)
        kept.append(due & candidates[position])
        taken = kept[-1].to(u.dtype)
        excess, slots, left = excess - taken, slots - taken, left - candidate[position]
    return certain, torch.stack(kept), tau


def _pair(groups: _Groups, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1:2 written out, equal bit for bit to the general path."""
    first, second = groups.scaled.unbind(0)
    total = first + second
    certain = first == total
    other = (second == total) & ~certain
    switch = (u >= first / total) | other
    return torch.stack([certain, other]), torch.stack([~switch, switch]), total / groups.scale


@dataclass(frozen=True)
class MinimumVarianceSampler:
    """Random N:M pruning whose expectation is the operand, at the least total variance.

    Groups of ``pattern.m`` elements lie along ``dim``; zeros pad the last one. An element that is
    not finite stays as it is, for dynamic loss scaling to see (the first ``n`` of a group that has
    more). Nothing waits for the device, and what is drawn carries no gradient.

    Every method raises :class:`ParameterError` for ``dim`` out of range, and for an operand that is
    not float16, bfloat16, float32 or float64.
    """

    pattern: NmPattern

    def uniform_shape(self, shape: Sequence[int], dim: int) -> tuple[int, ...]:
        """``shape`` with one entry a group along ``dim``."""
        _check_dim(len(shape), dim)
        sizes = list(shape)
        sizes[dim] = self.pattern.groups(sizes[dim])
        return tuple(sizes)

    def probabilities(self, operand: Tensor, dim: int) -> Tensor:
        """Probability that each element stays: the operand's shape, float32 (float64 for float64).

        0 for zeros; a group adds up to ``min(n, nonzero elements)``.
        """
        _check(operand, dim)
        probability, _ = _design(_split(operand, self.pattern, dim), self.pattern.n)
        return _joined(probability, operand, dim)

    def variance(self, operand: Tensor, dim: int) -> Tensor:
        """Total variance of each group: :meth:`uniform_shape`, float32 (float64 for float64).

        An element that is not finite adds nothing while it has a slot. Where such elements leave no
        slot to one that is not zero, the result is not finite.
        """
        _check(operand, dim)
        groups = _split(operand, self.pattern, dim)
        probability, tau = _design(groups, self.pattern.n)
        settled = (probability == 1) | (groups.magnitude == 0)
        spread = groups.magnitude * (tau - groups.magnitude)
        return spread.masked_fill_(settled, 0.0).sum(0).movedim(0, dim).contiguous()

    def sample(
        self,
        operand: Tensor,
        dim: int,
        uniforms: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw a sparse tensor: operand's shape and dtype, at most ``n`` nonzeros a group.

        Groups with no more than ``n`` nonzero elements come back bit for bit; where the pattern is
        dense, the operand itself does. Elements that are dropped become +0.

        Parameters
        ----------
        operand: float16, bfloat16, float32 or float64 with at least one axis.
        dim: the axis along which groups lie.
        uniforms: numbers in [0, 1), of shape :meth:`uniform_shape`, that decide the draw. Without
            them, ``torch.rand`` draws them in float32 (float64 for float64).
        generator: what draws them, of the operand's device.

        Raises
        ------
        ParameterError: additionally, ``uniforms`` of another shape.
        """
        _check(operand, dim)
        shape, dtype = self.uniform_shape(operand.shape, dim), _compute_dtype(operand)
        if uniforms is not None and uniforms.shape != shape:
            rule = "must have one number for each group"
            raise ParameterError("uniforms", tuple(uniforms.shape), rule, shape)
        if self.pattern.is_dense or not operand.numel():
            return operand
        if uniforms is None:
            uniforms = torch.rand(shape, generator=generator, dtype=dtype, device=operand.device)
        # A number just below 1 may round to 1 in a narrower type.
        u = uniforms.detach().to(dtype).movedim(dim, 0).clamp(max=1 - torch.finfo(dtype).eps / 2)
        groups, n = _split(operand, self.pattern, dim), self.pattern.n
        pair = self.pattern == NmPattern(1, 2)
        certain, kept, tau = _pair(groups, u) if pair else _general(groups, n, u)
        sign = groups.bits & torch.iinfo(groups.bits.dtype).min
        same = certain | (groups.bits == sign)  # so that a zero keeps its sign
        drawn = (sign | tau.to(operand.dtype).view(sign.dtype)) * (kept & ~same)
        return _joined(drawn + groups.bits * same, operand, dim).view(operand.dtype)
