"""Which layers get which pattern: selection by name, class or size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from rtl.errors import ParameterError, closest
from rtl.pattern import NmPattern

__all__ = ["Rules", "Selector", "Size", "as_pattern", "select"]


@dataclass(frozen=True)
class Size:
    """Layers whose weight has ``at_least`` elements, and fewer than ``below``."""

    at_least: int = 0
    below: int | None = None

    def __post_init__(self) -> None:
        if self.below is not None and self.below <= self.at_least:
            rule = f"must be above at_least={self.at_least}"
            raise ParameterError("below", self.below, rule, self.at_least + 1)

    def __contains__(self, elements: int) -> bool:
        return self.at_least <= elements and (self.below is None or elements < self.below)


Selector = str | type[nn.Module] | Size
"""A glob on the dotted name, a class, or a size."""

Rules = Mapping[Any, str | NmPattern]
"""Selector to pattern, ``"N:M"`` or ``"dense"``; of the rules that match, the last wins.

Keys are of type :data:`Selector`; a mapping's key type is invariant, so ``Any`` spares a cast."""


def as_pattern(pattern: str | NmPattern, parameter: str) -> NmPattern:
    """A pattern from its text; raises :class:`ParameterError` naming ``parameter``."""
    if isinstance(pattern, NmPattern):
        return pattern
    return NmPattern.parse(str(pattern), parameter)


def select(
    layers: Mapping[str, nn.Linear | nn.Conv2d], rules: Rules
) -> Iterator[tuple[str, NmPattern]]:
    """Name and pattern for each rule in order and each layer that it selects.

    Raises :class:`ParameterError` for a rule that selects nothing, and for an illegal pattern.
    """
    for selector, value in rules.items():
        label = selector.__name__ if isinstance(selector, type) else str(selector)
        pattern = as_pattern(value, f"rules[{label!r}]")
        matches = [name for name, module in layers.items() if _matches(selector, name, module)]
        if not matches:
            rule = "must select a layer, by glob on its dotted name, by class or by size"
            raise ParameterError("rules", label, rule, closest(label, layers) or next(iter(layers)))
        yield from ((name, pattern) for name in matches)


def _matches(selector: Selector, name: str, module: nn.Linear | nn.Conv2d) -> bool:
    if isinstance(selector, str):
        return fnmatchcase(name, selector)
    if isinstance(selector, Size):
        return module.weight.numel() in selector
    return isinstance(module, selector)
