"""Training of language models with AdamW, warm-up and cosine, and the exact match of responses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms import ParameterError
from benchmarks.llm.finetune import rate_factor
from benchmarks.training import reproducible
from benchmarks.workload import Progress
from models.llm.instructions import (
    IGNORED,
    InstructionBatch,
    TokenisedInstruction,
    instruction_batches,
)

__all__ = [
    "TuningRecipe", "endless", "exact_hits", "exact_match", "minimise_steps", "response_loss",
    "tune",
]

_TEST_BATCH = 256
_EPOCHS_APART = 1_000_003


@dataclass(frozen=True)
class TuningRecipe:
    """AdamW; the rate rises linearly over the share ``warmup`` of the steps, then falls as a cosine
    to 0. clip: largest norm of the gradient. The betas are those of LLaMA-Adapter."""

    steps: int
    batch: int
    rate: float
    warmup: float = 0.1
    weight_decay: float = 0.02
    clip: float = 1.0

    def rate_at(self, step: int) -> float:
        """Learning rate of ``step``, counted from 0."""
        return self.rate * rate_factor(step, self.steps, self.warmup)

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
        """AdamW over ``parameters``."""
        return torch.optim.AdamW(parameters, lr=self.rate, betas=(0.9, 0.95),
                                 weight_decay=self.weight_decay)


def response_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the labelled tokens, each predicted at the position before it."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(),
                           ignore_index=IGNORED)


def minimise_steps(
    model: nn.Module, losses: Iterator[Callable[[], Tensor]], recipe: TuningRecipe,
    progress: Progress | None = None,
) -> None:
    """Run ``recipe`` on what of ``model`` requires a gradient.

    Parameters
    ----------
    losses: for each step what runs the model and returns the loss.
    progress: called ten times, or after each step where there are fewer.

    Raises
    ------
    ParameterError: nothing of the model learns, or the loss of a step is not finite.
    """
    learning = [values for values in model.parameters() if values.requires_grad]
    if not learning:
        raise ParameterError("model", type(model).__name__, "has nothing that learns")
    optimiser = recipe.optimiser(learning)
    model.train()
    parts = min(10, recipe.steps)
    since: list[float] = []
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate_at(step)
        optimiser.zero_grad()
        value = next(losses)()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learning, recipe.clip)
        optimiser.step()
        since.append(value.item())
        if not math.isfinite(since[-1]):
            raise ParameterError("recipe", recipe, f"training diverged in step {step + 1}")
        done = (step + 1) * parts // recipe.steps
        if done > step * parts // recipe.steps:
            if progress is not None:
                progress(done, parts, fmean(since))
            since.clear()


def endless(
    samples: Sequence[TokenisedInstruction], batch: int, seed: int
) -> Iterator[InstructionBatch]:
    """Batches without end, in a new order each time around."""
    for epoch in itertools.count():
        yield from instruction_batches(samples, batch, seed=seed + epoch * _EPOCHS_APART)


def tune(
    model: nn.Module, samples: Sequence[TokenisedInstruction], recipe: TuningRecipe, seed: int,
    progress: Progress | None = None,
) -> None:
    """Train what of ``model`` requires a gradient, in place, on responses alone.

    ``model`` takes ids (B, S) to logits. The order of samples comes from ``seed``; torch runs on
    one thread. Errors as for :func:`minimise_steps`.
    """
    with reproducible(seed):
        minimise_steps(model, (partial(_loss, model, batch) for batch in
                               endless(samples, recipe.batch, seed)), recipe, progress)


def exact_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each sequence, whether greedy generation gives its response and the end, (B,) bool.

    ``logits`` are those of the right sequence, (B, S, vocabulary), in place of generation: the
    first token that generation gets wrong is predicted from a prefix that is right so far, and so
    it is here; without one generation is never led astray. So the two agree on every sequence, and
    this takes one pass.
    """
    made, wanted = logits[:, :-1].argmax(-1), labels[:, 1:]
    return ((made == wanted) | (wanted == IGNORED)).all(1)


def exact_match(model: nn.Module, samples: Sequence[TokenisedInstruction]) -> float:
    """Per cent of samples whose response greedy generation gives exactly: :func:`exact_hits`."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        hits = torch.cat([exact_hits(model(batch.ids), batch.labels)
                          for batch in instruction_batches(samples, _TEST_BATCH)])
    model.train(was_training)
    return 100 * float(hits.double().mean())


def _loss(model: nn.Module, batch: InstructionBatch) -> Tensor:
    return response_loss(model(batch.ids), batch.labels)
