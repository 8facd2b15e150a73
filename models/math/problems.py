"""Problems with known answers: readers for the files of GSM8K, MATH and SVAMP."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from algorithms import ParameterError, closest
from models.jsonl import Record, read_jsonl, read_list, read_object, validated
from models.math.extraction import boxed

__all__ = ["READERS", "Problem", "read_gsm8k", "read_math", "read_problems", "read_svamp"]

_ANNOTATION = re.compile(r"<<[^<>]*>>")
_GSM8K_ANSWER = re.compile(r"^####[ \t]*(\S.*)\Z", re.MULTILINE)
_LEVEL = re.compile(r"(?:Level )?(\d+|\?)")


class Problem(BaseModel):
    """A question and its answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="Its name, unique in its file.")
    question: str = Field(min_length=1, description="The question.")
    answer: str = Field(min_length=1, description="The right answer.")
    solution: str = Field("", description="The reference solution, where there is one.")
    source: str = Field(description="Where it is from: gsm8k, math, svamp, or a generator.")
    subject: str = Field("", description="Its field, where the file says.")
    level: int | None = Field(None, description="Its difficulty, where the file says: 1 to 5.")


class _Gsm8k(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    question: str
    answer: str


class _Math(BaseModel):
    model_config = ConfigDict(extra="ignore")

    problem: str
    solution: str
    answer: str | None = None
    type: str = ""
    subject: str = ""
    level: int | str = "?"


class _Svamp(BaseModel):
    model_config = ConfigDict(extra="ignore")

    ID: str
    Body: str
    Question: str
    Equation: str
    Answer: float
    Type: str


def read_problems(path: Path | str, source: str) -> Iterator[Problem]:
    """The problems of a file or folder of one of :data:`READERS`, in order."""
    if source not in READERS:
        raise ParameterError("source", source, f"must be one of {', '.join(READERS)}",
                             closest(source, READERS))
    return READERS[source](path)


def read_gsm8k(path: Path | str) -> Iterator[Problem]:
    """The problems of a JSONL file of GSM8K: ``question``, and ``answer`` that ends on ``#### n``.

    Solutions lose their calculator annotations ``<<expression=result>>``; answers keep their
    thousands separators. An id is the number of the line.

    Raises :class:`ParameterError` with file and line for what is no such problem.
    """
    for record in read_jsonl(path):
        raw = validated(_Gsm8k, record.value, record.where)
        found = _GSM8K_ANSWER.search(raw.answer)
        if found is None:
            raise ParameterError(f"{record.where}: answer", raw.answer[-40:],
                                 "must end on a line #### and the answer")
        solution = _ANNOTATION.sub("", raw.answer[:found.start()]).rstrip()
        yield _problem(record.where, id=record.where.rpartition(":")[2], question=raw.question,
                       answer=found.group(1).strip(), solution=solution, source="gsm8k")


def read_math(path: Path | str) -> Iterator[Problem]:
    """The problems of MATH: a folder of JSON files, read by name, or a JSONL file.

    Each has ``problem`` and ``solution``, perhaps ``type`` or ``subject``, ``level`` (``Level 3``,
    3, or ``Level ?``) and ``answer``; else the answer is the last ``\\boxed{}`` of the solution. An
    id is the path inside the folder, or the number of the line.

    Raises :class:`ParameterError` with the file, and the line of a JSONL file, for what is no such
    problem, and for a folder without any.
    """
    if not Path(path).is_dir():
        for record in read_jsonl(path):
            yield _math(record, record.where.rpartition(":")[2])
        return
    files = sorted(Path(path).rglob("*.json"))
    if not files:
        raise ParameterError("folder", str(path), "has no JSON files")
    for file in files:
        yield _math(read_object(file), file.relative_to(path).as_posix())


def read_svamp(path: Path | str) -> Iterator[Problem]:
    """The problems of SVAMP's JSON file, a list; the solution is the equation.

    Raises :class:`ParameterError` with file and item for what is no such problem.
    """
    for record in read_list(path):
        raw = validated(_Svamp, record.value, record.where)
        body = raw.Body.strip()
        stop = "" if body.endswith((".", ",", "!", "?")) else "."
        number = raw.Answer
        yield _problem(record.where, id=raw.ID, question=f"{body}{stop} {raw.Question.strip()}",
                       answer=str(int(number)) if number.is_integer() else str(number),
                       solution=raw.Equation, source="svamp", subject=raw.Type)


READERS: dict[str, Callable[[Path | str], Iterator[Problem]]] = {
    "gsm8k": read_gsm8k, "math": read_math, "svamp": read_svamp,
}
"""By the name of the data set."""


def _math(record: Record, name: str) -> Problem:
    raw = validated(_Math, record.value, record.where)
    answer = boxed(raw.solution) if raw.answer is None else raw.answer
    if answer is None:
        raise ParameterError(f"{record.where}: solution", raw.solution[-40:],
                             r"must have a \boxed{} answer where there is no answer")
    level = _LEVEL.fullmatch(str(raw.level))
    if level is None:
        raise ParameterError(f"{record.where}: level", raw.level, "must be as in Level 3",
                             "Level ?")
    return _problem(record.where, id=name, question=raw.problem, answer=answer,
                    solution=raw.solution, source="math", subject=raw.subject or raw.type,
                    level=None if level.group(1) == "?" else int(level.group(1)))


def _problem(where: str, **fields: object) -> Problem:
    return validated(Problem, fields, where)
