"""What the measuring scripts share: where tables are printed, and errors as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from rich.console import Console

from rtl.errors import ParameterError
from sim.toolchain import ToolError

__all__ = ["one_line_errors", "stdout"]

_P = ParamSpec("_P")

_PIPE_WIDTH = 160


def stdout() -> Console:
    """Standard output; in a pipe, which has no width of its own, wide enough for every table."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_WIDTH)


def one_line_errors(main: Callable[_P, int]) -> Callable[_P, int]:
    """Make bad input and missing tools a message on standard error and status 2."""

    @wraps(main)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except (ParameterError, ToolError) as error:
            print(error, file=sys.stderr)
            return 2

    return guarded
