"""What transformers loads from local folders: models with all their weights, or a one-line error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from algorithms import ParameterError

__all__ = ["first_line", "load_folder", "load_model"]


def load_folder(kind: Any, folder: Path, parameter: str, **options: object) -> Any:
    """``kind.from_pretrained`` of what ``save_pretrained`` made, offline.

    ``parameter`` is what errors call the folder. Raises :class:`ParameterError` for one that cannot
    be loaded.
    """
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as failure:  # what reads JSON, tensors and tokens has no error in common
        raise ParameterError(parameter, str(folder),
                             f"cannot be loaded ({first_line(failure)})") from None


def load_model(kind: Any, folder: Path, parameter: str, **options: object) -> Any:
    """The same for a model.

    Raises :class:`ParameterError` as well where weights are missing or have another shape than the
    configuration says: transformers would draw random ones.
    """
    # Shapes that do not fit are let through, since the error of transformers does not name them.
    model, found = load_folder(kind, folder, parameter, output_loading_info=True,
                               ignore_mismatched_sizes=True, **options)
    for name, has, needs in sorted(found["mismatched_keys"]):
        raise ParameterError(parameter, str(folder), f"has {name} of shape {tuple(has)} where its "
                             f"config.json needs {tuple(needs)}")
    for name in sorted(found["missing_keys"]):
        raise ParameterError(parameter, str(folder), f"has no weights {name}")
    return model


def first_line(failure: Exception) -> str:
    """Of its message; its type where it has none."""
    return next(iter(str(failure).strip().splitlines()), type(failure).__name__)
