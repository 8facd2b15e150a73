"""Programs on record: a refactor of the compiler must emit the very same words.

``python -m benchmarks.replay`` compares the programs of this version with ``replay.json``; with
``--record`` it writes them there, which whoever means to change a schedule does. The record has a
digest a program, of the networks' plans (``program.bin``) and of the chip's own programs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import chip_cycles
from benchmarks.sources import COMPILED, source
from compiler.schedule.plan_words import PLAN_BYTES, encode_plan
from rtl.chunk import WORD_BYTES
from rtl.pattern import NmPattern

__all__ = ["RECORD", "Program", "differences", "main", "programs"]

RECORD = Path(__file__).with_name("replay.json")
"""The checked-in digests."""

_PATTERNS = ("dense", "2:8")


class Program(NamedTuple):
    """A program's name, number of words, and digest."""

    name: str
    words: int
    digest: str


def _program(name: str, raw: bytes, word_bytes: int) -> Program:
    return Program(name, len(raw) // word_bytes, hashlib.sha256(raw).hexdigest()[:16])


def programs() -> Iterator[Program]:
    """Every program of the record, made anew."""
    for pattern in _PATTERNS:
        for name in COMPILED:
            for size, arch in (("tiny", "tiny"), ("small", "paper")):
                made = source(name, size).compiled(arch=arch, pattern=NmPattern.parse(pattern))
                yield _program(f"{name} {size} {pattern} on {arch}",
                               encode_plan(made.sparse, made.memory), PLAN_BYTES)
        words = chip_cycles.compiled(pattern).program
        raw = b"".join(word.to_bytes(WORD_BYTES, "little") for word in words)
        yield _program(f"plain tiny {pattern}, the chip's program", raw, WORD_BYTES)


def differences(made: Sequence[Program]) -> list[str]:
    """What differs from the record, a line each; empty if nothing does."""
    known = {name: (words, digest) for name, words, digest in json.loads(RECORD.read_text())}
    lines = [f"{name}: not made any more" for name in known if name not in {p.name for p in made}]
    for program in made:
        if program.name not in known:
            lines.append(f"{program.name}: not on record")
        elif known[program.name] != (program.words, program.digest):
            lines.append(f"{program.name}: {known[program.name][0]:,} words on record, "
                         f"{program.words:,} now, and they differ")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, or record; status 1 if something differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the record")
    options = parser.parse_args(arguments)
    made = list(programs())
    if options.record:
        RECORD.write_text("[\n" + ",\n".join(json.dumps(one) for one in made) + "\n]\n")
        return 0
    lines = differences(made)
    print("\n".join(lines or [f"{len(made)} programs, all as on record"]))
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
