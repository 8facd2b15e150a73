"""N:M sparse training, from a PyTorch model to verified hardware.

>>> import nmsat
>>> nmsat.NmPattern.parse("2:8").density
0.25
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from algorithms import Schedule, Size, get_method, sparsify, unsparsify
    from compiler.pipeline import compile_model as compile
    from rtl.architecture import Architecture
    from rtl.pattern import NmPattern

__all__ = [
    "Architecture",
    "NmPattern",
    "Schedule",
    "Size",
    "__version__",
    "compile",
    "get_method",
    "sparsify",
    "unsparsify",
]

__version__ = "0.1.0"

_HOMES = {
    "Architecture": ("rtl.architecture", "Architecture"),
    "NmPattern": ("rtl.pattern", "NmPattern"),
    "Schedule": ("algorithms", "Schedule"),
    "Size": ("algorithms", "Size"),
    "compile": ("compiler.pipeline", "compile_model"),
    "get_method": ("algorithms", "get_method"),
    "sparsify": ("algorithms", "sparsify"),
    "unsparsify": ("algorithms", "unsparsify"),
}


def __getattr__(name: str) -> object:
    # Importing PyTorch takes seconds; `nmsat --help` should not wait for it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, attribute = _HOMES[name]
    return getattr(importlib.import_module(home), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
