"""N:M masks and sparse-training methods for PyTorch."""

from algorithms.layers import NmConv2d, NmLayer, NmLinear
from algorithms.masks import apply_mask, nm_mask
from algorithms.methods import METHODS, Method, get_method
from algorithms.plan import STAGES, LayerPlan, PassPlan
from algorithms.report import LayerReport, SparsityReport
from algorithms.swap import decay_pruned, plan_model, sparse_layers, sparsify, unsparsify

__all__ = [
    "METHODS",
    "STAGES",
    "LayerPlan",
    "LayerReport",
    "Method",
    "NmConv2d",
    "NmLayer",
    "NmLinear",
    "PassPlan",
    "SparsityReport",
    "apply_mask",
    "decay_pruned",
    "get_method",
    "nm_mask",
    "plan_model",
    "sparse_layers",
    "sparsify",
    "unsparsify",
]
