"""What the compiler knows of PyTorch's operators: views, matrix products, work of the host.

An operator is known by its name without overload; ``add_`` counts as ``add``. Elementwise operators
need no entry: PyTorch tags them as such. What is in no table here cannot be costed, and
:class:`UnsupportedOperators` says so.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload

from compiler.frontend.products import arguments
from rtl.errors import ParameterError

__all__ = [
    "Role", "UnsupportedOperators", "keeps_order", "mutates", "operator_name", "reads_rows", "role",
    "written",
]

Role = Literal[
    "view", "copy", "detach", "item", "product", "attention", "composite", "region", "factory",
    "host", "nothing", "unknown",
]
"""What becomes of an operator.

``view`` is its operand; ``copy`` too, in memory of its own; ``detach`` is its operand without
gradient; ``item`` picks one of several results. ``composite`` is traced into products and others,
``region`` is a graph of its own. ``factory`` reads nothing that it is given. ``nothing`` makes no
tensor: assertions and arithmetic of sizes.
"""

_VIEWS = """
    view _unsafe_view view_as reshape reshape_as _reshape_alias alias transpose t numpy_T mT permute
    movedim moveaxis swapaxes swapdims expand expand_as broadcast_to slice select narrow unsqueeze
    squeeze flatten unflatten ravel split split_with_sizes unsafe_split unsafe_split_with_sizes
    chunk unsafe_chunk tensor_split hsplit vsplit dsplit unbind diagonal as_strided unfold real imag
    view_as_real view_as_complex contiguous to type_as positive lift_fresh matrix_H mH
"""
_IN_ORDER = """
    view _unsafe_view reshape flatten unflatten squeeze unsqueeze contiguous to type_as alias
    dropout feature_dropout alpha_dropout feature_alpha_dropout
"""
_COPIES = "clone lift_fresh_copy _to_copy"
_CONVERSIONS = "to type_as _to_copy"
_DROPOUTS = "dropout feature_dropout alpha_dropout feature_alpha_dropout"
_NOTHING = """
    _assert_async _assert_scalar _assert_tensor_metadata _functional_assert_async sym_size sym_numel
    sym_stride sym_storage_offset sym_constrain_range sym_constrain_range_for_size
"""
_PRODUCTS = """
    linear mm bmm mv dot vdot addmm addmv baddbmm conv1d conv2d convolution _convolution
"""
_COMPOSITES = "matmul einsum tensordot inner chain_matmul linalg_matmul linalg_multi_dot"
_FACTORIES = """
    arange full zeros ones empty empty_strided eye linspace logspace scalar_tensor tril_indices
    triu_indices rand randn randint randperm zeros_like ones_like full_like empty_like rand_like
    randn_like randint_like new_zeros new_ones new_full new_empty new_empty_strided
