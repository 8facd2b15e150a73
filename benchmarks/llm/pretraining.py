"""Bases for adapters: small Llama models trained from scratch on the corpus, kept on disk.

A seed, a size and a method give one base, trained on one thread within minutes. Its weights go into
the cache folder under a name that changes with everything that goes in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from algorithms import sparsify
from benchmarks.llm.encoding import packed_corpus, tokenizer
from benchmarks.llm.tasks import language
from benchmarks.llm.tuning import TuningRecipe, minimise_steps
from benchmarks.training import reproducible
from benchmarks.workload import Progress
from models.llm.llama import LLAMA_SIZES, Llama, llama
from rtl.pattern import NmPattern
from sim.build import content_key
from sim.toolchain import cache_dir, locked

__all__ = ["PRETRAINING", "Pretraining", "pretrained"]


@dataclass(frozen=True)
class Pretraining:
    """How a base is trained: packed sequences of ``tokens`` and a recipe.

    other: weight in the loss of tokens that are no answer. Most of them are inputs drawn at random,
    which nothing predicts and which drown the answers' gradient.
    """

    recipe: TuningRecipe
    tokens: int
    other: float = 0.05


PRETRAINING = {
    "tiny": Pretraining(TuningRecipe(steps=240, batch=16, rate=5e-3), tokens=32),
    "small": Pretraining(TuningRecipe(steps=2000, batch=32, rate=4e-3), tokens=32),
}

_VERSION = 1
"""Raised when the code here changes what a seed gives; data and recipes count by themselves."""


def pretrained(
    size: str,
    method: str = "dense",
    pattern: str | NmPattern = "2:8",
    seed: int = 0,
    progress: Progress | None = None,
) -> Llama:
    """A base that knows the language of its size, from the cache or trained now.

    Parameters
    ----------
    size: a size of :data:`PRETRAINING`.
    method, pattern: as for :func:`algorithms.sparsify`, in whose layers the base stays for any
        method but ``"dense"``; in native precision.
    seed: of weights and corpus.
    progress: told of the training, if there is any.

    Raises :class:`ParameterError` for a size that has no language, an unknown method or pattern.
    """
    language(size)
    plan = PRETRAINING[size]
    with torch.random.fork_rng(devices=[]):
        model = llama(size, seed)
    if method != "dense":
        sparsify(model, method, pattern, precision="native")
    start = [row.ids for row in islice(packed_corpus(size, plan.tokens, seed), 64)]
    shape = replace(LLAMA_SIZES[size], adapted=0, prompt=0, batch=0, tokens=0)
    key = content_key(_VERSION, torch.__version__, shape, plan, method,
                      "" if method == "dense" else str(pattern), seed, start,
                      sorted(tokenizer(size).get_vocab().items()))
    folder = cache_dir() / "llm"
    folder.mkdir(exist_ok=True)
    path = folder / f"{key}.safetensors"
    if not path.is_file():
        with locked(folder / f"{key}.lock"):
            if not path.is_file():
                _train(model, size, plan, seed, progress)
                _save(model, path)
    model.load_state_dict(load_file(path))
    return model.eval()


def _train(model: Llama, size: str, plan: Pretraining, seed: int, progress: Progress | None
           ) -> None:
    rows = packed_corpus(size, plan.tokens, seed)

    def losses() -> Iterator[partial[Tensor]]:
        while True:
            batch = [next(rows) for _ in range(plan.recipe.batch)]
            ids = torch.tensor([row.ids for row in batch])
            answers = torch.tensor([row.answers for row in batch])
            yield partial(_loss, model, ids, torch.where(answers, 1.0, plan.other))

    with reproducible(seed):
        minimise_steps(model, losses(), plan.recipe, progress)


def _loss(model: Llama, ids: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of every token but the first, weighted."""
    each = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(),
                           reduction="none")
    weight = weights[:, 1:].flatten()
    return (each * weight).sum() / weight.sum()


def _save(model: Llama, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        save_file(model.state_dict(), made)
        made.rename(path)
