"""The runs of a study and the file that keeps them, a JSON line a run."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from rtl.errors import ParameterError

__all__ = ["RunFile"]

_Run = TypeVar("_Run", bound=BaseModel)
_Key = TypeVar("_Key", bound=Hashable)


class RunFile(Generic[_Run, _Key]):
    """The runs in a file, which grows by a line as each ends, so that a study can be interrupted.

    The file need not exist. Of runs with one key the last counts. A last line that was cut off is
    dropped at the next run.

    kind: model of a run. key: by what it is found.

    Raises :class:`ParameterError` for any other line that is no run, with file and line; and for a
    path that no file can have, before anything has run: in no folder, or a folder itself.
    """

    def __init__(self, path: Path, kind: type[_Run], key: Callable[[_Run], _Key]) -> None:
        if path.is_dir() or not path.parent.is_dir():
            raise ParameterError("--record", str(path), "must be a file in a folder that is there")
        self.path = path
        self._key = key
        self._runs: dict[_Key, _Run] = {}
        content = self._content()
        self._whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:self._whole].splitlines(), 1):
            try:
                run = kind.model_validate_json(line)
            except ValidationError as failure:
                raise ParameterError("--record", f"{path}:{number}",
                                     f"is no run ({failure.errors()[0]['msg']})") from None
            self._runs[key(run)] = run

    def _content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as failure:
            raise ParameterError("--record", str(self.path), f"{failure.strerror}") from None

    def __contains__(self, key: _Key) -> bool:
        return key in self._runs

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, run: _Run) -> None:
        """Keep a run, in memory and in the file."""
        try:
            with self.path.open("r+b" if self.path.exists() else "w+b") as stream:
                stream.truncate(self._whole)
                stream.seek(self._whole)
                self._whole += stream.write(run.model_dump_json().encode() + b"\n")
        except OSError as failure:
            raise ParameterError("--record", str(self.path), f"{failure.strerror}") from None
        self._runs[self._key(run)] = run
