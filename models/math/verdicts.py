"""Stages and verdicts of a transcript in code-based self-verification (arXiv:2308.07921).

The paper does not say how a verdict is read; these rules are ours. In order:

1. Verdict lines, ``Verification: True``, ``False`` or ``Uncertain``, in text that the model wrote.
   In a message that has any, nothing else counts.
2. Sentences. One that announces or supposes (*let us verify*, *if*) says nothing. Otherwise it is
   Uncertain if it says that checking is not possible, or an answer is not necessarily right; True
   if it denies that an answer is wrong or a check failed; False if an answer is called wrong or not
   right, a check failed, two things do not agree, or a mistake was made; True if an answer is
   called right or verified, a check passed or confirms it, or two things agree. *The answer is
   True* answers a question and judges nothing.
3. The output of code that verifies, where its last line is ``True`` or ``False``.

The last verdict of a transcript is its state. So a path that ends on a new answer without checking
it again stays False, and one without any verdict is Uncertain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, cast

from models.math.solution import Block, Message
from models.math.voting import State

__all__ = ["Event", "Rule", "Stage", "Verdict", "final_verdict", "stages", "verdicts",
           "without_verdicts"]

Stage = Literal["language", "code", "verify"]
"""Reasoning in words, solving by code, and verifying; the output of code has its code's stage."""

Rule = Literal["line", "sentence", "output", "none"]
"""How a verdict was read."""


class Verdict(NamedTuple):
    """A state, the rule that found it, and the words that it was found in."""

    state: State
    rule: Rule
    evidence: str


class Event(NamedTuple):
    """A verdict and where it stands: message and block by number."""

    message: int
    block: int
    verdict: Verdict


