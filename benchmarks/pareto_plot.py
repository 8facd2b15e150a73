"""The picture of a design-space exploration: step time against share of the device, and energy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import hypot
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.exploration_tables import label
from compiler.explore.search import Exploration, Point
from rtl.pattern import NmPattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["pareto_plot"]

_MARKERS = "osD^vP*X<>"
_NEAR = 0.2
"""Inches within which points share a label."""
_KEYS = 18
"""Points of the front that are listed below the axes."""
_UNITS = (("s", 1.0), ("ms", 1e3), ("µs", 1e6), ("ns", 1e9))


def pareto_plot(exploration: Exploration, path: Path) -> None:
    """Draw the points into ``path``, whose suffix chooses the format (svg, png, pdf).

    A marker's shape is its pattern, its size the bandwidth, its colour the energy of a step. The
    Pareto front is ringed and numbered by rank. What does not fit the device is pale and lies right
    of the line at 100%. There must be points to draw.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text stays text, and the same exploration gives the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "nmsat"}):
        figure = Figure((9.6, 6.2), layout="constrained")
        _draw(figure, exploration)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)


def _draw(figure: Figure, exploration: Exploration) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, NullLocator

    points = exploration.points
    unit, scale = _unit(point.seconds for point in points)
    energies = [point.joules for point in points]
    least, most = min(energies), max(energies)
    norm = LogNorm(least, max(most, least * 1.01))
    axes = figure.add_subplot()
    patterns = sorted({point.pattern for point in points},
                      key=lambda name: -NmPattern.parse(name).density)
    markers = {name: _MARKERS[place % len(_MARKERS)] for place, name in enumerate(patterns)}
    sizes = _sizes(points)
    # Bandwidth often changes little: large markers first, so that small ones lie on them.
    for one in sorted(points, key=lambda point: -point.dram_gbps):
        axes.scatter(
            100 * one.largest_share, scale * one.seconds, sizes[one.dram_gbps],
            c=[one.joules], norm=norm, cmap="viridis", marker=markers[one.pattern],
            alpha=1 if one.fits else 0.3, edgecolors="white", linewidths=0.6,
        )
    for name, marker in markers.items():
        axes.scatter([], [], 50, color="grey", marker=marker, label=name)
    bandwidths = list(sizes)
    if len(sizes) > 1:
        for gbps in dict.fromkeys((bandwidths[0], bandwidths[len(sizes) // 2], bandwidths[-1])):
            axes.scatter([], [], sizes[gbps], color="lightgrey", label=f"{gbps:,.4g} GB/s")
    axes.axvline(100, color="grey", linestyle=":", linewidth=1)
    axes.text(101, 0.03, "VU9P full", rotation=90, ha="left", color="grey", fontsize="small",
              transform=axes.get_xaxis_transform())
    axes.margins(0.1)  # room for the numbers of the front
    axes.set(xscale="log", yscale="log", title=_title(exploration),
             xlabel="largest share of a VU9P, %", ylabel=f"time of a training step, {unit}")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right", fontsize="small")
    bar = figure.colorbar(ScalarMappable(norm, "viridis"), ax=axes,
                          label="energy of a step, J (estimate)")
    for axis in (axes.xaxis, axes.yaxis, bar.ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.set_major_formatter("{x:,.4g}")
        axis.set_minor_locator(NullLocator())
    _number(figure, axes, exploration, scale)


def _title(exploration: Exploration) -> str:
    names = ", ".join(exploration.workloads)
    mean = "geometric mean of " if len(exploration.workloads) > 1 else ""
    return f"{mean}{names}, {exploration.clock_mhz:g} MHz"


def _unit(seconds: Iterator[float]) -> tuple[str, float]:
    """The unit in which the largest of some times is at least 1, and its number in a second."""
    longest = max(seconds)
    return next((one for one in _UNITS if longest * one[1] >= 1), _UNITS[-1])


def _sizes(points: Sequence[Point]) -> dict[float, float]:
    """Area of a marker for each bandwidth, in square points."""
    bandwidths = sorted({point.dram_gbps for point in points})
    step = 90 / max(1, len(bandwidths) - 1)
    return {gbps: 30 + place * step for place, gbps in enumerate(bandwidths)}


def _number(figure: Figure, axes: Axes, exploration: Exploration, scale: float) -> None:
    """Ring the points of the front and number them by rank; below the axes stands which is which.

    Points too close to be told apart share one label.
    """
    front = exploration.front
    figure.draw_without_rendering()  # until now the axes have no place on the page
    labels: list[tuple[tuple[float, float], list[int]]] = []
    for rank, point in enumerate(front, 1):
        place = 100 * point.largest_share, scale * point.seconds
        axes.scatter(*place, 190, facecolors="none", edgecolors="crimson", linewidths=1.3)
        near = next((ranks for other, ranks in labels if _distance(axes, place, other) < _NEAR),
                    None)
        if near is None:
            labels.append((place, [rank]))
        else:
            near.append(rank)
    for place, ranks in labels:
        axes.annotate(", ".join(map(str, ranks)), place, (-8, -8), textcoords="offset points",
                      ha="right", va="top", color="crimson", weight="bold")
    key = [axes.scatter([], [], 45 * len(str(rank)), color="crimson", marker=f"${rank}$",
                        linewidths=0, label=label(point, exploration))
           for rank, point in enumerate(front[:_KEYS], 1)]
    if key:
        rest = len(front) - len(key)
        title = "Pareto front, fastest first" + (f"; {rest} more in the table" if rest else "")
        figure.legend(handles=key, loc="outside lower center", ncols=3, fontsize="small",
                      title=title)


def _distance(axes: Axes, one: tuple[float, float], other: tuple[float, float]) -> float:
    """Of two points of the picture, in inches."""
    ends = axes.transData.transform([one, other])
    return float(hypot(*(ends[1] - ends[0]))) / axes.figure.dpi
