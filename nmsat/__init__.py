"""N:M sparse training, from a PyTorch model to verified hardware.

>>> import nmsat
>>> nmsat.NmPattern.parse("2:8").density
0.25
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from algorithms import sparsify
    from rtl.architecture import Architecture
    from rtl.pattern import NmPattern

__all__ = ["Architecture", "NmPattern", "__version__", "sparsify"]

__version__ = "0.1.0"

_HOMES = {
    "Architecture": "rtl.architecture",
    "NmPattern": "rtl.pattern",
    "sparsify": "algorithms",
}


def __getattr__(name: str) -> object:
    # Importing PyTorch takes seconds; `nmsat --help` should not wait for it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
