"""Replays of recorded code and grades of labelled answers: rules, commands and their statuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.math import csv_table, grade_answers, replay_traces
from models.math.replay import CellVerdict, compare_output, recorded_cells, replay
from models.math.sandbox import Limits, Outcome, Sandbox
from models.math.sandbox.limits import Status
from models.math.solution import Trace, read_traces

TRACEBACK = ("\x1b[0;31m" + "-" * 75 + "\x1b[0m\nNameError  Traceback (most recent call last)\n"
             "NameError: name 'x' is not defined")
NOISE = ("The history saving thread hit an unexpected error (OperationalError('database is locked'"
         ")).History will not be written to the database.")


@pytest.mark.parametrize(("recorded", "status", "output", "verdict"), [
    ("42", "ok", "42", "same"),
    ("[1,\n 2,\n 3]", "ok", "[1, 2, 3]", "same"),
    ("a  b\r\n", "ok", "a b", "same"),
    ("0.3333333333333333", "ok", "0.33333333333333331", "same"),
    ("1.20000000000000", "ok", "1.2", "same"),
    ("1.23456789e-05", "ok", "1.23456788e-05", "same"),
    ("<empty_execution>", "ok", "", "same"),
    (NOISE + "42", "ok", "42", "same"),
    ("Out[3]: 42", "ok", "42", "same"),
    ("x + 1.5", "ok", "x+1.5", "same"),
    ("{1, 2, 3}", "ok", "{3, 1, 2}", "unordered"),
    ("[{'a': (1, 2), 'b': 2}]", "ok", "[{'b': 2, 'a': (1, 2)}]", "unordered"),
    ("[1, 2, 3,\n ...]", "ok", "[1, 2, 3, 4, 5]", "elided"),
    ("1, 2, 3, 4, 5", "output", "1, 2,\n[output cut after 5 bytes]", "elided"),
    (TRACEBACK, "error", "Traceback ...\nNameError: name 'x'", "both raised"),
    ("  Cell In[1], line 1\nSyntaxError: invalid syntax", "error", "SyntaxError", "both raised"),
    ("---- Timeout waiting for reply  Traceback (most recent call last)", "timeout", "",
     "both raised"),
    ("42", "error", "ZeroDivisionError: division by zero", "only ours raised"),
    ("42", "timeout", "42", "only ours raised"),
    (TRACEBACK, "ok", "42", "only recorded raised"),
    ("ValueError: told by the cell itself", "ok", "ValueError: told by the cell itself", "same"),
    ("42", "ok", "43", "different"),
    ("0.333", "ok", "0.334", "different"),
    ("[1, 2]", "ok", "[2, 1]", "different"),
    ("{'a': 1, 'b': 2}", "ok", "{'a': 2, 'b': 1}", "different"),
    ("{(1, 2)}", "ok", "{(2, 1)}", "different"),
    ("[1, 2, ..., 9]", "ok", "[1, 2, 3, 8]", "different"),
    ("[7, ...]", "ok", "[1, 2, 7]", "different"),
    ("1, ..., 2", "ok", "1, 2, 3", "different"),
    ("", "ok", "0", "different"),
])
def test_outputs_are_compared(
    recorded: str, status: Status, output: str, verdict: CellVerdict
) -> None:
    outcome = Outcome(status=status, output=output, seconds=0.0)
    assert compare_output(recorded, outcome) == verdict


def trace_of(*blocks: tuple[str, str], **more: Any) -> dict[str, Any]:
    """A line of a file of results, with the older key of blocks."""
    question = {"role": "user", "content": [{"type": "text", "content": "?"}]}
    return {"messages": [question], **more,
            "debug_result": [{"role": kind, "content": content} for kind, content in blocks]}


GOOD = trace_of(("text", "Let x be 6."), ("code", "x = 6\r\nx * 7"), ("execution", "42"),
                ("code", "print(x / 7)"), ("execution", "0.857142857142857"), ("code", "1 / 0"),
                ("execution", TRACEBACK), ("code", "not run"), ("text", "42"),
                ground_truth={"solution": "", "answer": "42.0"})
BAD = trace_of(("code", "x"), ("execution", "6"), ("text", "41"),
               ground_truth={"solution": "", "answer": "42"})


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_state_lasts_through_a_trace_and_no_longer(tmp_path: Path) -> None:
    good, bad = read_traces(write(tmp_path / "traces.jsonl", GOOD, BAD))
    assert [cell.output for cell in recorded_cells(good)] == ["42", "0.857142857142857", TRACEBACK]
    with Sandbox(isolation="none") as sandbox:
        first = replay(good, sandbox)
        assert [cell.verdict for cell in first.cells] == ["same", "same", "both raised"]
        assert first.agrees and first.origin.endswith("traces.jsonl:1")
        assert replay(bad, sandbox).cells[0].verdict == "same"
    fresh, = replay_traces.replay_all([bad], isolation="none")
    assert [cell.verdict for cell in fresh.cells] == ["only ours raised"] and not fresh.agrees


def test_traces_replay_in_order_however_many_at_a_time(tmp_path: Path) -> None:
    rows = [trace_of(("code", f"{n} * 2"), ("execution", str(2 * n))) for n in range(5)]
    traces = list(read_traces(write(tmp_path / "traces.jsonl", *rows)))
    done = list(replay_traces.replay_all(traces, 3, Limits(cell_seconds=20), "none"))
    assert [each.origin for each in done] == [each.origin for each in traces]
    assert all(each.agrees for each in done)
    assert replay(Trace(messages=()), Nothing()).agrees


class Nothing:
    """A sandbox that no test should reach."""

    def run(self, code: str) -> Outcome:
        raise AssertionError(code)

    def close(self) -> None:
        raise AssertionError


def test_replay_command_prints_verdicts_and_says_whether_all_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(tmp_path / "traces.jsonl", GOOD, BAD))
    assert replay_traces.main([path, "--limit", "1", "--unsandboxed"]) == 0
    printed = capsys.readouterr().out
    assert "1 traces, 3 cells" in printed and "100.00%" in printed
    assert replay_traces.main([path, "--jobs", "2", "--unsandboxed"]) == 1
    printed = capsys.readouterr().out
    assert "only ours raised" in printed and "NameError" in printed
    assert f"{path}:2" in printed and "75.00%" in printed


def test_a_malformed_line_is_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "made"
    row = trace_of(("code", f"open({str(file)!r}, 'w')"), ("execution", "1"))
    path = write(tmp_path / "traces.jsonl", row, {"messages": 1})
    assert replay_traces.main([str(path), "--unsandboxed"]) == 2
    assert "traces.jsonl:2" in capsys.readouterr().err and not file.exists()


ANSWERS = [
    (("text", "The answer is 6 dollars an hour, for 10 hours."), ("text", "60")),
    (("text", "Compute it:"), ("code", "60"), ("execution", "60")),
    (("text", "Compute the value"), ("code", "60"), ("execution", "60")),
    (("text", "The answer is 60. Let's verify it."), ("code", "60 == 60"), ("execution", "True")),
    (("text", r"\boxed{60}"), ("text", "Verification: True")),
    (("text", r"\boxed{60} Let me check."), ("text", "The answer is correct.")),
]


@pytest.mark.parametrize("blocks", ANSWERS)
def test_both_commands_read_the_same_answer(
    tmp_path: Path, blocks: tuple[tuple[str, str], ...]
) -> None:
    path = write(tmp_path / "f.jsonl", trace_of(*blocks, ground_truth={"answer": "60"}))
    sample, = csv_table.read_samples(path)
    case, = grade_answers.read_cases(path, True)
    assert sample.attempts[-1].answer == case.answer == "60"


def test_control_characters_and_surrogates_are_shown_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"answer": answer, "reference": "é", "equal": True} for answer in ("\ud800", "\x1b[2J")]
    assert grade_answers.main([str(write(tmp_path / "f.jsonl", *rows))]) == 1
    printed = capsys.readouterr().out
    assert r"\ud800" in printed and r"\x1b[2J" in printed and "é" in printed
    assert "\x1b[2J" not in printed


def test_grading_command_prints_rules_and_disagreements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [{"answer": "0.5", "reference": r"\frac12", "equal": True},
             {"solution": "So 3 + 4 is 7.\nThe answer is 7.", "reference": "7.0", "equal": True},
             {"answer": "[b]", "reference": "2", "equal": False}]
    path = str(write(tmp_path / "pairs.jsonl", *pairs))
    assert grade_answers.main([path]) == 0
    printed = capsys.readouterr().out
    assert "agrees with 3 of 3 labels" in printed and "disagreements" not in printed
    write(Path(path), *pairs, {"answer": "[/x]", "reference": "[y]", "equal": True})
    assert grade_answers.main([path]) == 1
    printed = capsys.readouterr().out
    assert "agrees with 3 of 4" in printed and "disagreements" in printed
    assert f"{path}:4" in printed and "[/x]" in printed


def test_traces_are_labelled_by_themselves_their_file_or_an_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = trace_of(("text", "no idea what this could be"), ground_truth={"answer": "1"})
    right = write(tmp_path / "result-correct.jsonl", GOOD)
    wrong = write(tmp_path / "result-wrong.jsonl", BAD, empty, {**GOOD, "equal": True})
    assert grade_answers.main([str(right)]) == 0
    assert grade_answers.main([str(wrong)]) == 0
    assert "no answer" in capsys.readouterr().out
    assert grade_answers.main([str(wrong), "--label", "correct"]) == 1
    plain = str(write(tmp_path / "result.jsonl", GOOD))
    assert grade_answers.main([plain]) == 2
    assert "result.jsonl:1: equal=None: must be true or false" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "row", "more", "error"), [
    ("replay", GOOD, ["--jobs", "0"], "--jobs=0: must be 1 or more"),
    ("replay", GOOD, ["--limit", "0"], "--limit=0: must be 1 or more"),
    ("replay", GOOD, ["--seconds", "0"], "cell_seconds=0.0: must be at least"),
    ("replay", trace_of(("text", "1")), [], "has no executed code to replay"),
    ("replay", {"messages": 1}, ["--unsandboxed"], "f.jsonl:1: messages='1': input should be"),
    ("grade", {"answer": "1", "equal": True}, [], "f.jsonl:1: reference=None: field required"),
    ("grade", {"answer": "1", "reference": "1", "equal": "yes"}, [], "f.jsonl:1: equal='yes'"),
    ("grade", {"reference": "1", "equal": True}, [], "must have an answer or a solution"),
    ("grade", trace_of(("text", "1")), [], "f.jsonl:1: ground_truth=None: is missing"),
    ("grade", GOOD, ["--tolerance", "1"], "--tolerance=1.0: must be 0 or more and below 1"),
    ("grade", None, [], "has no answers"),
])
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, row: Any, more: list[str],
    error: str,
) -> None:
    path = write(tmp_path / "f.jsonl", *([] if row is None else [row]))
    main = replay_traces.main if command == "replay" else grade_answers.main
    assert main([str(path), *more]) == 2
    failure = capsys.readouterr().err
    assert error in failure and failure.count("\n") == 1


def test_without_a_sandbox_nothing_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "made"
    row = trace_of(("code", f"open({str(file)!r}, 'w')"), ("execution", "1"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert replay_traces.main([str(write(tmp_path / "traces.jsonl", row))]) == 2
    assert "--unsandboxed" in capsys.readouterr().err and not file.exists()
