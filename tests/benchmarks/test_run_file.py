"""Files of runs: what is kept, what is cut off, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from benchmarks.run_file import RunFile
from rtl.errors import ParameterError


class Run(BaseModel):
    """A run of a study."""

    model_config = ConfigDict(extra="forbid")

    name: str
    score: float


def runs(path: Path) -> RunFile[Run, str]:
    return RunFile(path, Run, lambda run: run.name)


def test_runs_outlive_the_object_and_the_last_of_a_key_counts(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    first = runs(path)
    assert not len(first) and "a" not in first and not path.exists()
    for name, score in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        first.add(Run(name=name, score=score))
    again = runs(path)
    assert len(first) == len(again) == 2 and "a" in again
    assert path.read_text().splitlines()[-1] == '{"name":"a","score":3.0}'


def test_a_line_that_was_cut_off_is_dropped_at_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    runs(path).add(Run(name="a", score=1))
    with path.open("a") as stream:
        stream.write('{"name": "b", ')
    found = runs(path)
    assert len(found) == 1
    found.add(Run(name="c", score=2))
    assert [Run.model_validate_json(line).name
            for line in path.read_text().splitlines()] == ["a", "c"]


@pytest.mark.parametrize("line", ["{}", "no JSON", '{"name": "b", "score": 1, "x": 2}', "", "é"])
def test_another_line_is_refused_with_file_and_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(f'{{"name": "a", "score": 1}}\n{line}\n')
    before = path.read_bytes()
    with pytest.raises(ParameterError,
                       match=rf"^--record='{re.escape(str(path))}:2': is no run \(.+\)$"):
        runs(path)
    assert path.read_bytes() == before


def test_a_path_that_no_file_can_have_is_refused_at_once(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "runs.jsonl", tmp_path):
        with pytest.raises(ParameterError, match="must be a file in a folder that is there"):
            runs(path)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    found = runs(path)
    path.mkdir()
    with pytest.raises(ParameterError, match=r"runs\.jsonl': Is a directory"):
        found.add(Run(name="a", score=1))
    assert not len(found)
