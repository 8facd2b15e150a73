"""A session: cells that share variables, in a process that untrusted code may ruin at will."""

from __future__ import annotations

import subprocess
import time
import weakref
from types import TracebackType

from models.math.sandbox.child import Child, Reply
from models.math.sandbox.isolation import Isolation, bubblewrap, prepare
from models.math.sandbox.limits import Limits, Outcome, SandboxUnavailable

__all__ = ["Sandbox", "isolation_available"]


class Sandbox:
    """Runs Python cells one after the other, as a notebook does, isolated from this machine.

    ``docs/sandbox.md`` says what is isolated, how, and what is not. A session starts in about
    0.1 s and answers a trivial cell in about 3 ms; SymPy is only loaded by code that imports it.
    Not for several threads at once; as many sessions as wanted may run beside each other.

    Parameters
    ----------
    limits: what a session and its cells may use.
    isolation: ``auto``, the strongest there is, and ``bwrap`` both mean bubblewrap on Linux.
        ``none`` isolates nothing: limits of a process hold, files and network are open. It is for
        code that you wrote yourself.

    Raises
    ------
    ParameterError: an unknown ``isolation``.
    SandboxUnavailable: isolation was asked for and is not to be had here.
    """

    def __init__(self, limits: Limits | None = None, isolation: Isolation = "auto") -> None:
        self._limits = Limits() if limits is None else limits
        self._isolation = isolation
        self._finished: list[str] = []
        self._closed = False
        self._start()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 frames: TracebackType | None) -> None:
        self.close()

    def run(self, code: str) -> Outcome:
        """Run one cell and tell what came of it; nothing that the code does raises here.

        Cells see the variables of earlier ones. Where a cell cost the session its process, the next
        call starts a new one and first runs all cells again that had come to an end by themselves,
        also with an exception, for at most ``Limits.replay_seconds``; their output is dropped.
        Where one does not end again, those before it run once more, as long at most; if that fails
        too, all are lost. What is drawn or measured, such as unseeded random numbers, may differ.

        Raises
        ------
        ValueError: the session is closed.
        SandboxUnavailable: no new process can be started.
        """
        if self._closed:
            raise ValueError("the sandbox is closed")
        replayed = lost = 0
        if not self._child.usable:
            replayed, lost = self._restart()
        started = time.monotonic()
        reply = self._child.run(code, len(self._finished) + 1, self._limits.cell_seconds)
        seconds = time.monotonic() - started
        if self._child.usable:
            self._finished.append(code)
        return self._outcome(reply, seconds, replayed, lost)

    def close(self) -> None:
        """End the session and all its processes, and drop its files; may be called again."""
        self._closed = True
        self._end()

    def _start(self) -> None:
        self._child = Child(prepare(self._isolation, self._limits), self._limits)
        # also where a session is forgotten, or the program ends
        self._end = weakref.finalize(self, self._child.kill)

    def _restart(self) -> tuple[int, int]:
        """A new process with the state of the old one; how many cells ran again, and were lost."""
        before = len(self._finished)
        for _ in range(2):
            kept = self._replay()
            if kept == len(self._finished):
                return kept, before - kept
            # A cell that no longer ends would not end the next time either.
            del self._finished[kept:]
        self._finished.clear()
        self._replay()
        return 0, before

    def _replay(self) -> int:
        """Run the finished cells in a new process; how many of them ended again in time."""
        self._end()
        self._start()
        deadline = time.monotonic() + self._limits.replay_seconds
        for number, code in enumerate(self._finished, 1):
            self._child.run(code, number, deadline - time.monotonic())
            if not self._child.usable:
                return number - 1
        return len(self._finished)

    def _outcome(self, reply: Reply, seconds: float, replayed: int, lost: int) -> Outcome:
        printed = reply.printed.decode("utf-8", "replace")
        if printed and reply.text and not printed.endswith("\n"):
            printed += "\n"
        most = self._limits.output_bytes
        data = (printed + reply.text).encode()
        status = reply.status
        if status == "output" or len(data) > most:
            status = "output"
            text = data[:most].decode("utf-8", "ignore")
            text = f"{text.rstrip()}\n[output cut after {most} bytes]"
        else:
            text = data.decode()
        return Outcome(status=status, output=text.rstrip("\n"), seconds=seconds,
                       replayed=replayed, lost=lost)


def isolation_available() -> str | None:
    """What isolates code on this machine, e.g. ``bubblewrap 0.8.0``; None if nothing does.

    Starts a session to find out, so it takes about 0.1 s.
    """
    try:
        with Sandbox():
            done = subprocess.run([bubblewrap(), "--version"], capture_output=True, text=True)
    except SandboxUnavailable:
        return None
    return done.stdout.strip()
