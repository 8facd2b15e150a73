"""The answer in the text of a solution."""

from __future__ import annotations

import re

from models.math.latex import Malformed, read_answer
from models.math.scalars import CONSTANTS, FUNCTIONS
from models.math.units import SCALES, UNITS

__all__ = ["boxed", "extract_answer", "stated_answer"]

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{)?")
_HASHES = re.compile(r"^[ \t]*####[ \t]*(\S.*)$", re.MULTILINE)
_SAID = re.compile(r"\banswer\b[ \t]{0,9}(?:is|:|=)[ \t:*]{0,9}([^\s:*].*?)(?=[.!](?:\s|$)|\n|$)",
                   re.IGNORECASE)
_REASON = re.compile(r"(?<=\S)[,;]?\s+(?:because|since|if|where|when|which)\b"
                     r"|(?<=\S),\s+(?:for|as)\b", re.IGNORECASE)
"""What follows these words in a sentence is why or when, not what."""
_NUMBER = re.compile(
    r"(?<![\w.])[-\u2212]?[$€£]?(?:\d{1,3} \d{1,2}/\d{1,3}(?!\d)|"
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:e[+-]?\d+)?(?:/\d+)?)"
    r"(?: (?:hundred|thousand|million|billion|trillion)\b)*", re.I)
_FORMULA = re.compile(r"\$([^$\n]{1,300})\$|\\\((.{1,300}?)\\\)|\\\[(.{1,300}?)\\\]", re.DOTALL)
_COMMAND = re.compile(r"\\[A-Za-z]+(?:\s*\{[A-Za-z ]*\})?")
_WORD = re.compile(r"[A-Za-z]{2,}")
_KNOWN = frozenset((*FUNCTIONS, *CONSTANTS, "or", "and"))
_MEASURES = frozenset((*UNITS, *SCALES))
_BOXES = 16
_LONGEST_BARE = 200
_FEW_WORDS = 3


def boxed(text: str) -> str | None:
    """What the last closed ``\\boxed{}`` or ``\\fbox{}`` holds; ``\\boxed 5`` counts as well."""
    for found in reversed(list(_BOX.finditer(text))[-_BOXES:]):
        if found.group(1) is None:
            word = re.match(r"[^\s$]+", text[found.end():])
            if word:
                return word.group().rstrip(".,")
            continue
        depth, at = 1, found.end()
        while depth and at < len(text):
            escaped = text[at - 1] == "\\"
            depth += 0 if escaped else (text[at] == "{") - (text[at] == "}")
            at += 1
        if depth == 0:
            return text[found.end():at - 1].strip()
    return None


def extract_answer(text: str) -> str | None:
    """The final answer of a solution, or of its last block; ``None`` if there is nothing like one.

    In this order: the last ``\\boxed{}``; the last line ``#### answer``; what the last *the answer
    is* says, up to a *because* or the like; the text itself. Of the last two, all of it if that is
    mathematics and no prose, else the last formula between dollar signs or the like, else the last
    number, else, of up to three words, all of it.
    """
    return stated_answer(text) or _answer_in(_bare(text))


def stated_answer(text: str) -> str | None:
    """The answer of a text that says which it is, or that is one, as :func:`extract_answer` finds
    it; ``None`` for a text that only has one somewhere."""
    found = boxed(text)
    if found:
        return found
    lines = _HASHES.findall(text)
    if lines:
        return str(lines[-1]).strip()
    for said in _SAID.findall(text)[-1:]:
        answer = _answer_in(_bare(_REASON.split(said, maxsplit=1)[0])) or _answer_in(_bare(said))
        if answer:
            return answer
    return _bare(text) if _is_answer(_bare(text)) else None


def _bare(text: str) -> str:
    return text.strip(" \t\r\n*").rstrip(".")


def _answer_in(text: str) -> str | None:
    if _is_answer(text):
        return text
    formulas = ["".join(found.groups("")).strip() for found in _FORMULA.finditer(text)]
    shown = [formula for formula in formulas if _is_answer(formula)]
    if shown:
        return shown[-1]
    numbers: list[str] = _NUMBER.findall(text)
    if numbers:
        return numbers[-1]
    return text if 0 < len(text.split()) <= _FEW_WORDS and "\\" not in text else None


def _is_answer(text: str) -> bool:
    """Whether a text is mathematics through and through, units included."""
    plain = _COMMAND.sub(" ", text)
    if not text or len(text) > _LONGEST_BARE or "\n" in text or not all(
            word in _KNOWN or word.casefold() in _MEASURES for word in _WORD.findall(plain)):
        return False
    try:
        return bool(read_answer(text))
    except (Malformed, RecursionError):
        return False
