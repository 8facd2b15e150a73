"""A session's processes as the parent sees them in /proc: found, measured, stopped, killed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator

__all__ = ["freeze", "kill_all", "members", "memory", "scratch_files", "thaw"]

_ROUNDS = 20
"""Enough to catch up with processes that fork while they are being stopped."""
_PATIENCE = 5.0
"""Seconds for the kernel to end processes that it was told to kill."""


def _read(path: str) -> str:
    """Content of a file in /proc; nothing where the process has ended."""
    with contextlib.suppress(OSError), open(path) as file:
        return file.read()
    return ""


def _descendants(root: int) -> Iterator[int]:
    """``root`` and all that descend from it, parents first."""
    found = [root]
    for pid in found:
        yield pid
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                found += map(int, _read(f"/proc/{pid}/task/{task}/children").split())


def _status(pid: int) -> dict[str, list[str]]:
    """Fields of ``/proc/PID/status``; empty where the process has ended."""
    lines = (line.partition(":") for line in _read(f"/proc/{pid}/status").splitlines())
    return {name: value.split() for name, _, value in lines}


def members(root: int, depth: int) -> list[int]:
    """The processes that untrusted code runs in, parents first; those ended are left out.

    They are ``root`` and its descendants, as far as these live ``depth`` process namespaces below
    it. The first of a namespace is its init: all others there die with it.
    """
    every = [(pid, _status(pid)) for pid in _descendants(root)]
    alive = [(pid, status) for pid, status in every if status and status["State"][0] not in "ZX"]
    if not alive or alive[0][0] != root:
        return []
    below = len(alive[0][1]["NSpid"]) + depth
    return [pid for pid, status in alive if len(status["NSpid"]) >= below]


def memory(pids: list[int], enough: int) -> int:
    """Bytes that the processes hold together, in memory or swapped out.

    Pages that several share count once each, which takes long to find out, so they are only looked
    into when the sum could exceed ``enough``.
    """
    fields = [_status(pid) for pid in pids]
    total = sum(int(status[name][0]) for status in fields for name in ("VmRSS", "VmSwap")
                if name in status)
    if total * 1024 > enough:
        shares = (line.split() for pid in pids
                  for line in _read(f"/proc/{pid}/smaps_rollup").splitlines())
        total = sum(int(words[1]) for words in shares if words[0] in ("Pss:", "SwapPss:"))
    return total * 1024


def scratch_files(pid: int, scratch: str) -> int:
    """Files and folders in the scratch folder, a file system of its own, that ``pid`` sees."""
    try:
        usage = os.statvfs(f"/proc/{pid}/root{scratch}")
    except OSError:
        return 0
    return usage.f_files - usage.f_ffree


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def freeze(root: int, depth: int) -> bool:
    """Stop all members, so that nothing runs between cells; whether it came to rest."""
    stopped: list[int] = []
    for _ in range(_ROUNDS):
        now = members(root, depth)
        if now == stopped:
            return True
        _send(now, signal.SIGSTOP)
        stopped = now
    return False


def thaw(root: int, depth: int) -> None:
    """Let all members go on."""
    _send(members(root, depth), signal.SIGCONT)


def kill_all(process: subprocess.Popen[bytes], init: int | None) -> None:
    """End ``process`` and all members, and wait until none is left.

    ``init`` is a descriptor (pidfd) of the init of their process namespace: the kernel ends all the
    others before that one counts as ended. Without a namespace (None), a process whose parents have
    ended is no longer found.
    """
    if init is None and process.poll() is None:
        freeze(process.pid, 0)
        _send(members(process.pid, 0)[::-1], signal.SIGKILL)
    elif init is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(init, signal.SIGKILL)
        select.select([init], [], [], _PATIENCE)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)  # bubblewrap collects what it started, then ends by itself
    process.kill()
    process.wait()
