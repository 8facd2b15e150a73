"""One process of a session from the parent's side: start, one cell at a time, end.

The parent takes three things from it, all bounded: bytes of output, one reply a cell of known size
and form (length and JSON, never a pickle), and the time and memory that it uses.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import IO, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from models.math.sandbox.isolation import Launch
from models.math.sandbox.limits import Limits, SandboxUnavailable, Status
from models.math.sandbox.processes import (
    freeze,
    kill_all,
    members,
    memory,
    scratch_files,
    thaw,
)

__all__ = ["Child", "Reply"]

_PERIOD = 0.05
"""Seconds between two looks at how much memory the processes use."""
_START_SECONDS = 20.0
_END_SECONDS = 2.0
"""For a process whose channel is closed to end, so that its exit code tells why."""
_READ = 1 << 16
_ESCAPED = 6
"""Most bytes of JSON that one byte of text takes."""
_WORKER = Path(__file__).with_name("worker.py")


class Reply(NamedTuple):
    """What a cell came to: its status, what it printed, and the text of its value or failure."""

    status: Status
    printed: bytes
    text: str


class _Message(BaseModel):
    """A reply as the worker sends it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    status: Literal["ok", "error", "memory", "output"]
    text: str


class _Broken(Exception):
    """The process cannot go on: a limit is exceeded, it has ended, or it broke the protocol."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status


@cache
def _starter(process: int) -> ThreadPoolExecutor:
    """A thread that starts sessions and lives as long as ``process``, this one.

    bubblewrap ends with the thread that started it, which must not be a short-lived one.
    """
    return ThreadPoolExecutor(1, "sandbox")


class Child:
    """A started process, frozen between cells.

    Raises :class:`SandboxUnavailable` when it does not come up, with what it said.
    """

    def __init__(self, launch: Launch, limits: Limits) -> None:
        self._limits, self._launch = limits, launch
        self._init: int | None = None
        name = secrets.token_hex(8)
        config = {**asdict(limits), "id": name, "isolated": launch.depth > 0,
                  "packages": launch.packages, "scratch": launch.scratch}
        try:
            self._process = _starter(os.getpid()).submit(
                subprocess.Popen,
                [*launch.command, "-s", "-P", "-S", "-c", _WORKER.read_text(), json.dumps(config)],
                bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=launch.environment, cwd=launch.folder.name if launch.folder else None,
                pass_fds=launch.keep, start_new_session=True).result()
        except OSError as failure:
            if launch.folder is not None:
                launch.folder.cleanup()
            raise SandboxUnavailable(f"{launch.command[0]} does not start: {failure}") from None
        finally:
            for descriptor in launch.keep:
                os.close(descriptor)
        for stream in self._streams():
            os.set_blocking(stream.fileno(), False)
        self._printed, self._replies, self._full = bytearray(), bytearray(), False
        try:
            self._exchange(name, b"", _START_SECONDS)
            self._watch_from_now_on()
        except _Broken as failure:
            self.kill()
            said = self._printed.decode("utf-8", "replace").strip() or str(failure)
            raise SandboxUnavailable(f"the sandbox does not start: {said}") from None
        except BaseException:
            self.kill()
            raise

    def _watch_from_now_on(self) -> None:
        if self._launch.depth:
            found = members(self._process.pid, self._launch.depth)
            if len(found) < 2:
                raise _Broken("killed", "its processes are in no namespace of their own")
            self._init = os.pidfd_open(found[0])
        freeze(self._process.pid, self._launch.depth)

    def _streams(self) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        assert process.stderr is not None
        return process.stdin, process.stdout, process.stderr

    @property
    def usable(self) -> bool:
        """Whether it can take a cell: it is alive, and has nothing to say unasked."""
        _, replies, _ = self._streams()
        if replies.closed or self._process.poll() is not None:
            return False
        with contextlib.suppress(OSError):
            return replies.read(1) is None and not self._replies
        return False

    def run(self, code: str, number: int, seconds: float) -> Reply:
        """Run cell ``number`` for at most ``seconds`` of wall time; never raises for what it does.

        The process is no longer :attr:`usable` after a reply for which it was killed.
        """
        name = secrets.token_hex(8)
        request = json.dumps({"id": name, "number": number, "code": code}).encode()
        self._printed.clear()
        self._full = False
        depth = self._launch.depth
        status: Status
        try:
            thaw(self._process.pid, depth)
            message = self._exchange(name, len(request).to_bytes(4) + request, seconds)
            if freeze(self._process.pid, depth):
                self._drain()
            else:
                self.kill()
            text, status = message.text, message.status
        except _Broken as failure:
            self.kill()
            status, text = failure.status, str(failure)
        except BaseException:
            self.kill()
            raise
        return Reply("output" if self._full else status, bytes(self._printed), text)

    def _exchange(self, name: str, request: bytes, seconds: float) -> _Message:
        """Send a request and wait for its reply, under all limits."""
        requests, replies, output = self._streams()
        looked = time.monotonic()
        deadline = looked + seconds
        with selectors.DefaultSelector() as selector:
            if request:
                selector.register(requests, selectors.EVENT_WRITE)
            selector.register(replies, selectors.EVENT_READ)
            selector.register(output, selectors.EVENT_READ)
            while True:
                now = time.monotonic()
                if now >= deadline:
                    raise _Broken("timeout", f"TimeoutError: no result within {seconds:g} s")
                if now >= looked + _PERIOD:
                    self._watch()
                    looked = now
                for key, _ in selector.select(min(_PERIOD, deadline - now)):
                    if key.fileobj is requests:
                        request = self._write(request)
                        if not request:
                            selector.unregister(requests)
                    elif key.fileobj is output:
                        if self._take_output() == b"":
                            selector.unregister(output)
                    elif (message := self._take_reply(name)) is not None:
                        return message

    def _write(self, request: bytes) -> bytes:
        requests, _, _ = self._streams()
        try:
            return request[requests.write(request) or 0:]
        except BrokenPipeError:
            raise self._ended() from None

    def _take_output(self) -> bytes | None:
        """Read what was printed, keep what fits; nothing at its end, None if not yet there."""
        _, _, output = self._streams()
        data: bytes | None = output.read(_READ)
        room = self._limits.output_bytes - len(self._printed)
        if data:
            self._printed += data[:room]
            self._full |= len(data) > room
        return data

    def _take_reply(self, name: str) -> _Message | None:
        _, replies, _ = self._streams()
        data = replies.read(_READ)
        if data == b"":
            raise self._ended()
        self._replies += data or b""
        size = int.from_bytes(self._replies[:4])
        if len(self._replies) >= 4 and size > _ESCAPED * self._limits.output_bytes + 256:
            raise _Broken("killed", "Killed: the process sent a reply that is too long")
        if len(self._replies) < 4 + size or not self._replies:
            return None
        data = bytes(self._replies[4:4 + size])
        del self._replies[:4 + size]
        try:
            message = _Message.model_validate_json(data)
        except ValidationError:
            raise _Broken("killed", "Killed: the process sent a malformed reply") from None
        if message.id != name:
            raise _Broken("killed", "Killed: the process sent a reply that nothing asked for")
        return message

    def _watch(self) -> None:
        """Raise when the process has ended, or all processes together use too much."""
        if self._process.poll() is not None:
            raise self._ended()
        limits, pids = self._limits, members(self._process.pid, self._launch.depth)
        if memory(pids, limits.memory_bytes) > limits.memory_bytes:
            raise _Broken("memory", "MemoryError: the processes used more than "
                          f"{limits.memory_bytes >> 20} MiB together")
        if not self._launch.depth:
            if len(pids) > limits.processes:
                raise _Broken("killed", f"Killed: more than {limits.processes} processes")
        elif self._init is not None and pids and limits.scratch_files < scratch_files(
                pids[0], self._launch.scratch):  # not before the scratch folder is there
            raise _Broken("killed", f"Killed: more than {limits.scratch_files} files in scratch")

    def _ended(self) -> _Broken:
        """Why the process is of no more use: how it ended, or that it fell silent."""
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return _Broken("killed", "Killed: the process closed its channel")
        number = -code if code < 0 else code - 128  # bubblewrap adds 128 as shells do
        if number == signal.SIGXCPU:
            return _Broken("timeout", "TimeoutError: the process used more than "
                           f"{self._limits.cpu_seconds} s of processor time")
        with contextlib.suppress(ValueError):
            return _Broken("killed", f"Killed: the process ended by {signal.Signals(number).name}")
        return _Broken("killed", f"Killed: the process ended with exit code {code}")

    def _drain(self) -> None:
        """Take what was printed and not yet read, while nothing runs that could print more."""
        while self._take_output():
            pass

    def kill(self) -> None:
        """End all processes at once; they are gone when this returns."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        kill_all(self._process, self._init)
        self._drain()
        for stream in self._streams():
            stream.close()
        if self._init is not None:
            os.close(self._init)
            self._init = None
        if self._launch.folder is not None:
            self._launch.folder.cleanup()
