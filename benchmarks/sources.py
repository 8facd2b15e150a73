"""Where a model to be compiled comes from: a workload by name, or a factory of the user's."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from algorithms import Rules
from benchmarks.registry import NAMES
from compiler.pipeline import Compiled, compile_model
from models.catalogue import CATALOGUE
from rtl.errors import ParameterError, closest
from rtl.pattern import NmPattern

__all__ = ["COMPILED", "LANGUAGE", "Source", "source"]

LANGUAGE = ("llama-adapter", "llama-adapter-v2", "mathcoder", "csv")
"""Those that :mod:`benchmarks.llm.sources` makes, named here so that it need not be imported."""
COMPILED = (*CATALOGUE, *LANGUAGE)
"""Workloads that can be compiled."""


@dataclass(frozen=True)
class Source:
    """A model with example inputs.

    ``pruned``: globs of layers that are pruned although they would stay dense by default.
    ``training`` is off for what only ever runs forward.
    """

    name: str
    model: nn.Module
    examples: tuple[Any, ...]
    pruned: tuple[str, ...] = ()
    training: bool = True

    def compiled(
        self, *, method: str = "bdwp", pattern: str | NmPattern = "2:8", training: bool = True,
        **options: Any
    ) -> Compiled:
        """The model through :func:`compiler.pipeline.compile_model`."""
        rules: Rules = dict.fromkeys(self.pruned, pattern)
        return compile_model(self.model, *self.examples, method=method, pattern=pattern,
                             rules=rules, name=self.name, training=training and self.training,
                             **options)


def source(
    name: str, size: str = "full", batch: int | None = None, parameter: str = "WORKLOAD"
) -> Source:
    """The model that ``name`` stands for, without weights where it is a workload.

    Parameters
    ----------
    name: a workload, or ``package.module:factory``; ``factory()`` or ``factory(batch)`` returns
        (model, example, ...). It is looked for in the current folder too.
    size: of a workload.
    batch: examples of a step; by default the workload's own.

    Raises :class:`ParameterError` naming ``parameter`` for a name that leads nowhere.
    """
    if ":" in name:
        return _from_factory(name, batch, parameter)
    if name in CATALOGUE:
        entry = CATALOGUE[name]
        with torch.device("meta"):
            model = entry.build(size)
        return Source(name, model, (entry.example(size, batch, "meta"),))
    if name in LANGUAGE:
        from benchmarks.llm.sources import MADE  # transformers takes seconds to import

        with torch.device("meta"):
            return MADE[name](size, batch)
    known = f"must be one of {', '.join(COMPILED)}, or package.module:factory"
    if name in NAMES:
        known = f"is not available in this version, which has: {', '.join(COMPILED)}"
    raise ParameterError(parameter, name, known, closest(name, COMPILED) or COMPILED[0])


def _from_factory(name: str, batch: int | None, parameter: str) -> Source:
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as failure:
        raise ParameterError(parameter, name, f"cannot be imported ({failure})") from None
    factory = getattr(module, attribute, None)
    if not callable(factory):
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise ParameterError(parameter, name, f"{module_name} has no function {attribute!r}",
                             closest(attribute, functions))
    made = _call(factory, batch, name, parameter)
    if not isinstance(made, tuple) or len(made) < 2 or not isinstance(made[0], nn.Module):
        got = type(made).__name__
        raise ParameterError(parameter, name, "its factory must return (model, example, ...), a "
                             f"torch.nn.Module and its inputs; it returned {got}")
    examples = made[1:]
    if batch is not None and isinstance(examples[0], Tensor) and len(examples[0]) != batch:
        raise ParameterError("--batch", batch, f"{name} takes no batch; its example has",
                             len(examples[0]))
    return Source(name, made[0], examples)


def _call(factory: Callable[..., Any], batch: int | None, name: str, parameter: str) -> Any:
    takes_batch = "batch" in inspect.signature(factory).parameters
    try:
        return factory(batch=batch) if takes_batch and batch is not None else factory()
    except Exception as failure:
        raise ParameterError(parameter, name, "its factory failed "
                             f"({type(failure).__name__}: {failure})") from failure
