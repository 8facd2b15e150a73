"""JSON files, one object a line or whole, with errors that say where."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from algorithms import ParameterError

__all__ = ["Record", "read_jsonl", "read_list", "read_object", "validated", "write_jsonl"]

_SHOWN = 60
_Model = TypeVar("_Model", bound=BaseModel)


class Record(NamedTuple):
    """One JSON object and where it stands, as ``file:line``."""

    where: str
    value: dict[str, Any]


def read_jsonl(path: Path | str) -> Iterator[Record]:
    """The objects of a JSONL file in order; empty lines are passed over.

    Raises :class:`ParameterError` for a file that cannot be read, and for a line that is not UTF-8
    or no JSON object, with file and line.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 -- a failure to open is told from one in the loop
    except OSError as failure:
        raise _unreadable(path, failure) from None
    with file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}:{number}"
                yield _object(_json(line, where), where)


def read_object(path: Path | str) -> Record:
    """The JSON object that a file consists of; errors as :func:`read_jsonl` has them."""
    return _object(_json(_bytes(path), str(path)), str(path))


def read_list(path: Path | str) -> Iterator[Record]:
    """The objects of the JSON list that a file consists of, ``where`` being file and item from 1.

    Errors as :func:`read_jsonl` has them.
    """
    items = _json(_bytes(path), str(path))
    if not isinstance(items, list):
        raise ParameterError(str(path), type(items).__name__, "must be a JSON list")
    return (_object(item, f"{path}, item {number}") for number, item in enumerate(items, 1))


def write_jsonl(path: Path | str, rows: Iterable[BaseModel]) -> None:
    """Write models, one a line."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(row.model_dump_json() + "\n" for row in rows)


def validated(model: type[_Model], value: object, where: str) -> _Model:
    """``value`` as a model; the first thing wrong with it becomes a :class:`ParameterError`."""
    try:
        return model.model_validate(value)
    except ValidationError as failure:
        first = failure.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        shown = None if first["type"] == "missing" else _cut(str(first["input"]))
        raise ParameterError(f"{where}: {field}" if field else where, shown,
                             first["msg"][:1].lower() + first["msg"][1:]) from None


def _unreadable(path: Path | str, failure: OSError) -> ParameterError:
    return ParameterError("file", str(path), f"cannot be read ({failure.strerror})")


def _bytes(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as failure:
        raise _unreadable(path, failure) from None


def _json(data: bytes, where: str) -> object:
    try:
        value: object = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as failure:
        raise ParameterError(where, _cut(str(data[:_SHOWN])),
                             f"is not UTF-8 (byte {failure.start + 1})") from None
    except json.JSONDecodeError as failure:
        line = f"line {failure.lineno}, " if failure.lineno > 1 else ""
        raise ParameterError(where, _cut(data.decode("utf-8").strip()),
                             f"is not JSON ({failure.msg}, {line}column {failure.colno})") from None
    except (RecursionError, ValueError):  # a number of thousands of digits is a ValueError
        raise ParameterError(where, _cut(data.decode("utf-8").strip()),
                             "is JSON beyond what Python reads") from None
    return value


def _object(value: object, where: str) -> Record:
    if not isinstance(value, dict):
        raise ParameterError(where, _cut(json.dumps(value)), "must be a JSON object")
    return Record(where, value)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
