"""Sessions to attack: told apart by a mark, checked before and after."""

from __future__ import annotations

import itertools
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from models.math.sandbox import INSTALL, Limits, Outcome, Sandbox

MIB = 1 << 20
needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason=f"bubblewrap is not installed; {INSTALL}")
_NUMBERS = itertools.count(secrets.randbelow(10**9))


def marked(mark: str) -> list[int]:
    """Processes that still live and name ``mark`` in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (entry.name.isdigit() and mark.encode() in (entry / "cmdline").read_bytes()
                    and ") Z" not in (entry / "stat").read_text()):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def fresh_size() -> int:
    """A limit on files that no other session has."""
    return 16 * MIB + next(_NUMBERS)


def mark_of(size: int) -> str:
    """What the arguments of a session's processes hold, of its limit on files."""
    return f'"file_bytes": {size},'


class Target(NamedTuple):
    """A session under attack, and a text in the arguments of all its processes."""

    session: Sandbox
    mark: str

    def run(self, code: str) -> Outcome:
        return self.session.run(code)


def target(isolation: str = "auto", **limits: float) -> Target:
    """A roomy session of its own mark, which is the size that its files may have."""
    size = fresh_size()
    settings = {"cell_seconds": 60.0, "replay_seconds": 60.0, "file_bytes": size, **limits}
    session = Sandbox(Limits(**settings), isolation)  # type: ignore[arg-type]
    return Target(session, mark_of(size))


def contained(under: Target) -> Iterator[Target]:
    """The session, which must still work after the attack, and leave no process when closed."""
    assert marked(under.mark)
    yield under
    # more than once, as a busy machine may keep it from an answer within a short limit
    assert "42" in (under.run("6 * 7").output for _ in range(5))
    under.session.close()
    assert marked(under.mark) == []
