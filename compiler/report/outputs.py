"""The files that ``nmsat compile`` leaves: each a name and a function that renders it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from compiler.pipeline import Compiled
from compiler.report.html import html_report
from compiler.report.trace_events import trace_events
from compiler.schedule.plan_words import encode_plan

__all__ = ["FILES", "render"]


def _trace(compiled: Compiled) -> str:
    trace = trace_events(compiled.sparse, compiled.dense)
    return json.dumps(trace, separators=(",", ":"), allow_nan=False)


def _result(compiled: Compiled) -> str:
    return compiled.result.model_dump_json(indent=2)


def _program(compiled: Compiled) -> bytes:
    return encode_plan(compiled.sparse, compiled.memory)


FILES: Mapping[str, Callable[[Compiled], str | bytes]] = {
    "report.html": html_report,
    "trace.json": _trace,
    "compile.json": _result,
    "program.bin": _program,
}
"""What makes the content of each file; text is UTF-8."""


def render(compiled: Compiled) -> dict[str, str | bytes]:
    """Content of every file by its name; nothing is written."""
    return {name: make(compiled) for name, make in FILES.items()}
