"""Pruning as a pass: which operand of which GEMM is N:M, as the training method says.

The plan is :func:`algorithms.plan_model`'s, which :func:`nmsat.sparsify` follows in PyTorch.
"""

from __future__ import annotations

from dataclasses import replace

from algorithms import LayerPlan, SparsityReport
from compiler.ir import Gemm, Step, Update
from rtl.pattern import DENSE

__all__ = ["prune"]


def prune(step: Step, report: SparsityReport) -> Step:
    """The step with the patterns of ``report`` on its GEMMs, and on what the updates pack."""
    plans = {layer.name: layer.plan for layer in report.layers if layer.plan is not None}
    tasks = tuple(
        _pruned(task, plans[name]) if isinstance(task, Gemm) and task.weight is not None
        and (name := task.layer.partition("#")[0]) in plans else task
        for task in step.tasks
    )
    read: dict[str, set[Gemm]] = {}
    for task in tasks:
        if isinstance(task, Gemm) and task.weight is not None and task.stage != "WU":
            read.setdefault(task.weight, set()).add(task)
    return replace(step, tasks=tuple(
        _with_copies(task, read.get(task.parameter, set())) if isinstance(task, Update) else task
        for task in tasks
    ))


def _pruned(gemm: Gemm, plan: LayerPlan) -> Gemm:
    if gemm.stage == "FF":
        return replace(gemm, pattern=plan.forward.pattern)
    if gemm.stage == "WU" or plan.backward.pattern.is_dense:
        return gemm
    if plan.method.backward == "weight":
        return replace(gemm, pattern=plan.backward.pattern)
    # The array prunes operand B: with pruned gradients the product is transposed.
    return replace(gemm, p=gemm.q, q=gemm.p, a=gemm.b, b=gemm.a, pattern=plan.backward.pattern)


def _with_copies(update: Update, readers: set[Gemm]) -> Update:
    """Packed copies for pruned weights, one for each stage that reads them so."""
    if not readers:
        return update
    of_weight = {(gemm.stage, gemm.pattern) for gemm in readers if gemm.b == gemm.weight}
    packed = tuple(sorted((stage, pattern) for stage, pattern in of_weight if pattern != DENSE))
    return replace(update, packed=packed, half=len(packed) < len({gemm.stage for gemm in readers}))
