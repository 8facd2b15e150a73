"""The solution format as a conversation in Markdown, for chat models that never saw its tokens.

Code is fenced as ``python`` and its output as ``output``, as tool-integrated models write them.
"""

from __future__ import annotations

import re
from typing import TypedDict

from models.math.solution import Block, Message, parse

__all__ = ["CHAT_STOP", "ChatMessage", "chat_messages", "in_format", "parse_prompt", "reply_blocks"]

CHAT_STOP = "```output"
"""Where a chat model starts to make up the output of its own code."""

_RULES = ("Write Python code between ```python and ``` to have it run. Print what you need, end "
          "your message after the code, and wait: its output comes in the next message. Variables "
          "stay from one piece of code to the next. Without code, a message is your last.")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
_FENCED = re.compile(
    r"^[^`\n]*(?P<fence>`{3,})[ \t]*(?P<language>[^\s`]*)[^`\n]*\n"
    r"(?P<code>.*?)(?:(?:\r?\n|(?<=\n))[ \t]*(?P<close>(?P=fence))[ \t\r]*$|\Z)",
    re.DOTALL | re.MULTILINE)
"""A whole fenced block of any language, or one that is still open."""
_PYTHON = frozenset(("", "python", "py", "python3"))


class ChatMessage(TypedDict):
    """A message as OpenAI's interface has it."""

    role: str
    content: str


def in_format(prompt: str) -> bool:
    """Whether a prompt is in the solution format rather than plain text."""
    return prompt.startswith(_ROLES)


def parse_prompt(prompt: str) -> tuple[Message, ...]:
    """The messages of a prompt in the solution format.

    The last is what the assistant wrote of its message so far, if it wrote anything. Raises
    :class:`ParameterError` as :func:`models.math.solution.parse` does.
    """
    opened = "<|assistant|>"
    whole = prompt.endswith((opened, "<|endofmessage|>"))
    return parse(prompt.removesuffix(opened) if whole else f"{prompt}<|endofmessage|>")


def chat_messages(prompt: str) -> list[ChatMessage]:
    """The messages of a conversation; a prompt of plain text is one message of the user.

    Outputs are messages of the user. The system message ends with how to have code run. Raises
    :class:`ParameterError` for a prompt that begins in the format and breaks it.
    """
    if not in_format(prompt):
        return [{"role": "user", "content": prompt}]
    messages = parse_prompt(prompt)
    system = "".join(block.content for message in messages if message.role == "system"
                     for block in message.content).strip()
    chat: list[ChatMessage] = [{"role": "system", "content": f"{system}\n\n{_RULES}".strip()}]
    for message in messages:
        if message.role != "system":
            for block in message.content:
                _append(chat, *_as_markdown(message, block))
    return chat


def reply_blocks(reply: str, complete: bool) -> str:
    """A chat model's reply in the solution format, up to and including its first code: a fenced
    block of Python or of no language; those of others are text.

    What follows the code was written without its output and is left out, as a stop string would
    have it. A reply that is not ``complete``, cut in a block, leaves that block open.
    """
    fenced = next((found for found in _FENCED.finditer(reply)
                   if found["language"].lower() in _PYTHON), None)
    if fenced is None:
        ends = "<|endofblock|><|endofmessage|>" if complete else ""
        return f"<|text|>{reply}{ends}"
    before = reply[:fenced.start("fence")]
    text = f"<|text|>{before}<|endofblock|>" if before.strip() else ""
    closed = complete or fenced["close"]
    return f"{text}<|code|>{fenced['code']}{'<|endofblock|>' if closed else ''}"


def _as_markdown(message: Message, block: Block) -> tuple[str, str]:
    if block.type == "execution":
        return "user", f"```output\n{block.content}\n```"
    text = f"```python\n{block.content}\n```" if block.type == "code" else block.content
    return message.role, text


def _append(chat: list[ChatMessage], role: str, text: str) -> None:
    if chat[-1]["role"] == role:
        chat[-1]["content"] += f"\n{text}"
    else:
        chat.append({"role": role, "content": text})
