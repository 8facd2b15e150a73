"""What the study trains: named lists of attempts, each compared with a dense baseline.

To try something new, add a line to :func:`_attempts`; the record keeps what has been trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.accuracy.catalogue import task_class
from benchmarks.accuracy.record import Spec, make_spec
from rtl.errors import ParameterError, closest
from rtl.pattern import NmPattern

__all__ = [
    "GRADIENT",
    "METHODS",
    "PATTERNS",
    "SUITES",
    "Attempt",
    "Suite",
    "dense_share",
    "get_suite",
]

METHODS = ("srste", "sdgp", "sdwp", "bdwp", "bdwp+wu")
PATTERNS = ("2:4", "1:4", "2:8", "1:8", "2:16")

GRADIENT = "2:4"
"""Pattern of dY in WU: it costs what 1:2 does, with less variance."""

_STRONG = 2e-2
"""A hundred times the decay of the authors of SR-STE, who train hundreds of times as long."""
_WORDS = f"decay {_STRONG:g}"

_ENDS = 0.06
"""Share of the first and last layers, which stay dense, in the work: somewhat more than it is."""


@dataclass(frozen=True)
class Attempt:
    """One line of a table: what it is called, what is trained, and what it is compared with."""

    label: str
    spec: Spec
    baseline: Spec


@dataclass(frozen=True)
class Suite:
    """A question and how it is asked.

    tasks, methods, patterns: where nobody says; without ``methods``, the suite has its own.
    make: attempts for one task.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    patterns: tuple[str, ...]
    make: Callable[[str, Sequence[str], Sequence[str]], list[Attempt]] = field(repr=False)

    def attempts(
        self, tasks: Sequence[str] | None = None, methods: Sequence[str] | None = None,
        patterns: Sequence[str] | None = None,
    ) -> dict[str, list[Attempt]]:
        """Attempts by task; raises :class:`ParameterError` for what no suite can train."""
        if methods and not self.methods:
            rule = f"suite {self.name} chooses its own methods"
            raise ParameterError("--methods", ",".join(methods), rule)
        return {task: self.make(task, methods or self.methods, patterns or self.patterns)
                for task in dict.fromkeys(tasks or self.tasks)}


def _grid(
    task: str, methods: Sequence[str], patterns: Sequence[str], width: int | None = None,
    steps: int | None = None,
) -> Iterator[Attempt]:
    dense = make_spec(task, width=width, steps=steps)
    for method in methods:
        for pattern in patterns:
            yield Attempt(f"{method} {pattern}", make_spec(
                task, method, pattern, width=width, steps=steps, gradient=GRADIENT), dense)


def _methods(task: str, methods: Sequence[str], patterns: Sequence[str]) -> list[Attempt]:
    return list(_grid(task, methods, patterns))


def _capacity(task: str, methods: Sequence[str], patterns: Sequence[str]) -> list[Attempt]:
    return [attempt for width in task_class(task).widths
            for attempt in _grid(task, methods, patterns, width=width)]


def _length(task: str, methods: Sequence[str], patterns: Sequence[str]) -> list[Attempt]:
    return [attempt for steps in task_class(task).lengths
            for attempt in _grid(task, methods, patterns, steps=steps)]


def _recipes(task: str, methods: Sequence[str], patterns: Sequence[str]) -> list[Attempt]:
    """All attempts are held against dense of full length, and their cost against its."""
    dense = make_spec(task)
    found = [Attempt(label, make_spec(task, **chosen), dense)
             for pattern in patterns
             for label, chosen in _attempts(
                 task, pattern, dense.steps, task_class(task).recipe.rate)]
    # Some are the same run under two names: the first stays.
    once: dict[str, Attempt] = {}
    for attempt in found:
        once.setdefault(attempt.spec.key, attempt)
    return list(once.values())


def dense_share(cost: float, budget: float) -> float:
    """Share of dense steps that lifts a mean cost of ``cost`` to ``budget``, rounded down."""
    return max(0.0, math.floor(1000 * (budget - cost) / (1 - cost)) / 1000)


def _cost(pattern: str, update: float = 1.0) -> float:
    """MACs of FF, BP and WU of a sparse layer over those of dense."""
    return (2 * NmPattern.parse(pattern).density + update) / 3


