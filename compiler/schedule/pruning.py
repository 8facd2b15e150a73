"""Pruning as a pass: which operand of which GEMM is N:M, as the training method says.

The plan is :func:`algorithms.plan_model`'s, which :func:`nmsat.sparsify` follows in PyTorch. A WU
whose dY is sampled needs a packed copy of it that no unit of the chip can draw: the host makes it,
in a task of its own as soon as dY is there.
"""

from __future__ import annotations

from dataclasses import replace

from algorithms import LayerPlan, SparsityReport
from compiler.ir import Gemm, HostTask, Step, Task, Update
from compiler.schedule.scheduler import problem_of
from rtl.pattern import DENSE

__all__ = ["prune"]


def prune(step: Step, report: SparsityReport) -> Step:
    """The step with the patterns of ``report`` on its GEMMs, and on what the updates pack.

    A sampled WU gets a task of the host ahead of it.
    """
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
    return replace(step, tasks=_with_samples(tuple(
        _with_copies(task, read.get(task.parameter, set())) if isinstance(task, Update) else task
        for task in tasks
    )))


def _pruned(gemm: Gemm, plan: LayerPlan) -> Gemm:
    if gemm.stage == "FF":
        return replace(gemm, pattern=plan.forward.pattern)
    if gemm.stage == "WU":
        return replace(gemm, pattern=plan.update.pattern)
    if plan.backward.pattern.is_dense:
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


def _with_samples(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    """A host task ahead of each sampled WU, and of the BP of its layer, which reads dY too."""
    due: dict[int, list[int]] = {}
    for index, task in enumerate(tasks):
        if isinstance(task, Gemm) and task.samples:
            place = index
            while place and _is_backward(tasks[place - 1], task.layer):
                place -= 1
            due.setdefault(place, []).append(index)
    made: list[Task] = []
    moved: dict[int, int] = {}
    sampled_by: dict[int, int] = {}
    for index, task in enumerate(tasks):
        for update in due.get(index, ()):
            sampled_by[update] = len(made)
            made.append(_moved(_sample(tasks[update]), moved))
        task = _moved(task, moved)
        if index in sampled_by:
            task = replace(task, needs=(*task.needs, sampled_by[index]))
        moved[index] = len(made)
        made.append(task)
    return tuple(made)


def _is_backward(task: Task, layer: str) -> bool:
    return isinstance(task, Gemm) and task.stage == "BP" and task.layer == layer


def _sample(update: Task) -> HostTask:
    """The host draws and packs what ``update`` reads; dY is there when all that it needs is."""
    if not isinstance(update, Gemm):
        raise AssertionError("only a GEMM reads a sample")
    moved = round(problem_of(update).sampling_bytes)
    return HostTask(f"{update.name} sample", f"sample {update.pattern}", True, moved, False,
                    update.needs)


def _moved(task: Task, moved: dict[int, int]) -> Task:
    return replace(task, needs=tuple(moved[index] for index in task.needs))
