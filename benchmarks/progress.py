"""How long work tells its progress, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["Advance", "Reporter", "Silent"]

Advance = Callable[..., None]
"""``advance(done, note="")``: steps done so far, and a few words on what is going on."""


class Reporter(Protocol):
    """Something that can show tasks: a terminal does, a pipe does not."""

    def task(self, label: str, total: int | None) -> AbstractContextManager[Advance]:
        """A task of ``total`` steps (``None``: unknown), shown until the context ends."""


class Silent:
    """The reporter that says nothing."""

    @contextmanager
    def task(self, label: str, total: int | None) -> Iterator[Advance]:
        """Accept and ignore all progress."""

        def advance(done: int, note: str = "") -> None:
            """Nobody listens."""

        yield advance
