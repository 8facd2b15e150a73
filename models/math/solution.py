"""MathCoder's solution format: text, code and its output in turns (arXiv:2310.03731, section 2).

A message is ``<|role|>``, one block or more, ``<|endofmessage|>``; a block is ``<|type|>``, its
content, ``<|endofblock|>``. Nothing stands between tokens and content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from algorithms import ParameterError
from models.jsonl import Record, read_jsonl, validated

__all__ = ["BLOCK_TOKEN", "ROLES", "SPECIAL_TOKEN", "SPECIAL_TOKENS", "TYPES", "Block", "BlockType",
           "GroundTruth", "Message", "Role", "Trace", "check_content", "final_text", "parse",
           "read_trace", "read_traces", "render"]

BlockType = Literal["text", "code", "execution"]
"""What a block holds; an execution is the output of the code before it."""

Role = Literal["system", "user", "assistant"]

ROLES: tuple[Role, ...] = ("system", "user", "assistant")
TYPES: tuple[BlockType, ...] = ("text", "code", "execution")

SPECIAL_TOKENS: tuple[str, ...] = (
    *(f"<|{name}|>" for name in (*ROLES, *TYPES)), "<|endofblock|>", "<|endofmessage|>")
"""All eight. Ids differ between tokenizers: look them up by name."""

_END_OF_BLOCK, _END_OF_MESSAGE = SPECIAL_TOKENS[-2:]
_ROLE = re.compile(rf"<\|({'|'.join(ROLES)})\|>")
BLOCK_TOKEN = re.compile(rf"<\|({'|'.join(TYPES)})\|>")
"""A token that begins a block; its group is the type."""
SPECIAL_TOKEN = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
"""Any of the eight."""


class Block(BaseModel):
    """A piece of a message. Its type is called ``type`` in JSON, or ``role`` in older files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: BlockType = Field(validation_alias=AliasChoices("type", "role"),
                            description="text, code or execution.")
    content: str = Field(description="The text between the tokens.")


class Message(BaseModel):
    """What one side says, a block or more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role = Field(description="system, user or assistant.")
    content: tuple[Block, ...] = Field(min_length=1, description="Its blocks.")


class GroundTruth(BaseModel):
    """The reference solution of a problem and its answer."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    answer: str = Field(description="The right answer.")
    solution: str = Field("", description="The reference solution, where there is one.")


class Trace(BaseModel):
    """A conversation, with what is known of its problem. Its JSON is a line of a file of traces."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: tuple[Message, ...] = Field(description="The conversation.")
    id: str | None = Field(None, description="Name of the problem.")
    ground_truth: GroundTruth | None = Field(None, description="Reference of the problem.")
    origin: str = Field("", exclude=True, description="Where it was read, as file:line.")


def render(messages: Sequence[Message], *, open_role: Role | None = None) -> str:
    """The exact text of messages.

    ``open_role`` appends the token that begins a message of that role: a prompt to generate from.

    Raises :class:`ParameterError` for content with a special token, which would end its block.
    """
    parts: list[str] = []
    for number, message in enumerate(messages, 1):
        parts.append(f"<|{message.role}|>")
        for index, block in enumerate(message.content, 1):
            check_content(block.content, f"message {number}, block {index}")
            parts.append(f"<|{block.type}|>{block.content}{_END_OF_BLOCK}")
        parts.append(_END_OF_MESSAGE)
    return "".join(parts) + (f"<|{open_role}|>" if open_role else "")


def check_content(content: str, where: str) -> None:
    """Raise :class:`ParameterError` naming ``where`` for content that has a special token."""
    found = SPECIAL_TOKEN.search(content)
    if found:
        raise ParameterError(where, found.group(), f"content must hold no special token (character "
                             f"{found.start() + 1})")


def parse(text: str) -> tuple[Message, ...]:
    """The messages of a text: the inverse of :func:`render`.

    Raises :class:`ParameterError` with the character, from 1, where a text breaks the format.
    """
    messages: list[Message] = []
    at = 0
    while at < len(text):
        role = _ROLE.match(text, at)
        if role is None:
            raise _broken(text, at, "a message begins with <|system|>, <|user|> or <|assistant|>")
        blocks: list[Block] = []
        at = role.end()
        while not (blocks and text.startswith(_END_OF_MESSAGE, at)):
            block, at = _block(text, at)
            blocks.append(block)
        at += len(_END_OF_MESSAGE)
        messages.append(Message(role=cast(Role, role.group(1)), content=tuple(blocks)))
    return tuple(messages)


def final_text(trace: Trace) -> str | None:
    """The content of the assistant's last block, which gives the answer; ``None`` without one.

    Usually text, the bare answer or one in ``\\boxed{}``; a solution that was cut off may end on
    the output of its code.
    """
    last = next((each for each in reversed(trace.messages) if each.role == "assistant"), None)
    return last.content[-1].content if last else None


def read_traces(path: Path | str) -> Iterator[Trace]:
    """The traces of a JSONL file, one at a time.

    A line has ``messages``, and perhaps ``id`` and ``ground_truth`` with ``solution`` and
    ``answer``. In files of results a list of blocks ``debug_result`` follows the messages: entries
    of roles there repeat the question and are passed over, the others are the assistant's message.
    Blocks are tagged by ``type`` or ``role``. Other keys are not read.

    Raises :class:`ParameterError` for a file that cannot be read, and for a malformed line, with
    file and line.
    """
    return (read_trace(record) for record in read_jsonl(path))


def read_trace(record: Record) -> Trace:
    """The trace of one line, as :func:`read_traces` has it."""
    raw: dict[str, Any] = {key: record.value[key] for key in ("messages", "id", "ground_truth")
                           if key in record.value}
    raw["origin"] = record.where
    if isinstance(raw.get("id"), int):
        raw["id"] = str(raw["id"])
    result = record.value.get("debug_result")
    if result is not None:
        blocks = _assistant_blocks(result, record.where)
        if blocks and isinstance(raw.get("messages"), list):
            raw["messages"] = [*raw["messages"], {"role": "assistant", "content": blocks}]
    return validated(Trace, raw, record.where)


def _assistant_blocks(result: object, where: str) -> list[Any]:
    if not isinstance(result, list):
        raise ParameterError(f"{where}: debug_result", type(result).__name__,
                             "must be a list of blocks")
    return [entry for entry in result
            if not (isinstance(entry, dict) and entry.get("role") in ROLES)]


def _block(text: str, at: int) -> tuple[Block, int]:
    """The block that begins at a character, and where it ends."""
    kind = BLOCK_TOKEN.match(text, at)
    if kind is None:
        raise _broken(text, at, "a block begins with <|text|>, <|code|> or <|execution|>")
    end = SPECIAL_TOKEN.search(text, kind.end())
    if end is None or end.group() != _END_OF_BLOCK:
        raise _broken(text, end.start() if end else len(text), "a block ends with <|endofblock|>")
    content = text[kind.end():end.start()]
    return Block(type=cast(BlockType, kind.group(1)), content=content), end.end()


def _broken(text: str, at: int, rule: str) -> ParameterError:
    return ParameterError(f"character {at + 1}", text[at:at + 20], rule)
