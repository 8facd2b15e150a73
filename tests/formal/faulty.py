"""Modules with a seeded fault: a proof that would also hold of these is none."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

__all__ = ["faulty"]


def faulty(module: ModuleType, right: str, wrong: str) -> ModuleType:
    """``module`` again, with the one occurrence of ``right`` in its source replaced."""
    assert module.__file__ is not None
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_faulty", module.__file__)
    assert spec is not None
    copy = importlib.util.module_from_spec(spec)
    with open(module.__file__) as file:
        source = file.read()
    assert source.count(right) == 1, f"{right!r} occurs {source.count(right)} times"
    # Dataclasses look their module up while they are made.
    sys.modules[spec.name] = copy
    try:
        exec(compile(source.replace(right, wrong), module.__file__, "exec"), copy.__dict__)
    finally:
        del sys.modules[spec.name]
    return copy