_LINE = re.compile(r"^[ \t>#*_`+-]*(?:\d{1,3}[.)][ \t*_`]{0,9})?verification[*_`]*[ \t]*[:=]"
                   r"[ \t*_`]*(true|false|uncertain)\b[ \t.*_`]*$", re.IGNORECASE | re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_VERIFYING = re.compile(r"\b(verif\w+|(double[- ]?)?check(s|ed|ing)?|confirm\w*|validat\w+|"
                        r"substitut\w+ (\w+ )*back|plug\w* (\w+ )*back)\b", re.IGNORECASE)
_STATES_ANSWER = re.compile(r"\\boxed|####|(\bis|:|=)[ $\\(*]*-?\d", re.IGNORECASE)
_ANSWER = re.compile(r"\\boxed|\banswer\b", re.IGNORECASE)

_THING = r"\b(answer|result|solution|value|calculation|computation|output|sides|check)s?\b"
_CHECK = r"\b(verification|check)\b[^.]{0,40}\b"
_NEAR = r"[^.]{0,60}"
_ADVERBS = r"( (?!(not|no|never|hardly|necessarily|only|just)\b)\w+){0,2}? "
_IS = r"\b(is|was|are|were|seems?|appears?|looks?|(has|have) been)" + _ADVERBS
_NOT = (r"\b((is|are|was|were)( not|n't)|(do|does|did)( not|n't) (seem|appear|look)( to be)?|"
        r"(is|are|was|were|seems?|appears?|looks?) no longer)") + _ADVERBS
_RIGHT = (r"(correct|(?<!\ba )right(?![ -](hand|side|half|angle|triangle|isosceles|circular|prism|"
          r"pyramid|cone|cylinder))|valid|consistent|verified|confirmed)\b")
_WRONG = r"(incorrect|wrong|invalid|inconsistent)\b"
_FINDING = r"\b(calculation|computation|output|sides|check|verification)s?\b"
"""What is true or false only as a judgement, unlike an answer."""
_CANNOT = (r"\b(cannot|can not|can't|could not|couldn't|(un|not )able to|(not |im)possible to|"
           r"no ([\w-]+ ){0,2}way (to|of)|difficult to|hard to)")
_DISAGREE = (r"(do(es)?|did)( not|n't) "
             r"(match|agree|satisfy|hold|equal|work|check out|fit|pass|succeed)")
_SUPPOSED = re.compile(
    r"^((now|next|so|then|and|but|first|finally|ok(ay)?),? )?"
    r"(let's|let us|let me|(we|i)( will|'ll) |we (should|need|have) to|please|"
    r"to (verify|check|confirm|see)\b[^,]*$)|\b(if|whether)\b|\?$", re.IGNORECASE)
_WORDS: tuple[tuple[State, re.Pattern[str]], ...] = tuple(
    (cast(State, state), re.compile("|".join(rules), re.IGNORECASE)) for state, rules in (
        ("Uncertain", (
            _CANNOT + r"( be)?( [\w-]+){0,3} (verif|check|confirm|validat)\w*",
            r"\bverification( \w+){0,3} (inconclusive|impossible|not possible|uncertain)\b",
            _THING + _NEAR + rf"\bnot necessarily( \w+){{0,2}}? ({_RIGHT}|{_WRONG})")),
        ("True", (
            _THING + _NEAR + _NOT + _WRONG,
            r"\b(verification|check)\b[^.]{0,40}( not|n't|\bnever) fail(ed)?\b")),
        ("False", (
            _CHECK + rf"(fail(s|ed)?|{_DISAGREE})",
            _THING + _NEAR + _IS + rf"({_WRONG}|not ({_RIGHT}|equal\b))",
            _THING + _NEAR + _NOT + rf"({_RIGHT}|equal\b)",
            _FINDING + _NEAR + _IS + r"false\b",
            _THING + _NEAR + r"\b" + _DISAGREE,
            r"\b(made|found|is|was|be|have) an? ([\w-]+ )?(mistake|error|discrepancy)\b"
            r"(?! in (the|my|our) code)")),
        ("True", (
            _THING + _NEAR + _IS + _RIGHT,
            _FINDING + _NEAR + _IS + r"true\b",
            _CHECK + r"(succe\w+|pass(es|ed)|confirms?|agrees?|shows? that)",
            r"\b(confirm|verifie|validate)(s|ed|ing)\b" + _NEAR + rf"({_THING}|\bcorrect\b)",
            r"\b(verified|confirmed) that\b",
            _THING + _NEAR + r"\b(match(es)?|agrees?|satisf(y|ies)|checks? out)\b")),
    ))


def verdicts(messages: Sequence[Message]) -> list[Event]:
    """All verdicts of the assistant's messages, in order."""
    return list(_events(messages))


def final_verdict(messages: Sequence[Message]) -> Verdict:
    """The last verdict; Uncertain by rule ``none`` where there is none."""
    found = verdicts(messages)
    return found[-1].verdict if found else Verdict("Uncertain", "none", "")


def stages(messages: Sequence[Message]) -> tuple[tuple[Stage, ...], ...]:
    """The stage of each block of each of the assistant's messages.

    Verification begins with a text that speaks of it after code has run or an answer was given, or
    after a text that gives an answer and then speaks of it; it ends with a verdict False, after
    which code solves again.
    """
    return tuple(tuple(stage for _, stage in staged) for staged in _staged(messages))


def without_verdicts(text: str) -> str:
    """``text`` without verdict lines and sentences that judge an answer without stating one.

    Or *the answer is correct* would have *correct* as its answer.
    """
    kept = []
    start = 0
    unlined = _LINE.sub("", text)
    for end in (*(found.end() for found in _SENTENCE.finditer(unlined)), len(unlined)):
        sentence = unlined[start:end]
        if _STATES_ANSWER.search(sentence) or _judged(sentence) is None:
            kept.append(sentence)
        start = end
    return "".join(kept)


def _staged(messages: Sequence[Message]) -> Iterator[list[tuple[Block, Stage]]]:
    verifying = answered = False
    for message in messages:
        if message.role != "assistant":
            continue
        staged: list[tuple[Block, Stage]] = []
        for block in message.content:
            if block.type == "text":
                if answered and _VERIFYING.search(block.content):
                    verifying = True
                staged.append((block, "verify" if verifying else "language"))
                given = _ANSWER.search(block.content)
                if given:
                    answered = True
                    verifying = verifying or bool(_VERIFYING.search(block.content, given.end()))
                said = _read_text(block.content)
                if said is not None and said.state == "False":
                    verifying = False
            else:
                staged.append((block, "verify" if verifying else "code"))
                answered = True
        yield staged


def _events(messages: Sequence[Message]) -> Iterator[Event]:
    numbers = [number for number, each in enumerate(messages) if each.role == "assistant"]
    for number, staged in zip(numbers, _staged(messages), strict=True):
        lines_only = any(block.type == "text" and _LINE.search(block.content)
                         for block, _ in staged)
        for index, (block, stage) in enumerate(staged):
            verdict: Verdict | None = None
            if block.type == "text":
                verdict = (_read_line if lines_only else _read_text)(block.content)
            elif block.type == "execution" and stage == "verify" and not lines_only:
                verdict = _read_output(block.content)
            if verdict is not None:
                yield Event(number, index, verdict)


def _read_line(text: str) -> Verdict | None:
    found = list(_LINE.finditer(text))
    if not found:
        return None
    return Verdict(cast(State, found[-1].group(1).capitalize()), "line",
                   found[-1].group().strip())


def _read_text(text: str) -> Verdict | None:
    """The last verdict of a text: by lines if it has any, else by sentences."""
    by_line = _read_line(text)
    if by_line is not None:
        return by_line
    for sentence in reversed(_SENTENCE.split(text)):
        state = _judged(sentence)
        if state is not None:
            return Verdict(state, "sentence", sentence.strip())
    return None


def _judged(sentence: str) -> State | None:
    plain = sentence.strip().replace("\u2019", "'")
    if _SUPPOSED.search(plain):
        return None
    return next((state for state, words in _WORDS if words.search(plain)), None)


def _read_output(output: str) -> Verdict | None:
    last = output.rstrip().rpartition("\n")[2].strip()
    return Verdict(cast(State, last), "output", last) if last in ("True", "False") else None
