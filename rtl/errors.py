"""The one error type for bad input: it names the parameter, the value, the rule, a legal value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["ParameterError", "closest"]


class ParameterError(ValueError):
    """A parameter that breaks a rule of the package.

    Parameters
    ----------
    parameter: name the user knows the parameter by, e.g. ``--pattern`` or ``rows``.
    value: the offending value.
    rule: what a legal value looks like, as a phrase ("must be ...").
    nearest: the nearest legal value, when there is one to suggest.

    ``str(error)`` is one line, fit for a terminal.
    """

    def __init__(self, parameter: str, value: object, rule: str, nearest: object = None) -> None:
        self.parameter, self.value, self.rule, self.nearest = parameter, value, rule, nearest
        hint = "" if nearest is None else f"; nearest legal value: {nearest}"
        super().__init__(f"{parameter}={value!r}: {rule}{hint}")

    def __reduce__(self) -> tuple[object, ...]:
        # An exception is rebuilt from its message otherwise, and cannot cross processes.
        return type(self), (self.parameter, self.value, self.rule, self.nearest)


def closest(name: str, legal: Iterable[str]) -> str | None:
    """The legal name most like ``name``, or ``None`` when nothing is similar."""
    found = difflib.get_close_matches(name, list(legal), n=1, cutoff=0.4)
    return found[0] if found else None
