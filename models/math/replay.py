"""Replays the code of recorded solutions and compares what it prints with what was recorded.

Recorded outputs are those of a notebook, on another machine and of other versions. So outputs are
compared without white space, as far as it parts no words; without colours, ``Out[1]:`` and the
notebook's own complaints; with decimals rounded to six places; with sets and dictionaries in any
order; and long output up to where it was cut. Code that printed nothing matches
``<empty_execution>``. Of exceptions and time-outs only the fact counts, not their text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from models.math.sandbox import Outcome
from models.math.solution import Trace
from models.math.solver import EMPTY_EXECUTION, CodeRunner

__all__ = ["AGREEING", "VERDICTS", "CellReplay", "CellVerdict", "RecordedCell", "TraceReplay",
           "compare_output", "recorded_cells", "replay", "verdict_counts"]

CellVerdict = Literal["same", "unordered", "elided", "both raised", "only ours raised",
                      "only recorded raised", "different"]
VERDICTS: tuple[CellVerdict, ...] = (
    "same", "unordered", "elided", "both raised", "only ours raised", "only recorded raised",
    "different")
AGREEING = frozenset(VERDICTS[:4])
"""Verdicts that find no difference. ``unordered``: but for the order of sets and dictionaries;
``elided``: as far as long output was kept."""

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NOISE = re.compile(r"The history saving thread hit an unexpected error \(.*?\)\)?\."
                    r"\s*History will not be written to the database\.|^(?:Out|In) ?\[\d+\]: ?",
                    re.MULTILINE)
_RAISED = re.compile(r"Traceback \(most recent call last\)|Timeout waiting for reply"
                     r"|^[ \t]*[\w.]*(?:Error|Exception|Interrupt)(?::|[ \t]*$)",
                     re.MULTILINE)
_DECIMAL = re.compile(r"(?<![\w.])(\d+\.\d+)(?=[eE][+-]?\d|[^\w.]|\.?$|\.\s)")
_PLACES = Decimal("0.000001")
_ELISION = re.compile(r"\.\.\.+|…|\[output cut after \d+ bytes\]")
_AROUND = re.compile(r"\s*([\[\](){},:;=*/+<>|-])\s*")
_DEEPEST = 50


class RecordedCell(NamedTuple):
    """Code that was run, and what the recording has for its output."""

    code: str
    output: str


class CellReplay(BaseModel):
    """A cell that was run again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str = Field(description="The cell.")
    recorded: str = Field(description="Its recorded output.")
    outcome: Outcome = Field(description="What came of it here.")
    verdict: CellVerdict = Field(description="How the two compare.")


class TraceReplay(BaseModel):
    """All cells of a trace, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: str = Field(description="Where the trace was read, as file:line.")
    cells: tuple[CellReplay, ...] = Field(description="Its cells that were executed.")

    @property
    def agrees(self) -> bool:
        """Whether no cell differs."""
        return all(cell.verdict in AGREEING for cell in self.cells)


def recorded_cells(trace: Trace) -> list[RecordedCell]:
    """The assistant's code blocks that an execution follows; their number is the code usage
    frequency of arXiv:2308.07921."""
    return [RecordedCell(block.content, after.content)
            for message in trace.messages if message.role == "assistant"
            for block, after in zip(message.content, message.content[1:], strict=False)
            if block.type == "code" and after.type == "execution"]


def replay(trace: Trace, runner: CodeRunner) -> TraceReplay:
    """Run the cells of a trace in a fresh sandbox, which stays open, and compare their outputs."""
    cells = []
    for code, recorded in recorded_cells(trace):
        outcome = runner.run(code)
        cells.append(CellReplay(code=code, recorded=recorded, outcome=outcome,
                                verdict=compare_output(recorded, outcome)))
    return TraceReplay(origin=trace.origin, cells=tuple(cells))


def verdict_counts(replays: Iterable[TraceReplay]) -> Counter[CellVerdict]:
    """How many cells have each verdict."""
    return Counter(cell.verdict for each in replays for cell in each.cells)


def compare_output(recorded: str, outcome: Outcome) -> CellVerdict:
    """How a recorded output compares with what came of running its cell again."""
    theirs, ours = _normal(recorded), _normal(outcome.output)
    here, there = outcome.status not in ("ok", "output"), bool(_RAISED.search(_plain(recorded)))
    if here:
        return "both raised" if there else "only ours raised"
    if theirs == ours:
        return "same"
    if there:
        return "only recorded raised"
    if _ordered(theirs) == _ordered(ours):
        return "unordered"
    return "elided" if _elided(theirs, ours) or _elided(ours, theirs) else "different"


def _plain(text: str) -> str:
    return _NOISE.sub("", _ANSI.sub("", text))


def _normal(text: str) -> str:
    """An output with one form for white space, decimals and emptiness."""
    text = " ".join(_plain(text).split())
    return "" if text == EMPTY_EXECUTION else _DECIMAL.sub(_rounded, _AROUND.sub(r"\1", text))


def _rounded(found: re.Match[str]) -> str:
    value = Decimal(found.group())
    if value.adjusted() > 20:
        return found.group()
    return f"{value.quantize(_PLACES, ROUND_HALF_EVEN).normalize():f}"


def _elided(cut: str, whole: str) -> bool:
    """Whether ``whole`` has the parts of ``cut`` in order, its first and last ones at its ends."""
    parts = [part.strip(" ,") for part in _ELISION.split(cut)]
    if len(parts) < 2 or not parts[0] or not whole.startswith(parts[0]):
        return False
    at = len(parts[0])
    for part in parts[1:]:
        found = whole.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return whole.endswith(parts[-1])


def _ordered(text: str) -> str:
    """``text`` with what stands between braces sorted, at every depth."""
    return "".join(_items(iter(re.split(r"([\[\](){},])", text)), "", 0))


def _items(pieces: Iterator[str], closing: str, depth: int) -> list[str]:
    """The items up to a closing bracket, with their commas; sorted up to a closing brace."""
    items = [""]
    for piece in pieces:
        if piece == closing and closing:
            break
        if piece in _CLOSING and depth < _DEEPEST:
            end = _CLOSING[piece]
            items[-1] += piece + "".join(_items(pieces, end, depth + 1)) + end
        elif piece == ",":
            items[-1] += ","
            items.append("")
        else:
            items[-1] += piece
    if closing != "}":
        return items
    return [f"{item}," for item in sorted(item.rstrip(",") for item in items)]


_CLOSING = {"{": "}", "[": "]", "(": ")"}