def _attempts(
    task: str, pattern: str, steps: int, rate: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and arguments of :func:`make_spec` of every attempt to close the gap at ``pattern``."""
    chosen = NmPattern.parse(pattern)
    budget, sampled = _cost(pattern), _cost(pattern, 0.5)  # of plain BDWP, and of BDWP+WU

    # Controls: what dense training gives for the same money, and for another rate.
    yield f"dense, {budget:.0%} of the steps", {
        "method": "dense", "steps": round(steps * budget)}
    for factor in (0.5, 2, 4):
        yield f"dense, rate x{factor}", {"method": "dense", "recipe": {"rate": factor * rate}}

    for label, extra in _of_weights(rate):
        yield f"bdwp {pattern}{label}", {"method": "bdwp", "pattern": pattern, **extra}
    for label, extra in _of_all_passes(rate, dense_share(sampled, budget)):
        yield f"bdwp+wu {pattern}{label}", {"method": "bdwp+wu", "pattern": pattern, **extra}
    longer = (_ENDS + (1 - _ENDS) * budget) / (_ENDS + (1 - _ENDS) * sampled)
    yield f"bdwp+wu {pattern}, gradient 2:4, {_WORDS}, {longer:.2f} x the steps", {
        "method": "bdwp+wu", "pattern": pattern, "gradient": "2:4", "options": {"decay": _STRONG},
        "steps": math.floor(steps * longer)}

    # For the money of BDWP: cheaper for most steps, and what is saved spent on dense ones.
    halved = f"{chosen.n}:{2 * chosen.m}"
    share = dense_share(_cost(halved), budget)
    for words, options in (("", {}), (f", {_WORDS}", {"decay": _STRONG})):
        yield f"bdwp {halved}{words}, dense tail {share:.1%}", {
            "method": "bdwp", "pattern": halved, "options": options, "phases": {"tail": share}}


def _of_weights(rate: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is tried with BDWP: one thing at a time, then with a strong decay."""
    yield "", {}
    yield ", fp16 operands", {"precision": "fp16"}
    for decay in (2e-4, 2e-3, 6e-3, _STRONG, 6e-2):
        yield f", decay {decay:g}", {"options": {"decay": decay}}
    for mask in ("double", "transposable"):
        yield f", {mask} mask", {"options": {"backward_mask": mask}}
    for magnitudes in ("soft", "rescaled"):
        yield f", {magnitudes}", {"options": {"magnitudes": magnitudes}}
    yield ", refresh 10", {"options": {"refresh": 10}}
    for factor in (0.5, 2, 4):
        yield f", rate x{factor}", {"recipe": {"rate": factor * rate}}
    yield ", no weight decay", {"recipe": {"weight_decay": 0.0}}
    yield ", dense warm-up 10%", {"phases": {"warmup": 0.1}}
    yield ", dense tail 10%", {"phases": {"tail": 0.1}}
    yield ", gradual over 50%", {"phases": {"gradual": 0.5}}
    strong = {"decay": _STRONG}
    twice = {"recipe": {"rate": 2 * rate}}
    double = {"backward_mask": "double", **strong}
    yield f", {_WORDS}, rate x2", {"options": strong, **twice}
    yield f", {_WORDS}, double mask", {"options": double}
    yield f", {_WORDS}, double mask, rate x2", {"options": double, **twice}
    yield f", {_WORDS}, soft", {"options": {"magnitudes": "soft", **strong}}
    yield f", {_WORDS}, refresh 10", {"options": {"refresh": 10, **strong}}
    yield f", {_WORDS}, no weight decay", {"options": strong, "recipe": {"weight_decay": 0.0}}
    yield f", {_WORDS}, dense tail 10%", {"options": strong, "phases": {"tail": 0.1}}
    yield f", {_WORDS}, gradual over 30%", {"options": strong, "phases": {"gradual": 0.3}}


def _of_all_passes(rate: float, share: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is tried with BDWP+WU; ``share`` of dense steps makes it cost what BDWP does."""
    yield "", {}
    yield f", {_WORDS}", {"options": {"decay": _STRONG}}
    yield f", dense tail {share:.1%}", {"phases": {"tail": share}}
    yield ", gradient 2:4", {"gradient": "2:4"}
    strong: dict[str, Any] = {"gradient": "2:4", "options": {"decay": _STRONG}}
    double = {"gradient": "2:4", "options": {"decay": _STRONG, "backward_mask": "double"}}
    twice = {"recipe": {"rate": 2 * rate}}
    label = f", gradient 2:4, {_WORDS}"
    yield label, strong
    yield f"{label}, rate x2", {**strong, **twice}
    yield f"{label}, double mask", double
    yield f"{label}, double mask, rate x2", {**double, **twice}
    yield f"{label}, gradual over 50%", {**strong, "phases": {"gradual": 0.5}}
    yield f"{label}, dense warm-up {share:.1%}", {**strong, "phases": {"warmup": share}}
    yield f"{label}, dense tail {share:.1%}", {**strong, "phases": {"tail": share}}
    yield f"{label}, rate x2, dense tail {share:.1%}", {
        **strong, **twice, "phases": {"tail": share}}


def _saturated(task: str, methods: Sequence[str], patterns: Sequence[str]) -> list[Attempt]:
    """Every method as it is, and BDWP and BDWP+WU with the decay that the teacher task chose."""
    found = list(_grid(task, methods, patterns))
    for method in ("bdwp", "bdwp+wu"):
        for pattern in patterns:
            found.append(Attempt(f"{method} {pattern}, {_WORDS}", make_spec(
                task, method, pattern, gradient=GRADIENT, options={"decay": _STRONG}),
                make_spec(task)))
    return found


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("methods", "gap to dense by method and pattern", ("teacher", "cnn", "vit"),
              METHODS, PATTERNS, _methods),
        Suite("capacity", "gap to dense by width of the network", ("teacher", "cnn"),
              ("bdwp",), ("2:8",), _capacity),
        Suite("length", "gap to dense by number of training steps", ("teacher", "cnn"),
              ("bdwp",), ("2:8",), _length),
        Suite("saturated", "gap to dense where the network fits its training data whole",
              ("digits-cnn", "digits-vit"), METHODS, ("2:8",), _saturated),
        Suite("recipes", "attempts to close the gap", ("teacher",), (), ("2:8",), _recipes),
    )
}
"""Every suite, by name."""


def get_suite(name: str) -> Suite:
    """The suite called ``name``; raises :class:`ParameterError`."""
    if name not in SUITES:
        rule = f"must be one of {', '.join(SUITES)}"
        raise ParameterError("--suite", name, rule, closest(name, SUITES) or "methods")
    return SUITES[name]
