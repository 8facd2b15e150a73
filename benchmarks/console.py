"""Where tables are printed."""

from __future__ import annotations

from rich.console import Console

__all__ = ["stdout"]

_PIPE_WIDTH = 160


def stdout() -> Console:
    """Standard output; in a pipe, which has no width of its own, wide enough for every table."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_WIDTH)
