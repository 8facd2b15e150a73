"""Every workload by name, and a clear answer for those that this version does not have."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from benchmarks.workload import Workload
from rtl.errors import ParameterError, closest

__all__ = ["NAMES", "WORKLOADS", "get_workload"]

NAMES = (
    "resnet9", "vgg19", "vit", "resnet18", "resnet50", "llama-adapter", "llama-adapter-v2",
    "mathcoder", "csv", "recranker", "llama4rec", "ape", "journeydb", "feataug-detr",
)
"""All names of the command-line contract, available or not."""

WORKLOADS = {
    "resnet9": ("benchmarks.resnet9_digits", "ResNet9Digits"),
    "llama-adapter": ("benchmarks.llm.workload", "LlamaAdapter"),
    "llama-adapter-v2": ("benchmarks.llm.workload", "LlamaAdapterV2"),
    "mathcoder": ("benchmarks.math.workload", "MathCoder"),
    "csv": ("benchmarks.math.workload", "CsvVoting"),
}
"""The workloads of this version by name: module and class, imported when asked for, since
transformers alone takes seconds."""


def get_workload(name: str, parameter: str = "workload") -> Workload:
    """The workload called ``name``; raises :class:`ParameterError` naming ``parameter``."""
    if name in WORKLOADS:
        return _made(name)
    available = ", ".join(WORKLOADS)
    nearest = closest(str(name), WORKLOADS) or next(iter(WORKLOADS))
    if name in NAMES:
        rule = f"is not available in this version, which has: {available}"
        raise ParameterError(parameter, name, rule, nearest)
    raise ParameterError(parameter, name, f"must be one of {available}", nearest)


@cache
def _made(name: str) -> Workload:
    module, attribute = WORKLOADS[name]
    made: Workload = getattr(import_module(module), attribute)()
    return made
