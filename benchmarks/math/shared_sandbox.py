"""One sandbox for the code of many problems: starting one for each costs more than the code."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from types import TracebackType

from models.math.sandbox import Limits, Outcome, Sandbox, SandboxUnavailable
from models.math.solver import CodeRunner
from sim.toolchain import ToolError

__all__ = ["SharedSandbox", "require_sandbox"]

_FORGET = """\
for _name in list(globals()):
    if not _name.startswith("__"):
        del globals()[_name]
"""
_EARLIER = """\
try:
    exec({!r}, globals())
except BaseException:
    pass
"""
_ENDED = ("timeout", "memory", "killed")


class SharedSandbox:
    """Runs the cells of many problems in one session, whose variables it deletes in between.

    A problem's earlier cells run again before its next one, and what came of a sequence of cells is
    remembered, so that equal code runs once. For code that does not depend on time or chance and
    tampers with nothing but its own variables, as our models' vocabularies hold nothing else; it is
    as isolated from this machine as in a sandbox of its own.

    :meth:`session` is what :class:`models.math.solver.MathCoder` takes as its ``sandbox``.
    """

    def __init__(self, limits: Limits | None = None,
                 factory: Callable[[Limits | None], CodeRunner] = Sandbox) -> None:
        self._limits, self._factory = limits, factory
        self._known: dict[tuple[str, ...], Outcome] = {}
        self._runner: CodeRunner | None = None
        self._lock = Lock()
        self.executed = 0

    def __enter__(self) -> SharedSandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 frames: TracebackType | None) -> None:
        self.close()

    def session(self) -> CodeRunner:
        """A problem's view of the sandbox; closing it costs nothing."""
        return _View(self)

    def run(self, cells: tuple[str, ...]) -> Outcome:
        """What comes of the last of ``cells`` after those before it, in a fresh namespace."""
        with self._lock:
            if cells not in self._known:
                self._known[cells] = self._execute(cells)
            return self._known[cells]

    def close(self) -> None:
        """End the session; it starts again by itself."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()

    def _execute(self, cells: tuple[str, ...]) -> Outcome:
        if self._runner is None:
            self._runner = self._factory(self._limits)
        self.executed += 1
        # Together, as each turn of the two processes takes longer than what they run.
        before = "".join(_EARLIER.format(cell) for cell in cells[:-1])
        for cell in (_FORGET + before, cells[-1]):
            outcome = self._runner.run(cell)
            if outcome.status in _ENDED:
                # Its next cell would first run all of the others' again.
                self.close()
                return outcome
        return outcome


class _View:
    def __init__(self, shared: SharedSandbox) -> None:
        self._shared = shared
        self._cells: tuple[str, ...] = ()

    def run(self, code: str) -> Outcome:
        self._cells += (code,)
        return self._shared.run(self._cells)

    def close(self) -> None:
        """Forget the cells."""
        self._cells = ()


def require_sandbox() -> None:
    """Raise :class:`sim.toolchain.ToolError`, which says what to install, if code cannot be
    isolated here."""
    try:
        with Sandbox():
            pass
    except SandboxUnavailable as reason:
        raise ToolError(str(reason)) from None
