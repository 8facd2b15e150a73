"""What a cell of untrusted code may use, and what came of running one."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from algorithms import ParameterError

__all__ = ["Limits", "Outcome", "SandboxUnavailable", "Status"]

Status = Literal["ok", "error", "timeout", "memory", "output", "killed"]

_MIB = 1 << 20
_MOST_SECONDS = 10 * 365 * 86_400
"""The kernel counts nanoseconds in 64 bits: beyond 584 years its sums wrap round, to no time."""
_MOST_COUNT = 1 << 62
"""Beyond all memory, and within the kernel's numbers."""


_Number = TypeVar("_Number", int, float)


def _limit(default: _Number, least: float, most: int, what: str) -> _Number:
    result: _Number = field(default=default, metadata={"least": least, "most": most, "what": what})
    return result


def _seconds(default: _Number, least: float, what: str) -> _Number:
    return _limit(default, least, _MOST_SECONDS, what)


def _count(default: int, least: int, what: str) -> int:
    return _limit(default, least, _MOST_COUNT, what)


@dataclass(frozen=True)
class Limits:
    """Limits of one sandboxed session; ``docs/sandbox.md`` has them as a table.

    Raises :class:`ParameterError` for a value that is no number, too small for Python itself to
    start, or beyond what the kernel takes. Every field's metadata holds its ``least`` and ``most``
    value and ``what`` it limits.
    """

    cell_seconds: float = _seconds(6.0, 0.01, "wall time of one cell")
    cpu_seconds: int = _seconds(60, 1, "processor time of each process of a session")
    replay_seconds: float = _seconds(30.0, 0.0, "wall time of running earlier cells again")
    memory_bytes: int = _count(
        1024 * _MIB, 64 * _MIB, "address space of each process, and memory of all together")
    processes: int = _count(32, 1, "processes and threads at once")
    output_bytes: int = _count(64 * 1024, 1, "what one cell may print or return, in UTF-8")
    file_bytes: int = _count(16 * _MIB, 0, "size of one file")
    scratch_bytes: int = _count(64 * _MIB, 4096, "size of all files of the scratch folder")
    scratch_files: int = _count(4096, 16, "files and folders in the scratch folder")
    open_files: int = _count(64, 16, "file descriptors of each process")

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, least = getattr(self, entry.name), entry.metadata["least"]
            whole = isinstance(entry.default, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                rule = f"must be {'a whole number' if whole else 'a number'}"
                raise ParameterError(entry.name, value, rule)
            if not value >= least:  # not a number neither
                raise ParameterError(entry.name, value, f"must be at least {least}", least)
            if value > entry.metadata["most"]:
                most = entry.metadata["most"]
                raise ParameterError(entry.name, value, f"must be at most {most}", most)


class Outcome(BaseModel):
    """What came of running one cell.

    ``output`` is at most ``Limits.output_bytes`` of UTF-8 and one line more, without a newline at
    its end: what the cell printed to either stream, then the ``repr`` of its last expression
    unless that is None, or the traceback. The lines that say what broke a limit look like the end
    of a traceback.

    ``status``: ``ok``; ``error``, the cell raised; ``timeout``, it used up its wall or processor
    time; ``memory``, it ran out of memory; ``output``, it printed too much, the rest is cut away;
    ``killed``, the session's process ended or broke the protocol. Files and variables outlive every
    status: see :meth:`Sandbox.run`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status = Field(description="ok, error, timeout, memory, output or killed.")
    output: str = Field(description="What a notebook shows below the cell.")
    seconds: float = Field(description="Wall time of the cell, without start and replay.")
    replayed: int = Field(0, description="Earlier cells that ran again first, in a new process.")
    lost: int = Field(0, description="Earlier cells whose state is gone, as that took too long.")


class SandboxUnavailable(RuntimeError):
    """This machine cannot isolate code; the message says why, and what to install."""
