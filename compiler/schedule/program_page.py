"""The reference page of ``program.bin``, written from the declaration of its words.

``python -m compiler.schedule.program_page`` rewrites ``docs/program.md``; a test compares the two.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from compiler.schedule.plan_words import PLAN_BYTES, WORDS, WordKind

__all__ = ["PAGE", "main", "program_page"]

PAGE = Path(__file__).parents[2] / "docs" / "program.md"
"""Where the page lies."""

_HEAD = f"""# program.bin: the schedule of a training step

<!-- Written by `python -m compiler.schedule.program_page`; do not edit. -->

`nmsat compile` writes what the scheduler decided as a sequence of {PLAN_BYTES * 8}-bit words, least
significant byte first, one for each task in the order of execution. The lowest 8 bits are the
opcode; fields follow without gaps, bits above them are zero. A signed field is in two's
complement. `compiler/schedule/plan_words.py` declares the words, reads them back (`decode_plan`)
and prints them (`plan_text`).

These words stand above the chip's own instructions ([isa.md](isa.md)): they say how each GEMM is
cut, not each step of it. `compiler/schedule/sampling.py` turns them into tiles of the array.
"""


def program_page() -> str:
    """The page as Markdown."""
    return _HEAD + "".join(_section(kind) for kind in WORDS)


def _section(kind: WordKind) -> str:
    lines = [f"\n## {kind.name}", "", f"Opcode {kind.opcode}. {kind.doc}"]
    if kind.fields:
        lines += ["", "| bits | field | legal values | meaning |", "|---|---|---|---|"]
        first = 8
        for field in kind.fields:
            last = first + field.width - 1
            bits = f"{last}:{first}" if last > first else str(first)
            lines.append(f"| {bits} | `{field.name}` | {field.low} to {field.top} | {field.doc} |")
            first = last + 1
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page."""
    argparse.ArgumentParser(prog="python -m compiler.schedule.program_page",
                            description=__doc__).parse_args(arguments)
    PAGE.write_text(program_page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
