"""Geometry of the report's pictures: everything that a template needs to draw them as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compiler.ir import Gemm, HostTask
from compiler.report.timeline import Slice, array_lane, shared_lane
from compiler.schedule.scheduler import Placed, Schedule

__all__ = ["Bar", "Dot", "Gantt", "Lane", "Roof", "Roofline", "Tick", "gantt", "roofline"]


@dataclass(frozen=True)
class Bar:
    """A slice of a lane; ``left`` and ``width`` in per cent of the picture."""

    kind: str
    left: float
    width: float
    title: str


@dataclass(frozen=True)
class Lane:
    """One resource of one schedule; ``busy`` is a share of that schedule, ``top`` in SVG units."""

    schedule: str
    name: str
    busy: float
    top: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis; of a Gantt chart, ``level`` is the zoom step that it appears at."""

    at: float
    label: str
    level: int = 0


@dataclass(frozen=True)
class Gantt:
    """Lanes on one axis of time; heights in SVG units."""

    height: int
    lane_height: int
    lanes: tuple[Lane, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Dot:
    """One GEMM in the roofline; ``pruned``: it executes fewer multiply-accumulates than dense."""

    x: float
    y: float
    stage: str
    pruned: bool
    title: str


@dataclass(frozen=True)
class Roof:
    """A bound: a line from (x, y) to (x2, y2)."""

    x: float
    y: float
    x2: float
    y2: float
    label: str

    @property
    def angle(self) -> float:
        """Degrees by which the label is turned."""
        return round(math.degrees(math.atan2(self.y2 - self.y, self.x2 - self.x)), 1)

    @property
    def anchor(self) -> str:
        """Flat roofs carry their label at the end, where fewer dots are; others in the middle."""
        return "end" if self.y == self.y2 else "middle"

    @property
    def label_x(self) -> float:
        """Where the label is."""
        return self.x2 if self.y == self.y2 else round((self.x + self.x2) / 2, 2)

    @property
    def label_y(self) -> float:
        """Where the label is."""
        return round((self.y + self.y2) / 2, 2)


@dataclass(frozen=True)
class Roofline:
    """A log-log plot of dense-equivalent GFLOP/s over FLOP a byte, in SVG units."""

    width: int
    height: int
    left: int
    bottom: int
    dots: tuple[Dot, ...]
    roofs: tuple[Roof, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


# The Gantt chart.

_LANE, _LANE_STEP, _HEADING, _AXIS = 22, 26, 22, 24


def gantt(sparse: Schedule, dense: Schedule) -> Gantt:
    """Array, memory and vector engine of both schedules, on the same axis."""
    cycles = max(1, sparse.cycles, dense.cycles)
    lanes: list[Lane] = []
    top = 0
    for name, schedule in (("sparse", sparse), ("dense", dense)):
        top += _HEADING
        for label, slices in (("array", array_lane(schedule)),
                              ("memory", shared_lane(schedule, "memory")),
                              ("vector", shared_lane(schedule, "vector"))):
            lanes.append(_lane(name, label, schedule, slices, cycles, top))
            top += _LANE_STEP
    return Gantt(top + _AXIS, _LANE, tuple(lanes), tuple(_times(sparse.target.seconds(cycles))))


def _lane(
    name: str, label: str, schedule: Schedule, slices: Sequence[Slice], cycles: int, top: int
) -> Lane:
    busy = sum(one.end - one.start for one in slices)
    drawn = (one.index for one in schedule.placed if not isinstance(one.task, HostTask))
    numbers = {index: number for number, index in enumerate(drawn)}
    bars = (
        Bar(f"{_kind(one.placed)}{' odd' if numbers[one.placed.index] % 2 else ''}",
            100 * one.start / cycles, 100 * (one.end - one.start) / cycles,
            f"{one.placed.task.name}: {one.end - one.start:,} cycles from {one.start:,}")
        for one in slices
    )
    return Lane(name, label, busy / max(1, schedule.cycles), top, tuple(bars))


def _kind(placed: Placed) -> str:
    return placed.task.stage if isinstance(placed.task, Gemm) else "update"


def _times(seconds: float) -> Iterator[Tick]:
    """Round times, five times as many at each zoom level."""
    step = 10 ** math.floor(math.log10(seconds / 4))
    step *= max(factor for factor in (1, 2, 5) if factor * step <= seconds / 4)
    unit, scale = next((unit, scale) for unit, scale in (
        ("s", 1.0), ("ms", 1e3), ("µs", 1e6), ("ns", 1e9)) if step * scale >= 1 or unit == "ns")
    fine = 25
    for number in range(math.floor(seconds / step * fine) + 1):
        time = number * step / fine
        level = 0 if number % 25 == 0 else 1 if number % 5 == 0 else 2
        yield Tick(100 * time / seconds, f"{time * scale:,.6g} {unit}", level)


# The roofline.

_WIDTH, _HEIGHT = 860, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 24, 44
_MARGIN = 1.5


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis from ``low`` to ``high`` between two SVG coordinates."""

    low: float
    high: float
    begin: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], begin: float, end: float) -> _Axis:
        """An axis with a margin around ``values``."""
        return cls(min(values) / _MARGIN, max(values) * _MARGIN, begin, end)

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.begin + share * (self.end - self.begin), 2)

    def ticks(self) -> Iterator[Tick]:
        """1, 2 and 5 of each power of ten; of a long axis, the powers alone."""
        factors = (1, 2, 5) if self.high / self.low < 1e4 else (1,)
        for power in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))):
            for factor in factors:
                value = factor * 10.0**power
                if self.low <= value <= self.high:
                    yield Tick(self(value), f"{value:,.6g}")


def roofline(schedule: Schedule) -> Roofline:
    """Every GEMM by its dense-equivalent work.

    Pruning raises the compute roof by M / N, since the work that it saves counts as done.
    """
    target = schedule.target
    giga = target.architecture.clock_mhz / 1e3  # GHz
    peak, slope = 2 * target.architecture.pes * giga, target.dram_bytes * giga
    gemms = [(one, gemm) for one in schedule.gemms if isinstance(gemm := one.task, Gemm)]
    points = [(2 * gemm.dense_macs / max(1, one.dram_bytes),
               2 * gemm.dense_macs / max(1, one.cycles) * giga) for one, gemm in gemms]
    peaks = {f"{pattern} roof, {peak / pattern.density:,.1f} GFLOP/s": peak / pattern.density
             for pattern in sorted({gemm.pattern for _, gemm in gemms},
                                   key=lambda pattern: -pattern.density)}
    peaks.setdefault(f"dense roof, {peak:,.1f} GFLOP/s", peak)
    knees = [roof / slope for roof in peaks.values()]
    x = _Axis.over([*(point[0] for point in points), *knees], _LEFT, _WIDTH - _RIGHT)
    y = _Axis.over([*(point[1] for point in points), *peaks.values()], _HEIGHT - _BOTTOM, _TOP)
    dots = (
        Dot(x(point[0]), y(point[1]), gemm.stage, not gemm.pattern.is_dense,
            f"{gemm.name}, {gemm.pattern}: {point[1]:,.1f} GFLOP/s at {point[0]:,.1f} FLOP/byte")
        for (_, gemm), point in zip(gemms, points, strict=True)
    )
    roofs = [
        Roof(x(max(x.low, roof / slope)), y(roof), x(x.high), y(roof), label)
        for label, roof in peaks.items()
    ]
    # The memory roof, from the left or lower edge, whichever it meets first, to the last knee.
    start, stop = max(x.low, y.low / slope), max(knees)
    roofs.append(Roof(x(start), y(start * slope), x(stop), y(stop * slope),
                      f"memory roof, {slope:,.1f} GB/s"))
    return Roofline(_WIDTH, _HEIGHT, _LEFT, _HEIGHT - _BOTTOM, tuple(dots), tuple(roofs),
                    tuple(x.ticks()), tuple(y.ticks()))
