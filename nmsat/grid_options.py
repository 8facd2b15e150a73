"""The lists that ``nmsat explore`` takes, as a grid."""

from __future__ import annotations

from math import isfinite

from compiler.explore.grid import Grid
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

__all__ = ["parse_grid"]

_SHARE = "share"
"""For a bandwidth: the share of the paper's card."""


def parse_grid(rows: str, cols: str, pattern: str, bandwidth: str, stages: str) -> Grid:
    """The grid of what the options of these names say, values with commas between them.

    Raises :class:`ParameterError` naming the option for what is no list of such values. Values that
    only some combinations allow are for the grid to judge.
    """
    return Grid(
        rows=_integers("--rows", rows),
        cols=_integers("--cols", cols),
        patterns=tuple(NmPattern.parse(item, "--pattern").require_hardware("--pattern")
                       for item in _items("--pattern", pattern)),
        bandwidths=tuple(_gbps(item) for item in _items("--bandwidth", bandwidth)),
        adder_stages=_integers("--stages", stages),
    )


def _items(parameter: str, text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise ParameterError(parameter, text, "must be values with single commas between them",
                             ",".join(filter(None, items)) or None)
    return items


def _integers(parameter: str, text: str) -> tuple[int, ...]:
    return tuple(_integer(parameter, item) for item in _items(parameter, text))


def _integer(parameter: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ParameterError(parameter, text, "must be integers with commas between them",
                             8) from None
    if value < 1:
        raise ParameterError(parameter, value, "must be at least 1", 1)
    return value


def _gbps(text: str) -> float | None:
    """GB/s, or None for the share of the paper's card."""
    if text == _SHARE:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not isfinite(value) or value <= 0:
        raise ParameterError("--bandwidth", text, f"must be numbers above 0, or {_SHARE}", _SHARE)
    return value