"""
_GATHERS = "embedding gather index index_select take take_along_dim"
_HOST = {
    "normalisation": """
        batch_norm native_batch_norm _native_batch_norm_legit cudnn_batch_norm layer_norm
        native_layer_norm group_norm native_group_norm instance_norm rms_norm _fused_rms_norm
        cosine_similarity norm linalg_vector_norm _weight_norm _weight_norm_interface
    """,
    "softmax": """
        softmax _softmax _safe_softmax log_softmax _log_softmax logsumexp
    """,
    "pooling": """
        max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices
        max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
        adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    """,
    "losses": """
        cross_entropy_loss nll_loss nll_loss_nd nll_loss2d nll_loss_forward mse_loss l1_loss
        smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div
        soft_margin_loss multi_margin_loss multilabel_margin_loss hinge_embedding_loss
        margin_ranking_loss cosine_embedding_loss triplet_margin_loss poisson_nll_loss
    """,
    "reductions": """
        sum nansum mean nanmean prod var std var_mean std_mean amax amin aminmax max min argmax
        argmin all any count_nonzero median
    """,
    "dropout and noise": """
        dropout native_dropout feature_dropout alpha_dropout feature_alpha_dropout bernoulli normal
        uniform exponential rrelu_with_noise
    """,
    "moving": """
        cat concat concatenate stack hstack vstack dstack column_stack pad constant_pad_nd
        reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
        replication_pad3d _pad_circular roll flip fliplr flipud rot90 repeat repeat_interleave tile
        tril triu diag_embed im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle meshgrid
    """,
    "scattering": """
        scatter scatter_add scatter_reduce index_put index_add index_copy index_fill index_reduce
        masked_scatter select_scatter slice_scatter one_hot bucketize searchsorted
    """,
    "scans and sorting": """
        cumsum cumprod cummax cummin logcumsumexp diff topk sort argsort kthvalue
    """,
    "resizing": """
        upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
        _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
        upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    """,
    "elementwise, not tagged so": """
        where copy fill zero masked_fill glu prelu hardswish log_sigmoid divide multiply subtract
        floor_divide negative absolute float_power polar complex outer isin __and__ __or__ __xor__
        __iand__ __ior__ __ixor__ __lshift__ __rshift__
    """,
}


def _table() -> dict[str, Role]:
    rows: Iterable[tuple[Role, str]] = (
        ("view", _VIEWS), ("copy", _COPIES), ("nothing", _NOTHING), ("product", _PRODUCTS),
        ("composite", _COMPOSITES), ("factory", _FACTORIES), ("detach", "detach"),
        ("attention", "scaled_dot_product_attention"), ("host", _GATHERS),
        *(("host", names) for names in _HOST.values()),
    )
    return {f"aten.{name}": role for role, names in rows for name in names.split()}


_ROLES: Mapping[str, Role] = _table()
_REGIONS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")


class UnsupportedOperators(ParameterError):
    """Operators whose cost is unknown; ``operators`` has count and first module of each."""

    def __init__(self, model: str, operators: Mapping[str, tuple[int, str]]) -> None:
        self.operators = dict(operators)
        listed = ", ".join(
            f"{name} ({count} in all, first in {module or 'the model itself'})"
            for name, (count, module) in operators.items()
        )
        super().__init__("model", model, f"has operators of unknown cost: {listed}; "
                         "host_fallback=True (--host-fallback) runs them on the host")


def operator_name(target: Any) -> str:
    """``aten.add`` for any overload of it, in place or not."""
    if isinstance(target, OpOverload):
        name = str(target.overloadpacket)
        in_place = name.endswith("_") and not name.endswith("__")
        return name.removesuffix("_") if in_place else name
    if isinstance(target, HigherOrderOperator):
        return f"higher_order.{target}"
    return str(getattr(target, "__name__", target))


def mutates(node: fx.Node) -> bool:
    """Whether it writes to one of its operands."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def written(node: fx.Node) -> list[fx.Node]:
    """The tensors that it writes to."""
    if not mutates(node):
        return []
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = arguments(node)
    return [given[each.name] for each in schema
            if each.is_write and isinstance(given[each.name], fx.Node)]


def role(node: fx.Node) -> Role:
    """What becomes of a call."""
    name = operator_name(node.target)
    if name in _names(_DROPOUTS):
        given = arguments(node)
        return "host" if given["train"] and given["p"] else "view"
    if name in _names(_CONVERSIONS) and _changes_kind(node):
        return "host"
    found = _role(node.target)
    if found == "unknown" and not isinstance(node.target, OpOverload | HigherOrderOperator):
        return "unknown" if isinstance(node.meta.get("val"), Tensor) else "nothing"
    return found


def keeps_order(node: fx.Node) -> bool:
    """Whether it is a view of all elements in their order."""
    return operator_name(node.target) in _names(_IN_ORDER) and role(node) == "view"


def reads_rows(node: fx.Node) -> bool:
    """Whether it picks elements of its first operand, as many as it returns."""
    return operator_name(node.target) in _names(_GATHERS)


@cache
def _names(names: str) -> frozenset[str]:
    return frozenset(f"aten.{name}" for name in names.split())


@cache
def _role(target: Any) -> Role:
    name = operator_name(target)
    if target is operator.getitem:
        return "item"
    if isinstance(target, HigherOrderOperator):
        return "region" if str(target) in _REGIONS else "unknown"
    if name in _ROLES:
        return _ROLES[name]
    pointwise = isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags
    return "host" if pointwise else "unknown"


def _changes_kind(node: fx.Node) -> bool:
    """Whether a conversion is more than a rounding: from or to integers."""
    source = node.args[0]
    before = source.meta["val"].dtype if isinstance(source, fx.Node) else None
    after = node.meta["val"].dtype
    return before != after and not (
        before is not None and before.is_floating_point and after.is_floating_point)
