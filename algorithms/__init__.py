"""N:M masks and sparse-training methods for PyTorch."""

from algorithms.decay import decay_pruned
from algorithms.handle import SparseHandle
from algorithms.layers import NmConv2d, NmLayer, NmLinear, sparse_layers
from algorithms.masks import apply_mask, nm_mask
from algorithms.methods.base import Method
from algorithms.methods.catalogue import METHODS, get_method
from algorithms.mvue import MinimumVarianceSampler
from algorithms.plan import STAGES, LayerPlan, PassPlan
from algorithms.report import LayerReport, SparsityReport
from algorithms.rules import Rules, Size
from algorithms.schedule import Schedule
from algorithms.swap import plan_model, sparsify, unsparsify
from rtl.errors import ParameterError, closest

__all__ = [
    "METHODS",
    "STAGES",
    "LayerPlan",
    "LayerReport",
    "Method",
    "MinimumVarianceSampler",
    "NmConv2d",
    "NmLayer",
    "NmLinear",
    "ParameterError",
    "PassPlan",
    "Rules",
    "Schedule",
    "Size",
    "SparseHandle",
    "SparsityReport",
    "apply_mask",
    "closest",
    "decay_pruned",
    "get_method",
    "nm_mask",
    "plan_model",
    "sparse_layers",
    "sparsify",
    "unsparsify",
]
