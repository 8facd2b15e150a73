"""Matrix products among PyTorch's operators: operands and sizes, read off a call in a graph.

Convolutions are products by im2col, one for each group; a convolution along one axis is that of an
image of height 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from compiler.ir import Conv, Window
from rtl.errors import ParameterError

__all__ = ["Matrices", "arguments", "is_sized_by_data", "matrices", "shape_of", "sizes"]


@dataclass(frozen=True)
class Matrices:
    """Operands and sizes of a product: ``left (batch, P, K) @ right (batch, K, Q)``.

    ``addend`` is a bias or a matrix that the operator adds; ``window`` that of a convolution.
    """

    left: fx.Node
    right: fx.Node
    p: int
    q: int
    k: int
    batch: int = 1
    window: Window | None = None
    addend: fx.Node | None = None


def arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of a call by name, defaults filled in."""
    if not isinstance(node.target, OpOverload):
        raise AssertionError("not an operator with a schema")
    schema = node.target._schema.arguments
    given = {each.name: each.default_value if each.has_default_value() else None for each in schema}
    given.update(zip((each.name for each in schema), node.args, strict=False))
    given.update(node.kwargs)
    return given


def sizes(shape: Iterable[int | torch.SymInt]) -> tuple[int, ...]:
    """A shape as integers; a size that depends on data counts as the largest it can be.

    Raises :class:`ParameterError` where there is no largest.
    """
    return tuple(size if isinstance(size, int) else _largest(size) for size in shape)


def _largest(size: torch.SymInt) -> int:
    bound = size.node.shape_env.bound_sympy(size.node.expr).upper
    if not bound.is_Integer:
        raise ParameterError("model", str(size), "has a size that depends on data, without bound")
    return int(bound)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of a call's only result."""
    return sizes(node.meta["val"].shape)


def is_sized_by_data(node: fx.Node) -> bool:
    """Whether the shape of its result depends on values of its operands."""
    return _has_open_size(node) and not any(map(_has_open_size, node.all_input_nodes))


def _has_open_size(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and not all(isinstance(size, int) for size in value.shape)


def matrices(node: fx.Node) -> Matrices | None:
    """Operands and sizes of a ``product``; None for a kind of convolution that is no GEMM here."""
    if not isinstance(node.target, OpOverload):
        raise AssertionError("not an operator with a schema")
    return _READERS.get(node.target.overloadpacket.__name__, _convolution)(node)


def _linear(node: fx.Node) -> Matrices:
    given = arguments(node)
    x, weight = given["input"], given["weight"]
    k = shape_of(x)[-1]
    return Matrices(x, weight, prod(shape_of(x)[:-1]), prod(shape_of(weight)[:-1]), k,
                    addend=given["bias"])


def _plain(node: fx.Node) -> Matrices:
    return _multiplied(node.args[0], node.args[1])


def _added(node: fx.Node) -> Matrices:
    addend = node.args[0] if node.kwargs.get("beta", 1) else None
    return _multiplied(node.args[1], node.args[2], addend)


def _multiplied(a: Any, b: Any, addend: Any = None) -> Matrices:
    """A vector is one row on the left and one column on the right."""
    left, right = shape_of(a), shape_of(b)
    p = left[-2] if len(left) > 1 else 1
    q = right[-1] if len(right) > 1 else 1
    return Matrices(a, b, p, q, left[-1], prod(left[:-2]), addend=addend)


def _convolution(node: fx.Node) -> Matrices | None:
    """One or two axes; one axis is an image of height 1."""
    given = arguments(node)
    x, weight, groups = given["input"], given["weight"], given["groups"]
    outputs, inputs, *kernel = shape_of(weight)
    axes = len(kernel)
    if axes not in (1, 2) or given.get("transposed"):
        return None
    size, out_size = shape_of(x)[-axes:], shape_of(node)[-axes:]
    dilation = _per_axis(given["dilation"], axes)
    padding = given["padding"]
    if padding == "same":  # an odd total has its larger half behind
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before, after = [t // 2 for t in total], [t - t // 2 for t in total]
    else:
        before = after = [0] * axes if padding == "valid" else _per_axis(padding, axes)
    (top, left), (bottom, right) = _pair(before, 0), _pair(after, 0)
    conv = Conv(_pair(kernel, 1), _pair(_per_axis(given["stride"], axes), 1),
                (left, right, top, bottom), _pair(dilation, 1))
    images = prod(shape_of(x)) // (inputs * groups * prod(size))
    return Matrices(
        x, weight, images * prod(out_size), outputs // groups, prod(kernel) * inputs, groups,
        Window(conv, _pair(size, 1), _pair(out_size, 1)), given["bias"],
    )


def _per_axis(given: Any, axes: int) -> list[int]:
    values = [given] if isinstance(given, int) else list(given)
    return values * axes if len(values) == 1 else values


def _pair(values: Iterable[int], height: int) -> tuple[int, int]:
    *above, width = values
    return (above[0] if above else height), width


_READERS: Mapping[str, Callable[[fx.Node], Matrices | None]] = {
    "linear": _linear,
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), _plain),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), _added),
}
