"""Grades labelled answers: ``python -m benchmarks.math.grade_answers FILE``.

FILE is a JSONL file with, on each line, ``answer``, ``reference`` and ``equal``, whether the two
are the same, or in place of the answer the text of a ``solution`` in which to look for it; or a
file of traces with a ``ground_truth``, whose final answer is read as ``csv_table`` reads it.
Traces are labelled by ``equal`` too, or all of them by a file name that ends in ``-correct.jsonl``
or ``-wrong.jsonl``, as MathCoder's do, or by ``--label``. Prints by which rule answers were found
equal, and all that the grader and the labels disagree on; the status is then 1.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, model_validator
from rich.markup import escape
from rich.table import Table

from algorithms import ParameterError
from benchmarks.console import one_line_errors, stdout
from models.jsonl import Record, read_jsonl, validated
from models.math.extraction import extract_answer
from models.math.grader import RULES, TOLERANCE, Grade, grade
from models.math.solution import read_trace
from models.math.verification import attempts

__all__ = ["Case", "main", "read_cases"]

_SHOWN = 50
_LABELS = {"correct": True, "wrong": False}


class Case(NamedTuple):
    """An answer, ``None`` if there was none to be found, its reference and the label."""

    where: str
    answer: str | None
    reference: str
    equal: bool


class _Pair(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    answer: str | None = None
    solution: str | None = None
    reference: str
    equal: bool

    @model_validator(mode="after")
    def _one_of_two(self) -> _Pair:
        if (self.answer is None) == (self.solution is None):
            raise ValueError("must have an answer or a solution, and not both")
        return self

    @property
    def found(self) -> str | None:
        """The answer as it is, or out of the solution."""
        return self.answer if self.solution is None else extract_answer(self.solution)


def read_cases(path: Path | str, label: bool | None = None) -> Iterator[Case]:
    """The cases of a file; ``label`` is that of traces without one of their own.

    Raises :class:`ParameterError`, with file and line, for a line that is none or has no label.
    """
    if label is None:
        label = _LABELS.get(Path(path).stem.rpartition("-")[2])
    for record in read_jsonl(path):
        if "messages" in record.value:
            yield _case_of_trace(record, label)
        else:
            pair = validated(_Pair, record.value, record.where)
            yield Case(record.where, pair.found, pair.reference, pair.equal)


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; status 1 if the grader disagrees with a label, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.math.grade_answers",
                                     description=__doc__)
    parser.add_argument("file", help="JSONL file of labelled answers, or of traces")
    parser.add_argument("--label", choices=tuple(_LABELS), help="the label of traces without one")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, metavar="T",
                        help="relative tolerance where a decimal is involved (%(default)s)")
    options = parser.parse_args(arguments)
    if not 0 <= options.tolerance < 1:
        raise ParameterError("--tolerance", options.tolerance, "must be 0 or more and below 1",
                             TOLERANCE)
    cases = list(read_cases(options.file, _LABELS.get(options.label)))
    if not cases:
        raise ParameterError("file", options.file, "has no answers")
    grades = [Grade(False, "no answer") if case.answer is None
              else grade(case.answer, case.reference, tolerance=options.tolerance)
              for case in cases]
    return 1 if _print(cases, grades) else 0


def _case_of_trace(record: Record, label: bool | None) -> Case:
    trace = read_trace(record)
    if trace.ground_truth is None:
        raise ParameterError(f"{record.where}: ground_truth", None, "is missing")
    equal = record.value.get("equal", label)
    if not isinstance(equal, bool):
        raise ParameterError(f"{record.where}: equal", equal,
                             "must be true or false, or the file labelled by --label")
    return Case(record.where, attempts(trace.messages)[-1].answer, trace.ground_truth.answer, equal)


def _print(cases: Sequence[Case], grades: Sequence[Grade]) -> int:
    """Print the report; returns how many labels the grader disagrees with."""
    console = stdout()
    rules = Counter((found.rule, case.equal) for case, found in zip(cases, grades, strict=True))
    table = Table("rule", "labelled equal", "labelled different", title=f"{len(cases):,} answers")
    for rule in (*RULES, "no answer"):
        if rules[rule, True] + rules[rule, False]:
            table.add_row(rule, f"{rules[rule, True]:,}", f"{rules[rule, False]:,}")
    console.print(table)
    wrong = [(case, found) for case, found in zip(cases, grades, strict=True)
             if case.equal != found.equal]
    if wrong:
        report = Table("where", "answer", "reference", "label", "grader", "rule",
                       title="disagreements")
        for case, found in wrong[:_SHOWN]:
            report.add_row(*map(_shown, (
                case.where, "" if case.answer is None else case.answer[:60], case.reference[:60],
                _word(case.equal), _word(found.equal), found.rule)))
        console.print(report)
    agreed = len(cases) - len(wrong)
    console.print(f"The grader agrees with {agreed:,} of {len(cases):,} labels "
                  f"({agreed / len(cases):.2%}).")
    return len(wrong)


def _shown(text: str) -> str:
    """``text`` for a table, control characters and lone surrogates as Python writes them."""
    return escape("".join(each if each.isprintable() else each.encode("unicode_escape").decode()
                          for each in text))


def _word(equal: bool) -> str:
    return "equal" if equal else "different"


if __name__ == "__main__":
    sys.exit(main())
