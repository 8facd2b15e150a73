"""Put what commands print beneath them: the result blocks of README.md and of docs/.

A block is ``<!-- COMMAND -->``, a fenced text and ``<!-- end -->``. ``python -m benchmarks.record``
runs every command from the root of the checkout and replaces the text by the command, which a page
shows no comment of, and its output; with words, only commands that contain one of them. A command
that fails leaves its block as it was.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["blocks", "main", "record"]

ROOT = Path(__file__).parents[1]

_BLOCK = re.compile(r"<!-- (?!end -->)(?P<command>.+?) -->\n(?P<text>.*?)<!-- end -->", re.S)


def blocks(page: str) -> dict[str, str]:
    """Command to what stands beneath it, for each block of a page."""
    return {block["command"]: block["text"] for block in _BLOCK.finditer(page)}


def record(page: Path, words: Sequence[str], root: Path = ROOT) -> list[str]:
    """Refill the blocks of ``page`` whose command has one of ``words``, or all without words.

    Returns the commands that failed; their own messages have gone to standard error.
    """
    failed = []
    for command in blocks(page.read_text()):
        if words and not any(word in command for word in words):
            continue
        done = subprocess.run(["bash", "-c", command], cwd=root, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            failed.append(command)
            continue
        printed = "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip("\n")
        fresh = f"<!-- {command} -->\n```text\n$ {command}\n{printed}\n```\n<!-- end -->"
        # Read again: other blocks may have been edited while a command ran for minutes.
        text = page.read_text()
        page.write_text(text.replace(
            f"<!-- {command} -->\n{blocks(text)[command]}<!-- end -->", fresh))
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Refill all pages; the status is 1 if a command failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("words", nargs="*", help="only commands that contain one of these")
    words = parser.parse_args(argv).words
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    failed = [command for page in pages for command in record(page, words)]
    for command in failed:
        print(f"failed, block left as it was: {command}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
