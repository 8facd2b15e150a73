"""The process inside the sandbox: takes cells, runs them in one namespace, sends what came of it.

Runs by itself (``python -c``) with nothing but the standard library: the sandbox does not see this
file. Its three standard streams are, when it starts: requests, replies, and the output of cells.
A message is a length (four bytes, big-endian) and that many bytes of JSON. What cells do to this
process is theirs to suffer; the parent believes nothing that it says beyond one cell's text.
"""

from __future__ import annotations

import ast
import builtins
import json
import linecache
import os
import resource
import site
import sys
import traceback
import types
from collections.abc import Callable
from fcntl import F_DUPFD_CLOEXEC, fcntl
from typing import Any

__all__ = ["main"]


def _limit(config: dict[str, Any]) -> None:
    """Hard limits, which no cell can raise again; the system's own hold where they are lower."""
    def limit(kind: int, most: int, spare: int = 0) -> None:
        hard = resource.getrlimit(kind)[1]
        highest = most + spare if hard == resource.RLIM_INFINITY else min(most + spare, hard)
        resource.setrlimit(kind, (min(most, highest), highest))

    limit(resource.RLIMIT_AS, config["memory_bytes"])
    limit(resource.RLIMIT_CPU, config["cpu_seconds"], 1)  # a second between signal and kill
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, config["file_bytes"])
    limit(resource.RLIMIT_NOFILE, config["open_files"])
    if config["isolated"]:  # elsewhere all processes of the user would count
        init = 1
        limit(resource.RLIMIT_NPROC, config["processes"] + init)


def _streams() -> tuple[int, int]:
    """Move requests and replies out of the way of cells, which get an empty input."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    requests, replies = fcntl(0, F_DUPFD_CLOEXEC, 3), fcntl(1, F_DUPFD_CLOEXEC, 3)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(  # type: ignore[union-attr]
            encoding="utf-8", errors="backslashreplace", line_buffering=True)
    return requests, replies


def _receive(descriptor: int) -> dict[str, Any]:
    """The next request; the process ends where there is none."""
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4]):
        more = os.read(descriptor, 1 << 16)
        if not more:
            os._exit(0)
        data += more
    request: dict[str, Any] = json.loads(data[4:])
    return request


def _send(descriptor: int, message: dict[str, str]) -> None:
    data = json.dumps(message).encode()
    data = len(data).to_bytes(4) + data
    while data:
        data = data[os.write(descriptor, data):]


def _describe(error: BaseException) -> str:
    """The traceback as Python prints it, from the cell on."""
    frames = error.__traceback__
    while frames is not None and not frames.tb_frame.f_code.co_filename.startswith("<cell "):
        frames = frames.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, frames))
    except BaseException:  # a cell's exception may misbehave when printed
        return f"{type(error).__name__}: it cannot be printed"


def _run(code: str, name: str, namespace: dict[str, Any]) -> tuple[str, str]:
    """Status and text of one cell."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    try:
        tree = ast.parse(code, name)
        value = None
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            tree.body.pop()
        exec(compile(tree, name, "exec", dont_inherit=True), namespace)
        if isinstance(last, ast.Expr):
            shown = ast.Expression(last.value)
            value = eval(compile(shown, name, "eval", dont_inherit=True), namespace)
        if value is None:
            return "ok", ""
        namespace["_"] = value
        return "ok", repr(value)
    except MemoryError as error:
        return "memory", _describe(error)
    except BaseException as error:
        return "error", _describe(error)


def _flush(streams: list[Any]) -> None:
    for stream in (sys.stdout, sys.stderr, *streams):
        try:
            stream.flush()
        except BaseException:  # a cell may have put anything there, or closed it
            continue


def _serve(requests: int, replies: int, most: int, namespace: dict[str, Any]) -> None:
    streams = [sys.stdout, sys.stderr]
    # under names that a cell does not replace by accident
    process, current, leave = os.getpid(), os.getpid, os._exit
    while True:
        request = _receive(requests)
        status, text = _run(request["code"], f"<cell {request['number']}>", namespace)
        _flush(streams)
        if current() != process:  # a copy that the cell made with os.fork
            leave(0)
        data = text.encode("utf-8", "backslashreplace")
        if len(data) > most:
            status, data = "output", data[:most]
        shown = data.decode("utf-8", "ignore")
        _send(replies, {"id": request["id"], "status": status, "text": shown})


def main() -> None:
    """Serve requests until there are no more."""
    config = json.loads(sys.argv[1])
    requests, replies = _streams()
    sys.path += [*config["packages"], config["scratch"]]
    site.setquit()
    _limit(config)
    cells = types.ModuleType("__main__")
    cells.__dict__["__builtins__"] = builtins
    sys.modules["__main__"], sys.argv = cells, [""]
    leave: Callable[[int], None] = os._exit
    try:
        _send(replies, {"id": config["id"], "status": "ok", "text": ""})
        _serve(requests, replies, config["output_bytes"], cells.__dict__)
    finally:  # only by a failure that cells brought about: the parent tells what can be told
        leave(1)


if __name__ == "__main__":
    main()
