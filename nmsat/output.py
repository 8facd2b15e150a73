"""Output files that appear whole or not at all.

Targets are checked before any work starts, written beside their final place, and moved there
together when everything has succeeded.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rtl.errors import ParameterError

__all__ = ["Outputs"]


class Outputs:
    """The files that one command writes, as a context.

    Leaving it normally moves every file written into place; leaving it through an exception
    removes them, and any folder made for them.
    """

    def __init__(self) -> None:
        self._places: dict[Path, Path] = {}
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def file(self, parameter: str, target: Path) -> Path:
        """Where to write what will be ``target``.

        Raises :class:`ParameterError` naming ``parameter`` if it cannot be written there, or if
        two outputs are one file.
        """
        final = target.absolute()
        if final.is_dir():
            raise ParameterError(parameter, str(target), "is a folder; must be a file name")
        if not final.parent.is_dir():
            rule = f"must be in a folder that exists; {str(final.parent)!r} does not"
            raise ParameterError(parameter, str(target), rule)
        if not os.access(final.parent, os.W_OK):
            rule = f"must be in a folder that can be written; {str(final.parent)!r} cannot"
            raise ParameterError(parameter, str(target), rule)
        if final in self._places.values():
            raise ParameterError(parameter, str(target), "is another output of this command too")
        # The suffix stays last: some writers look at it.
        scratch = final.with_name(f".{final.stem}.{os.getpid()}{final.suffix}")
        self._places[scratch] = final
        return scratch

    def folder(self, parameter: str, target: Path) -> Path:
        """``target``, created if need be; raises :class:`ParameterError` if that is impossible."""
        final = target.absolute()
        missing = [path for path in (final, *final.parents) if not path.exists()]
        try:
            final.mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            rule = f"cannot be made a folder ({failure.strerror})"
            raise ParameterError(parameter, str(target), rule) from None
        self._made += missing
        return final

    @staticmethod
    def array(scratch: Path, values: npt.NDArray[Any]) -> None:
        """Write an array as ``.npy``, whatever the suffix."""
        with scratch.open("wb") as handle:
            np.save(handle, values, allow_pickle=False)

    @staticmethod
    def text(scratch: Path, content: str) -> None:
        """Write text and a final newline."""
        scratch.write_text(content + "\n", encoding="utf-8")

    @staticmethod
    def bytes(scratch: Path, content: str | bytes) -> None:
        """Write content as it is."""
        raw = content.encode() if isinstance(content, str) else content
        scratch.write_bytes(raw)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for scratch, final in self._places.items():
            if kind is None and scratch.exists():
                scratch.replace(final)
            else:
                scratch.unlink(missing_ok=True)
        if kind is not None:
            for path in self._made:
                if not any(path.iterdir()):
                    path.rmdir()
