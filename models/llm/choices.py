"""The check of options that are one of a few words."""

from __future__ import annotations

from collections.abc import Collection

from algorithms import ParameterError, closest

__all__ = ["one_of"]


def one_of(parameter: str, value: object, legal: Collection[str]) -> None:
    """Raise :class:`ParameterError`, with the likest word, unless ``value`` is one of ``legal``."""
    if value not in legal:
        raise ParameterError(parameter, value, f"must be one of {', '.join(legal)}",
                             closest(str(value), legal))
