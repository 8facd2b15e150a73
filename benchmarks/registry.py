"""Every workload by name, and a clear answer for those that this version does not have."""

from __future__ import annotations

from benchmarks.resnet9_digits import ResNet9Digits
from benchmarks.workload import Workload
from rtl.errors import ParameterError, closest

__all__ = ["NAMES", "WORKLOADS", "get_workload"]

NAMES = (
    "resnet9", "vgg19", "vit", "resnet18", "resnet50", "llama-adapter", "llama-adapter-v2",
    "mathcoder", "csv", "recranker", "llama4rec", "ape", "journeydb", "feataug-detr",
)
"""All names of the command-line contract, available or not."""

WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in (ResNet9Digits(),)}
"""The workloads of this version."""


def get_workload(name: str, parameter: str = "workload") -> Workload:
    """The workload called ``name``; raises :class:`ParameterError` naming ``parameter``."""
    if name in WORKLOADS:
        return WORKLOADS[name]
    available = ", ".join(WORKLOADS)
    nearest = closest(str(name), WORKLOADS) or next(iter(WORKLOADS))
    if name in NAMES:
        rule = f"is not available in this version, which has: {available}"
        raise ParameterError(parameter, name, rule, nearest)
    raise ParameterError(parameter, name, f"must be one of {available}", nearest)
