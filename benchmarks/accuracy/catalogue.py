"""Every task of the study by its name."""

from __future__ import annotations

from pathlib import Path

from benchmarks.accuracy.cifar import (
    Cifar10ResNet9,
    Cifar10Vit,
    Cifar100ResNet9,
    Cifar100Vit,
    CifarTask,
)
from benchmarks.accuracy.noisy_digits import NoisyDigitsCnn, NoisyDigitsVit
from benchmarks.accuracy.real_digits import DigitsCnn, DigitsVit
from benchmarks.accuracy.tasks import Task
from benchmarks.accuracy.teacher import TeacherTask
from rtl.errors import ParameterError, closest

__all__ = ["TASKS", "get_task", "task_class"]

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (TeacherTask, NoisyDigitsCnn, NoisyDigitsVit, DigitsCnn, DigitsVit,
                 Cifar10ResNet9, Cifar10Vit, Cifar100ResNet9, Cifar100Vit)
}
"""Every task, by name."""


def task_class(name: str, parameter: str = "--task") -> type[Task]:
    """The task called ``name``, without its data."""
    if name not in TASKS:
        rule = f"must be one of {', '.join(TASKS)}"
        raise ParameterError(parameter, name, rule, closest(str(name), TASKS) or "teacher")
    return TASKS[name]


def get_task(name: str, data: Path | None = None) -> Task:
    """The task called ``name``; ``data`` is where CIFAR lies.

    Raises :class:`ParameterError` for an unknown task, and for one whose data nobody gave.
    """
    kind = task_class(name)
    return kind(data) if issubclass(kind, CifarTask) else kind()
