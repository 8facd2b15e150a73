"""The solution format: exact text, back again, files in both key styles, and errors that say where.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms import ParameterError
from models.jsonl import write_jsonl
from models.math.replay import recorded_cells
from models.math.solution import (
    ROLES,
    SPECIAL_TOKENS,
    TYPES,
    Block,
    Message,
    Trace,
    final_text,
    parse,
    read_traces,
    render,
)

# Pieces of special tokens, so that contents come close to one.
PIECES = ("<|", "|>", "<", "|", ">", "text", "code", "endofblock", "endofmessage", "user",
          "x = 1\n", "\r\n", "é", "\u2028", "<|endofblock|", "|endofmessage|>", " ")
CONTENTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=6).map("".join)
CLEAN = CONTENTS.filter(lambda text: not any(token in text for token in SPECIAL_TOKENS))
MESSAGES = st.lists(st.builds(
    Message, role=st.sampled_from(ROLES),
    content=st.lists(st.builds(Block, type=st.sampled_from(TYPES), content=CLEAN),
                     min_size=1, max_size=4).map(tuple)), max_size=4).map(tuple)

QUESTION = {"role": "user", "content": [{"type": "text", "content": "1 + 1?"}]}


def message(role: str, *blocks: tuple[str, str]) -> Message:
    return Message.model_validate(
        {"role": role, "content": [{"type": kind, "content": text} for kind, text in blocks]})


def test_text_is_exact() -> None:
    messages = (message("user", ("text", "1 + 1?")),
                message("assistant", ("text", "So:"), ("code", "1 + 1"), ("execution", "2")))
    assert render(messages, open_role="assistant") == (
        "<|user|><|text|>1 + 1?<|endofblock|><|endofmessage|>"
        "<|assistant|><|text|>So:<|endofblock|><|code|>1 + 1<|endofblock|>"
        "<|execution|>2<|endofblock|><|endofmessage|><|assistant|>")
    assert len(set(SPECIAL_TOKENS)) == 8


@given(MESSAGES)
@settings(max_examples=150)
def test_parse_is_the_inverse_of_render(messages: tuple[Message, ...]) -> None:
    assert parse(render(messages)) == messages


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, *PIECES]), max_size=12).map("".join))
@settings(max_examples=150)
def test_what_parses_renders_to_the_same_text(text: str) -> None:
    try:
        messages = parse(text)
    except ParameterError:
        return
    assert render(messages) == text


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_content_with_a_special_token_is_refused(token: str) -> None:
    messages = (message("user", ("text", "q")), message("assistant", ("text", "a"),
                                                        ("execution", f"ab{token}")))
    with pytest.raises(ParameterError, match=r"message 2, block 2=.*special token \(character 3"):
        render(messages)


@pytest.mark.parametrize(("text", "error"), [
    ("hello", r"character 1='hello': a message begins"),
    ("<|user|>hello<|endofmessage|>", "character 9='hello.*a block begins"),
    ("<|user|><|endofmessage|>", "character 9=.*a block begins"),
    ("<|user|><|text|>hello", "character 22='': a block ends"),
    ("<|user|><|text|>a<|code|>b<|endofblock|><|endofmessage|>", "character 18='<.code.*ck ends"),
    ("<|user|><|text|>a<|endofblock|>", "character 32=''"),
    ("<|user|><|text|>a<|endofblock|><|endofmessage|>\n", r"character 48='\\n': a message"),
])
def test_broken_text_says_where(text: str, error: str) -> None:
    with pytest.raises(ParameterError, match=error):
        parse(text)


@given(MESSAGES)
@settings(max_examples=30)
def test_traces_survive_a_file(tmp_path_factory: pytest.TempPathFactory,
                               messages: tuple[Message, ...]) -> None:
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    trace = Trace(messages=messages, id="7")
    write_jsonl(path, [trace, trace])
    first, second = read_traces(path)
    assert first == trace.model_copy(update={"origin": f"{path}:1"})
    assert second.origin == f"{path}:2"


@pytest.mark.parametrize("key", ["type", "role"])
def test_result_files_are_read_in_both_key_styles(tmp_path: Path, key: str) -> None:
    path = tmp_path / "result.jsonl"
    path.write_text("\n" + json.dumps({
        "id": 3, "messages": [QUESTION], "completion": "2", "model_answer": "2",
        "ground_truth": {"solution": "#### 2", "answer": "2"},
        "debug_result": [{"role": "system", "content": ""}, {"role": "user", "content": "1 + 1?\n"},
                         {key: "code", "content": "1 + 1"}, {key: "execution", "content": "2"},
                         {key: "text", "content": r"\boxed{2}"}, {key: "text", "content": "2"}],
    }))
    trace, = read_traces(path)
    assert trace.id == "3" and trace.origin == f"{path}:2"
    assert trace.ground_truth is not None and trace.ground_truth.answer == "2"
    assert trace.messages == (
        message("user", ("text", "1 + 1?")),
        message("assistant", ("code", "1 + 1"), ("execution", "2"), ("text", r"\boxed{2}"),
                ("text", "2")))


@pytest.mark.parametrize(("line", "error"), [
    ("{", r"f.jsonl:2='\{': is not JSON"),
    ("[1]", r"f.jsonl:2='\[1\]': must be a JSON object"),
    ("[" * 100_000, "f.jsonl:2=.*beyond what Python reads"),
    ("9" * 5000, "f.jsonl:2=.*beyond what Python reads"),
    ('{"id": "3"}', "f.jsonl:2: messages=None: field required"),
    ({"messages": [{"role": "user", "content": []}]}, r"f.jsonl:2: messages.0.content="),
    ({"messages": [{"role": "robot", "content": [{"type": "text", "content": ""}]}]},
     "f.jsonl:2: messages.0.role='robot'"),
    ({"messages": [QUESTION], "debug_result": "2"}, "f.jsonl:2: debug_result='str'"),
    ({"messages": [QUESTION], "debug_result": [{"type": "image", "content": "2"}]},
     "f.jsonl:2: messages.1.content.0.type='image'"),
])
def test_malformed_lines_name_file_and_line(tmp_path: Path, line: Any, error: str) -> None:
    path = tmp_path / "f.jsonl"
    good = json.dumps({"messages": [QUESTION]})
    path.write_text(f"{good}\n{line if isinstance(line, str) else json.dumps(line)}\n")
    traces = read_traces(path)
    assert next(traces).origin == f"{path}:1"
    with pytest.raises(ParameterError, match=error):
        next(traces)


def test_other_bytes_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(ParameterError, match=r"f.jsonl:1=.*not UTF-8 \(byte 9\)"):
        list(read_traces(path))
    with pytest.raises(ParameterError, match=r"none.jsonl.*No such file"):
        list(read_traces(tmp_path / "none.jsonl"))


def test_recorded_cells_and_the_final_text_are_the_assistants() -> None:
    answer = message("assistant", ("code", "1"), ("execution", "1"), ("text", "so"), ("code", "2"),
                     ("execution", "2"), ("code", "3"), ("text", "10"))
    trace = Trace(messages=(message("user", ("code", "0"), ("execution", "0")), answer))
    assert len(recorded_cells(trace)) == 2
    assert final_text(trace) == "10"
    assert final_text(Trace(messages=trace.messages[:1])) is None
