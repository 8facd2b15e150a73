"""Pictures of the study: the gap to dense against density, width and length, with error bars."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.accuracy.catalogue import task_class
from benchmarks.accuracy.record import Record
from benchmarks.accuracy.suites import SUITES, Attempt, Suite
from benchmarks.accuracy.summary import Gap, gap_of
from rtl.pattern import NmPattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["save_plots"]

_NAMES = {"methods": "accuracy_density", "capacity": "accuracy_width", "length": "accuracy_length",
          "recipes": "accuracy_recipes"}
_MARKERS = "osD^vP*X"

Found = Sequence[tuple[Attempt, Gap]]


def save_plots(record: Record, folder: Path, suffix: str = ".svg") -> list[Path]:
    """Draw what the record has, one file a suite, a panel a task; returns the files."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(spec.task for spec in record.specs()))
    saved = []
    for suite in (SUITES[name] for name in _NAMES):
        own = suite.methods == ()  # attempts of its own, made for its own tasks
        panels = {task: found for task in tasks if not own or task in suite.tasks
                  if (found := _found(suite, task, record))}
        if not panels:
            continue
        # Text stays text, and the same record gives the same file.
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "nmsat"}):
            figure = Figure((4.4 * len(panels) + 0.6, 3.8), layout="constrained")
            for axes, (task, found) in zip(
                    figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
                _draw(axes, suite, found)
                axes.set_title(task_class(task).title, fontsize="small")
                axes.axhline(0, color="grey", linewidth=1)
                axes.grid(alpha=0.25)
                axes.legend(fontsize="x-small")
                axes.set_ylabel("difference to dense, points")
            path = folder / f"{_NAMES[suite.name]}{suffix}"
            metadata = {"Date": None} if suffix == ".svg" else None
            figure.savefig(path, dpi=120, metadata=metadata)
            saved.append(path)
    return saved


def _found(suite: Suite, task: str, record: Record) -> Found:
    listed = suite.make(task, suite.methods, suite.patterns)
    found = [(attempt, gap) for attempt in listed if (gap := gap_of(attempt, record))]
    # One point is no curve, and the other suites have it in theirs.
    places = {_place(suite, attempt) for attempt, _ in found}
    return found if len(places) > 1 else []


def _place(suite: Suite, attempt: Attempt) -> object:
    spec = attempt.spec
    return {"methods": spec.pattern, "capacity": spec.width, "length": spec.steps,
            "recipes": attempt.label}[suite.name]


def _draw(axes: Axes, suite: Suite, found: Found) -> None:
    if suite.name == "recipes":
        _draw_costs(axes, found)
        return
    if suite.name == "methods":
        _draw_densities(axes, found)
        return
    axis = "width" if suite.name == "capacity" else "steps"
    for place, (label, curve) in enumerate(_curves(found)):
        positions = [float(getattr(attempt.spec, axis)) for attempt, _ in curve]
        _bars(axes, positions, curve, _MARKERS[place], label)
    ticks = sorted({getattr(attempt.spec, axis) for attempt, _ in found})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("width of the network" if axis == "width" else "training steps")


def _draw_densities(axes: Axes, found: Found) -> None:
    patterns = sorted({attempt.spec.pattern for attempt, _ in found},
                      key=lambda text: (-NmPattern.parse(text).density, NmPattern.parse(text).m))
    by_method: dict[str, list[tuple[Attempt, Gap]]] = {}
    for attempt, gap in found:
        by_method.setdefault(attempt.spec.method, []).append((attempt, gap))
    for place, (method, curve) in enumerate(by_method.items()):
        curve.sort(key=lambda one: patterns.index(one[0].spec.pattern))
        shift = 0.08 * (place - (len(by_method) - 1) / 2)  # bars side by side
        positions = [patterns.index(attempt.spec.pattern) + shift for attempt, _ in curve]
        _bars(axes, positions, curve, _MARKERS[place], method)
    axes.set_xticks(range(len(patterns)), [
        f"{text}\n{NmPattern.parse(text).density:.3g}" for text in patterns])
    axes.set_xlabel("pattern and its density")


def _draw_costs(axes: Axes, found: Found) -> None:
    families: Mapping[str, str] = {"dense": "dense, shorter or another rate", "bdwp": "bdwp",
                                   "bdwp+wu": "bdwp+wu"}
    for place, (method, label) in enumerate(families.items()):
        curve = [(attempt, gap) for attempt, gap in found if attempt.spec.method == method]
        if curve:
            _bars(axes, [gap.cost for _, gap in curve], curve, _MARKERS[place], label, line="")
    plain = next((gap for attempt, gap in found if attempt.label == "bdwp 2:8"), None)
    if plain is not None:
        axes.axvline(plain.cost, color="grey", linestyle=":", linewidth=1)
        axes.axhline(plain.difference / 2, color="grey", linestyle=":", linewidth=1)
    axes.set_xlabel("training MACs over dense (dotted: plain BDWP 2:8, and half its gap)")
    axes.xaxis.label.set_fontsize("small")


def _curves(found: Found) -> Iterator[tuple[str, Found]]:
    for label in dict.fromkeys(attempt.label for attempt, _ in found):
        yield label, [(attempt, gap) for attempt, gap in found if attempt.label == label]


def _bars(
    axes: Axes, positions: Sequence[float], curve: Found, marker: str, label: str, line: str = "-"
) -> None:
    errors = [0.0 if math.isnan(gap.error) else gap.error for _, gap in curve]
    axes.errorbar(positions, [gap.difference for _, gap in curve], errors, marker=marker,
                  markersize=4, linewidth=1, linestyle=line, capsize=2, label=label)
