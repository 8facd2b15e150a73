"""A design-space exploration in words: the ranking, what decides, what is best and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.table import Table
from rich.text import Text

from compiler.explore.grid import Refused
from compiler.explore.search import Exploration, Point

__all__ = ["label", "tables", "verdict"]

_ROWS = 24
"""Points that a table shows."""
_BUILT_COLS = 8
"""Columns up to which ``wide`` paths are those of the RTL (:mod:`compiler.schedule.target`)."""


def tables(exploration: Exploration) -> list[Table]:
    """The ranking, the front by workload, what decides, and what is no point."""
    made = []
    if exploration.points:
        made += [_ranking(exploration), _by_workload(exploration)]
    if exploration.front:
        made.append(_changes(exploration))
    if exploration.infeasible or exploration.illegal:
        made.append(_refused(exploration))
    return made


def _ranking(exploration: Exploration) -> Table:
    points = exploration.points
    names = ", ".join(exploration.workloads)
    mean = ", geometric means" if len(exploration.workloads) > 1 else ""
    table = Table(title=f"{names}{mean}, {exploration.paths} paths; "
                  "resources and energy are estimates")
    if len(points) > _ROWS:
        table.caption = f"the first {_ROWS} of {len(points)} points"
    table.add_column("#", justify="right")
    columns = _columns(points)
    for name in columns:
        table.add_column(name, justify="right")
    for name in ("step", "speed-up", *points[0].shares, "J a step", "W"):
        table.add_column(name, justify="right")
    table.add_column("")
    for rank, point in enumerate(points[:_ROWS], 1):
        mark = "front" if point.pareto else "" if point.fits else "too large"
        table.add_row(
            str(rank), *(show(point) for show in columns.values()), _time(point.seconds),
            f"{point.speedup:.2f}x", *(f"{share:.0%}" for share in point.shares.values()),
            f"{point.joules:,.3g}", f"{point.watts:,.3g}", mark,
        )
    return table


def _by_workload(exploration: Exploration) -> Table:
    """Each workload on the front, or on the first points if nothing fits."""
    table = Table(title="Time of a step by workload, and speed-up over dense on the same array")
    table.add_column("#", justify="right")
    points = (exploration.front or exploration.points)[:_ROWS]
    columns = _columns(exploration.points)
    for name in (*columns, *exploration.workloads):
        table.add_column(name, justify="right")
    for rank, point in enumerate(points, 1):
        table.add_row(str(rank), *(show(point) for show in columns.values()), *(
            f"{_time(one.seconds)}, {one.speedup:.2f}x" for one in point.workloads))
    return table


def _changes(exploration: Exploration) -> Table:
    """What becomes of the fastest point if one thing is changed."""
    best = exploration.front[0]
    name = label(best, exploration)
    table = Table(title=f"The fastest that fits, {name}, with one thing changed")
    table.add_column("changed to")
    for heading in ("step", "energy", "largest share"):
        table.add_column(heading, justify="right")
    for _, change, point in _neighbours(exploration):
        table.add_row(change, f"{point.seconds / best.seconds:.2f}x",
                      f"{point.joules / best.joules:.2f}x", f"{point.largest_share:.0%}")
    return table


def _refused(exploration: Exploration) -> Table:
    """Reasons, each with the number of combinations that it stops and the first of them."""
    table = Table(title="No points")
    for name in ("", "array", "pattern", "combinations", "reason"):
        table.add_column(name, overflow="fold")
    for kind, refused in (("infeasible", exploration.infeasible), ("illegal", exploration.illegal)):
        by_reason: dict[tuple[str, str, str], list[Refused]] = {}
        for one in refused:
            by_reason.setdefault((one.array, one.pattern or "", one.reason), []).append(one)
        for (array, pattern, reason), ones in by_reason.items():
            table.add_row(kind, array, pattern, str(len(ones)), Text(reason))
    return table


_COLUMNS: dict[str, Callable[[Point], str]] = {
    "array": lambda point: point.array,
    "L": lambda point: str(point.adder_stages),
    "w2e": lambda point: f"{point.w2e_words:,}",
    "n2s": lambda point: f"{point.n2s_words:,}",
    "out": lambda point: f"{point.out_words:,}",
    "pattern": lambda point: point.pattern,
    "GB/s": lambda point: f"{point.dram_gbps:,.4g}",
}


def _columns(points: Sequence[Point]) -> dict[str, Callable[[Point], str]]:
    """Array, pattern and bandwidth, and whatever else differs between points."""
    return {
        name: show for name, show in _COLUMNS.items()
        if name in ("array", "pattern", "GB/s") or len({show(point) for point in points}) > 1
    }


def _time(seconds: float) -> str:
    return f"{seconds:,.3f} s" if seconds >= 1 else f"{seconds * 1e3:,.3g} ms"


def label(point: Point, exploration: Exploration) -> str:
    """What tells a point from the others, in a few words."""
    return ", ".join(
        show(point) if name in ("array", "pattern") else _words(name, point)
        for name, show in _columns(exploration.points).items()
    )


def _words(name: str, point: Point) -> str:
    value = _COLUMNS[name](point)
    return f"{value} GB/s" if name == "GB/s" else f"{name} {value}"


# What is best, and why.


def _neighbours(exploration: Exploration) -> Iterator[tuple[str, str, Point]]:
    """What differs, its value, and the point, of each that differs from the fastest in one thing.

    Rows and columns are one thing.
    """
    best = exploration.front[0]
    for name in _COLUMNS:
        for point in exploration.points:
            if [other for other, show in _COLUMNS.items() if show(point) != show(best)] == [name]:
                yield name, _words(name, point), point


def verdict(exploration: Exploration) -> str:
    """A few sentences on what is best and why."""
    if not exploration.points:
        return "No combination can run these workloads."
    if not exploration.front:
        least = min(exploration.points, key=lambda point: point.largest_share)
        return (f"Nothing fits a VU9P; the smallest, {label(least, exploration)}, needs "
                f"{least.largest_share:.0%} of its scarcest resource.")
    best = exploration.front[0]
    frugal = min(exploration.front, key=lambda point: point.joules)
    scarce = max(best.shares, key=lambda name: best.shares[name])
    text = (f"Fastest that fits a VU9P: {label(best, exploration)}, {_time(best.seconds)} a step, "
            f"{best.speedup:.2f}x over dense, {best.largest_share:.0%} of the {scarce}. ")
    text += ("It needs the least energy too. " if frugal == best else
             f"Least energy: {label(frugal, exploration)}, {frugal.joules / best.joules:.2f}x of "
             f"its joules in {frugal.seconds / best.seconds:.2f}x of its time. ")
    slower: dict[str, tuple[float, str]] = {}
    for name, change, point in _neighbours(exploration):
        found = point.seconds / best.seconds, change
        if point.fits and found > slower.get(name, (0.0, "")):
            slower[name] = found
    if slower:
        ordered = sorted(slower.values(), reverse=True)
        text += ("What decides, by the worst choice of one thing: " + ", ".join(
            f"{change} takes {ratio:.2f}x as long" for ratio, change in ordered) + ". ")
    if exploration.paths == "wide" and best.cols > _BUILT_COLS:
        text += ("Its paths to memory are wider than those of the RTL, and what that takes is not "
                 "counted. ")
    return text + ("Accuracy is not judged here: of patterns that train as well, "
                   "take the sparsest.")
