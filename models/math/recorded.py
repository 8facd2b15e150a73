"""Recorded transcripts in a model's place: runs without a model, and tests of all that uses one."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import shorten

from algorithms import ParameterError, closest
from models.math.chat import parse_prompt
from models.math.generation import check_request, cut_at_stop
from models.math.solution import Block, Message, Trace, read_traces

__all__ = ["RecordedGenerator"]

_MESSAGE_END = "<|endofmessage|>"
_OPENED = ("assistant", "", "")
_Part = tuple[str, str, str]
_Key = tuple[_Part, ...]


class RecordedGenerator:
    """Replays what the assistant wrote in transcripts, as a Generator.

    A prompt is known by all that was written in it, outputs of code aside: those come from the
    sandbox of the replay and may differ from the recorded ones. Transcripts that agree up to the
    prompt take turns in the order of the file, so that several samples of a problem all come back.
    Temperature, seed and ``max_new_tokens`` have no effect.

    Parameters
    ----------
    traces: transcripts, or the path of a JSONL file of them.
    """

    def __init__(self, traces: str | Path | Iterable[Trace]) -> None:
        self._next: dict[_Key, deque[str]] = defaultdict(deque)
        self._recorded: Counter[_Key] = Counter()
        self._problems: dict[str, None] = {}
        for trace in read_traces(traces) if isinstance(traces, str | Path) else traces:
            for number, message in enumerate(trace.messages):
                if message.role == "user":
                    self._problems[_text(message)] = None
                elif message.role == "assistant":
                    self._record(_key(trace.messages[:number]), message.content)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        stop: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """As :meth:`Generator.generate <models.math.generation.Generator.generate>` says.

        Raises :class:`ParameterError` for a prompt that no transcript has, or of which all have
        been replayed; the recorded problem nearest to it is named.
        """
        check_request(stop, max_new_tokens, temperature)
        return [cut_at_stop(self._replay(prompt), stop) for prompt in prompts]

    def _record(self, history: _Key, blocks: Sequence[Block]) -> None:
        """What follows each block that the model wrote, up to the next output."""
        text = _MESSAGE_END
        texts = [text]
        for block in reversed(blocks):
            if block.type == "execution":
                text = ""
            else:
                text = f"<|{block.type}|>{block.content}<|endofblock|>{text}"
                texts.append(text)
        key = (*history, _OPENED)
        written: list[_Part] = [("assistant", block.type, block.content) for block in blocks
                                if block.type != "execution"]
        for count, text in enumerate(reversed(texts)):
            self._next[(*key, *written[:count])].append(text)
            self._recorded[(*key, *written[:count])] += 1

    def _replay(self, prompt: str) -> str:
        messages = parse_prompt(prompt)
        key = _key(messages)
        if not messages or messages[-1].role != "assistant":
            key += (_OPENED,)
        if self._next.get(key):
            return self._next[key].popleft()
        asked = next((_text(each) for each in reversed(messages) if each.role == "user"), "")
        count = self._recorded[key]
        rule = (f"all {count} transcripts that go on from it have been replayed" if count else
                "no recorded transcript goes on from it")
        raise ParameterError("prompts", shorten(asked, 80), rule, closest(asked, self._problems))


def _key(messages: Sequence[Message]) -> _Key:
    """What was written in messages, and by whom; an empty system message counts as none."""
    key: list[_Part] = []
    for message in messages:
        written = [(message.role, block.type, block.content) for block in message.content
                   if block.type != "execution"]
        if message.role != "system" or any(content for _, _, content in written):
            key += [(message.role, "", ""), *written]
    return tuple(key)


def _text(message: Message) -> str:
    return "".join(block.content for block in message.content)
