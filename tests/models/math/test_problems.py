"""Readers of GSM8K, MATH and SVAMP: own problems in their formats, and faults of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from algorithms import ParameterError
from models.math.problems import Problem, read_math, read_problems, read_svamp

EGGS = {"question": "A hen lays 2 eggs a day. How many in 600 days?",
        "answer": "It lays 2*600=<<2*600=1200>>1200 eggs.\n#### 1,200"}
RATIO = {"problem": "What is $\\frac{6}{8}$?", "level": "Level 2", "type": "Prealgebra",
         "solution": "Divide: $\\boxed{6}$, no, $\\boxed{\\frac{3}{4}}$."}
PENS = {"ID": "own-1", "Body": "Ann has 8 pens", "Question": "How many after losing 3?",
        "Equation": "( 8.0 - 3.0 )", "Answer": 5.0, "Type": "Subtraction"}


def lines(path: Path, *objects: Any) -> Path:
    path.write_text("".join(each if isinstance(each, str) else json.dumps(each) + "\n"
                            for each in objects))
    return path


def test_gsm8k(tmp_path: Path) -> None:
    path = lines(tmp_path / "eggs.jsonl", EGGS, "\n", EGGS)
    first, second = read_problems(path, "gsm8k")
    assert first == Problem(id="1", question=EGGS["question"], answer="1,200", source="gsm8k",
                            solution="It lays 2*600=1200 eggs.")
    assert second.id == "3"


def test_math_as_a_folder_and_as_lines(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    for name in ("prealgebra/7.json", "algebra/1.json"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps(RATIO, indent=1))
    expected = Problem(id="prealgebra/7.json", question=RATIO["problem"], answer=r"\frac{3}{4}",
                       solution=RATIO["solution"], source="math", subject="Prealgebra", level=2)
    problems = list(read_math(folder))
    assert [problem.id for problem in problems] == ["algebra/1.json", "prealgebra/7.json"]
    assert problems[1] == expected
    other = {**RATIO, "level": 5, "answer": "0.75", "subject": "Algebra", "unique_id": "a"}
    unknown = {**RATIO, "level": "Level ?"}
    one, two, three = read_math(lines(tmp_path / "ratio.jsonl", RATIO, other, unknown))
    assert one == expected.model_copy(update={"id": "1"})
    assert (two.answer, two.level, two.subject) == ("0.75", 5, "Algebra")
    assert three.level is None


def test_svamp(tmp_path: Path) -> None:
    path = tmp_path / "svamp.json"
    path.write_text(json.dumps([PENS, {**PENS, "Body": "It rains.", "Answer": 2.5}]))
    first, second = read_svamp(path)
    assert first == Problem(
        id="own-1", question="Ann has 8 pens. How many after losing 3?", answer="5",
        solution="( 8.0 - 3.0 )", source="svamp", subject="Subtraction")
    assert second.answer == "2.5" and second.question.startswith("It rains. How")


@pytest.mark.parametrize(("source", "content", "error"), [
    ("gsm8k", [EGGS, {**EGGS, "answer": "It is 5."}], "f:2: answer='It is 5.': must end on a line"),
    ("gsm8k", [EGGS, {"question": "?"}], "f:2: answer=None: field required"),
    ("gsm8k", [{**EGGS, "question": 5}], "f:1: question='5': input should be a valid string"),
    ("gsm8k", [{**EGGS, "question": ""}], "f:1: question='': string should have at least 1"),
    ("gsm8k", [EGGS, EGGS, "{'question'"], "f:3=.*is not JSON"),
    ("math", [RATIO, {**RATIO, "solution": "no box"}], r"f:2: solution='no box': must have a "),
    ("math", [{**RATIO, "level": "hard"}], "f:1: level='hard': must be as in Level 3"),
    ("svamp", '{"ID": "1"}', "f='dict': must be a JSON list"),
    ("svamp", [[PENS, 5]], "f, item 2='5': must be a JSON object"),
    ("svamp", [[{**PENS, "Answer": "five"}]], "f, item 1: Answer='five': input should be a val"),
    ("svamp", '[\n{"ID": }]', r"f=.*is not JSON \(Expecting value, line 2, column 8\)"),
    ("aqua", [EGGS], "source='aqua': must be one of gsm8k, math, svamp"),
])
def test_malformed_files_say_where(tmp_path: Path, source: str, content: Any, error: str) -> None:
    path = lines(tmp_path / "f", *content)
    with pytest.raises(ParameterError, match=error):
        list(read_problems(path, source))


def test_missing_and_empty_places_are_named(tmp_path: Path) -> None:
    for source in ("gsm8k", "math", "svamp"):
        with pytest.raises(ParameterError, match=r"none.json.*cannot be read \(No such file"):
            list(read_problems(tmp_path / "none.json", source))
    with pytest.raises(ParameterError, match="has no JSON files"):
        list(read_math(tmp_path))
