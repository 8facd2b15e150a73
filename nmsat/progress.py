"""Progress bars for a terminal, silence for a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.progress import Advance, Reporter, Silent

__all__ = ["terminal_reporter"]


class _Bars:
    """Shows tasks as bars that vanish when they end; they may nest."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None

    @contextmanager
    def task(self, label: str, total: int | None) -> Iterator[Advance]:
        if self._bars is not None:
            yield self._advance(self._bars, label, total)
            return
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as self._bars:
            try:
                yield self._advance(self._bars, label, total)
            finally:
                self._bars = None

    @staticmethod
    def _advance(bars: Progress, label: str, total: int | None) -> Advance:
        task = bars.add_task(label, total=total, note="")

        def advance(done: int, note: str = "") -> None:
            bars.update(task, completed=done, note=note)

        return advance


def terminal_reporter() -> Reporter:
    """Bars on standard error if that is a terminal, else nothing."""
    console = Console(stderr=True)
    return _Bars(console) if console.is_terminal else Silent()
