"""MathCoder and code-based self-verification as workloads: problems solved by code that is run.

See :mod:`benchmarks.math.word_problems` for the problems and :mod:`benchmarks.math.claims` for the
study.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from algorithms.rules import as_pattern
from benchmarks.llm.tuning import response_loss
from benchmarks.macs import training_macs
from benchmarks.math.arms import PATHS, TEMPERATURE, TEST_PROBLEMS, VOTED_PROBLEMS
from benchmarks.math.mathcoder_training import TRAINING, accuracy, fit, model, training_samples
from benchmarks.math.solutions import Form
from benchmarks.math.verified_sampling import WEIGHTS, sample_votes, won
from benchmarks.math.word_problems import Problem, problems
from benchmarks.training import check_run, reported_patterns
from benchmarks.workload import Batch, Claim, Metric, Progress, Trained, TrainResult, Workload
from models.llm.decoding import Generation
from models.llm.llama import Llama, example, llama
from models.math.labels import collate
from models.math.voting import PLAIN, Weights
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

__all__ = ["CsvVoting", "MathCoder"]

_LOSS_SCALE = 1024.0
_TOKENS = 4
"""Tokens that a step of generation decodes after the prompts."""


class MathCoder(Workload):
    """Full fine-tuning, from scratch, on solutions by code. Size ``full`` is compiled only."""

    name: ClassVar[str] = "mathcoder"
    title: ClassVar[str] = "MathCoder on generated word problems, its code run in the sandbox"
    engine: ClassVar[Literal["chip", "array"]] = "array"
    train_batch: ClassVar[int] = TRAINING["small"].recipe.batch
    step_batch: ClassVar[int] = 2
    seeds: ClassVar[int] = 3
    form: ClassVar[Form] = "code"
    metric: ClassVar[str] = "held-out problems solved, %"
    sandboxed: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    """Whether the step of the workload trains the model; if not, it is frozen after its own."""

    def model(self, size: str, seed: int) -> nn.Module:
        """A Llama with fresh weights."""
        return llama(size, seed) if self.check_size(size) == "full" else model(size, seed)

    def batch(self, size: str, count: int, seed: int = 0) -> Batch:
        """Solved problems; for ``full`` random tokens."""
        if self.check_size(size) == "full":
            ids = example(size, count)
            return Batch(ids, ids)
        available = TRAINING[size].problems
        if not 1 <= count <= available:
            rule = f"must lie between 1 and the {available} training problems"
            raise ParameterError("batch", count, rule, min(max(count, 1), available))
        made = collate(training_samples(size, self.form, seed, count=count))
        return Batch(made.ids, made.labels)

    def score_loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of what the model itself must write."""
        return response_loss(scores, targets)

    def fit(
        self,
        method: str = "bdwp",
        pattern: str | NmPattern = "2:8",
        epochs: int | None = None,
        seed: int = 0,
        size: str = "small",
        progress: Progress | None = None,
        *,
        gradient: str | NmPattern = "1:2",
    ) -> Trained:
        """Train, and solve held-out problems by the inference loop."""
        start = time.perf_counter()
        plan = TRAINING[self.check_size(size, trained=True)]
        check_run(epochs, seed)
        self.check_tools()
        each = -(-plan.problems // plan.recipe.batch)
        steps = plan.recipe.steps if epochs is None else epochs * each
        chosen = as_pattern(pattern, "pattern")
        trained = fit(size, seed, self.form, method=method, pattern=chosen, gradient=gradient,
                      steps=steps, progress=progress)
        value = self._score(trained, size, seed)
        trained.requires_grad_(self.learns)
        samples = self.batch(size, self.train_batch, seed)
        result = TrainResult(
            workload=self.name, method=method,
            **reported_patterns(trained, chosen, gradient),
            seed=seed, epochs=max(1, round(steps / each)),
            metric=Metric(name=self.metric, value=value, higher_is_better=True),
            train_mac_ratio=training_macs(trained, samples.inputs).ratio,
            seconds=time.perf_counter() - start,
        )
        return Trained(trained, result, _LOSS_SCALE)

    def claim(
        self, dense: Sequence[Trained], sparse: Sequence[Trained], speedup: float, size: str
    ) -> Claim:
        """Section 3.2 of the paper: solutions by code beat solutions in words."""
        ours = [run.result.metric.value for run in dense]
        words = [accuracy(fit(size, run.result.seed, "text"),
                          self._asked(size, run.result.seed), "text", size) for run in dense]
        return Claim(
            text="solving by code that is run beats solving in words on each seed, dense, "
                 "equal problems and steps, problems solved in %",
            baseline=fmean(words), ours=fmean(ours),
            holds=all(one > other for one, other in zip(ours, words, strict=True)),
        )

    def _score(self, trained: Llama, size: str, seed: int) -> float:
        return accuracy(trained, self._asked(size, seed), "code", size)

    @staticmethod
    def _asked(size: str, seed: int) -> list[Problem]:
        return problems("test", TEST_PROBLEMS if size == "small" else 40, seed, size)


class CsvVoting(MathCoder):
    """Votes over sampled solutions that check themselves; the model was trained before.

    Its step on the RTL is generation: prefill of a batch of prompts and some tokens with the cache.
    """

    name: ClassVar[str] = "csv"
    title: ClassVar[str] = "Code-based self-verification: weighted votes over checked solutions"
    train_batch: ClassVar[int] = PATHS
    form: ClassVar[Form] = "code-verified"
    learns: ClassVar[bool] = False
    metric: ClassVar[str] = "held-out problems won by weighted votes, %"

    def batch(self, size: str, count: int, seed: int = 0) -> Batch:
        """Prompts (count, S), all cut to the shortest, and the tokens (count, D) that follow."""
        made = super().batch(size, count, seed)
        ids, labels = made.inputs, made.targets
        learnt = labels >= 0
        start = int(learnt.int().argmax(1).min()) if size != "full" else ids.shape[1] - _TOKENS
        return Batch(ids[:, :start], ids[:, start:start + _TOKENS])

    def passes(self, model: nn.Module, batch: Batch) -> Iterator[tuple[nn.Module, tuple[Any, ...]]]:
        """The same generation; nothing learns."""
        assert isinstance(model, Llama)
        yield Generation(model).requires_grad_(False), (batch.inputs, batch.targets)

    def step(self, model: nn.Module, batch: Batch, loss_scale: float) -> list[Tensor]:
        """Generation: the logits behind the prompts and each token that follows."""
        assert isinstance(model, Llama)
        with torch.no_grad():
            return [Generation(model)(batch.inputs, batch.targets)]

    def claim(
        self, dense: Sequence[Trained], sparse: Sequence[Trained], speedup: float, size: str
    ) -> Claim:
        """Section 3.3 of the paper: weighting votes by verdicts beats the plain majority."""
        plain, ours = [], []
        for run in dense:
            assert isinstance(run.model, Llama)
            ours.append(run.result.metric.value)
            plain.append(self._voted(run.model, size, run.result.seed, PLAIN))
        return Claim(
            text="votes weighted by verdicts beat the plain majority on average and lose on no "
                 "seed, dense, problems won in %",
            baseline=fmean(plain), ours=fmean(ours),
            holds=fmean(ours) > fmean(plain)
            and all(one >= other for one, other in zip(ours, plain, strict=True)),
        )

    def _score(self, trained: Llama, size: str, seed: int) -> float:
        return self._voted(trained, size, seed, WEIGHTS)

    def _voted(self, trained: Llama, size: str, seed: int, weights: Weights) -> float:
        asked, paths = ((problems("test", VOTED_PROBLEMS, seed, size), PATHS) if size == "small"
                        else (problems("test", 10, seed, size), 4))
        votes = sample_votes(trained, asked, self.form, paths, TEMPERATURE, seed, size)
        return 100 * fmean(won(votes, asked, weights))
