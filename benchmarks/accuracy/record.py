"""What one training run is, what it gave, and the file that keeps both."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from algorithms import Method, Schedule, get_method
from benchmarks.accuracy.catalogue import task_class
from benchmarks.accuracy.tasks import Recipe
from benchmarks.run_file import RunFile
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

__all__ = ["Key", "Outcome", "Record", "Spec", "make_spec", "pack_bits", "unpack_bits"]

Key = tuple[str, int]
"""A spec as canonical text, and a seed."""

_TUNABLE = ("batch", "rate", "warmup", "weight_decay", "smoothing")


class Spec(BaseModel):
    """What is trained, all but the seed. Equal runs have equal specs: see :func:`make_spec`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    width: int
    steps: int
    method: str = "dense"
    pattern: str = "dense"
    gradient: str = Field(default="dense", description="Pattern of dY in WU.")
    precision: Literal["native", "fp16"] = "native"
    options: dict[str, float | int | str] = Field(
        default_factory=dict, description="Options of the method.")
    phases: dict[str, float] = Field(
        default_factory=dict, description="Shares of the schedule: warmup, gradual, tail.")
    recipe: dict[str, float] = Field(
        default_factory=dict, description="What differs from the task's recipe.")

    @property
    def key(self) -> str:
        """Canonical text."""
        return json.dumps(self.model_dump(exclude_defaults=True), sort_keys=True)

    @property
    def dense(self) -> Spec:
        """The baseline: dense on the same task, width and steps with the task's own recipe."""
        return Spec(task=self.task, width=self.width, steps=self.steps)

    def make_method(self) -> Method:
        """The method with its options."""
        return get_method(self.method, "method", **self.options)

    def make_schedule(self) -> Schedule | None:
        """The phases, if there are any."""
        return Schedule(self.steps, **self.phases) if self.phases else None

    def make_recipe(self) -> Recipe:
        """The task's recipe with what this run changes."""
        changed = {name: int(value) if name == "batch" else value
                   for name, value in self.recipe.items()}
        own = task_class(self.task, "task").recipe
        return replace(own, steps=self.steps, **changed)  # type: ignore[arg-type]


def make_spec(
    task: str, method: str = "dense", pattern: str = "2:8", *, width: int | None = None,
    steps: int | None = None, gradient: str = "1:2",
    precision: Literal["native", "fp16"] = "native",
    options: Mapping[str, float | int | str] | None = None,
    phases: Mapping[str, float] | None = None, recipe: Mapping[str, float] | None = None,
) -> Spec:
    """A legal spec in which nothing is said that has no effect, so that equal runs are equal.

    Raises :class:`ParameterError` for anything that could not be trained, before a run begins.
    """
    kind = task_class(task)
    chosen = get_method(method, "--methods", **(options or {}))
    prunes = chosen.forward != "dense" or chosen.backward != "dense"
    for name, value in (("width", width), ("steps", steps)):
        if value is not None and value < 1:
            raise ParameterError(f"--{name}", value, "must be at least 1", 1)
    for name in recipe or {}:
        if name not in _TUNABLE:
            raise ParameterError("recipe", name, f"must be one of {', '.join(_TUNABLE)}", "rate")
    made = Spec(
        task=task,
        width=kind.width if width is None else width,
        steps=kind.recipe.steps if steps is None else steps,
        method=method,
        pattern=str(NmPattern.parse(pattern, "--patterns")) if prunes else "dense",
        gradient=str(NmPattern.parse(gradient, "gradient")) if chosen.update == "grad" else "dense",
        precision=precision,
        options=dict(options or {}),
        phases={name: share for name, share in (phases or {}).items() if share},
        recipe=dict(recipe or {}),
    )
    if set(made.phases) - {"warmup", "gradual", "tail"}:
        raise ParameterError("phases", sorted(made.phases), "must be warmup, gradual or tail")
    made.make_schedule()
    return made


class Outcome(BaseModel):
    """What one run gave."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: Spec
    seed: int
    accuracy: float = Field(description="Correct test examples, in per cent.")
    cost: float = Field(description="MACs of training over those of dense, mean over its steps.")
    seconds: float = Field(description="CPU time of training.")
    examples: int = Field(description="Size of the test set.")
    correct: str = Field(description="Which test examples are right: see pack_bits.")

    @model_validator(mode="after")
    def _has_its_bits(self) -> Self:
        self.hits()
        return self

    @property
    def key(self) -> Key:
        """By what the record finds it."""
        return self.spec.key, self.seed

    def hits(self) -> npt.NDArray[np.bool_]:
        """Which of the test examples are right, (examples,)."""
        return unpack_bits(self.correct, self.examples)


def pack_bits(hits: npt.NDArray[np.bool_]) -> str:
    """Booleans as text: eight a byte, zlib, base64."""
    return base64.b64encode(zlib.compress(np.packbits(hits).tobytes(), 9)).decode()


def unpack_bits(text: str, count: int) -> npt.NDArray[np.bool_]:
    """The way back; raises :class:`ValueError` for text that does not hold ``count`` bits."""
    try:
        packed = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), np.uint8)
    except (binascii.Error, zlib.error) as failure:
        raise ValueError(f"not packed bits: {failure}") from None
    if len(packed) != -(-count // 8):
        raise ValueError(f"{8 * len(packed)} bits for {count} examples")
    return np.unpackbits(packed, count=count).astype(bool)


class Record(RunFile[Outcome, Key]):
    """The runs of the file ``path``, by spec and seed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, Outcome, lambda run: run.key)

    def find(self, spec: Spec, seeds: Iterable[int] | None = None) -> dict[int, Outcome]:
        """Outcomes of ``spec`` by seed, of those ``seeds`` that there are, or of all."""
        if seeds is not None:
            keys = [(spec.key, seed) for seed in seeds]
            return {key[1]: self._runs[key] for key in keys if key in self._runs}
        text = spec.key
        return {seed: run for (key, seed), run in sorted(self._runs.items()) if key == text}

    def specs(self) -> list[Spec]:
        """Every spec once, in the order of the file."""
        return list({run.spec.key: run.spec for run in self._runs.values()}.values())
