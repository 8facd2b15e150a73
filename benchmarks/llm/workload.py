"""LLaMA-Adapter V1 and V2 as workloads: adapters learn to follow instructions over a frozen base.

The base is pre-trained here first, dense or with the sparse method, and stays frozen with its
masks: see :mod:`benchmarks.llm.tasks` for the language and :mod:`benchmarks.llm.claims` for the
study.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from algorithms.rules import as_pattern
from benchmarks.llm.captioning import Captioner, Mixture
from benchmarks.llm.encoding import encode
from benchmarks.llm.pretraining import pretrained
from benchmarks.llm.runs import CAPTIONED, CAPTIONS_TESTED, EXAMPLES, TESTED, V1_RECIPE, V2_RECIPE
from benchmarks.llm.tasks import instruction_data
from benchmarks.llm.tuning import TuningRecipe, exact_match, response_loss, tune
from benchmarks.macs import training_macs
from benchmarks.training import check_run, reported_patterns, reproducible
from benchmarks.workload import Batch, Claim, Metric, Progress, Trained, TrainResult, Workload
from models.llm.adapter import AdapterConfig, insert_adapter
from models.llm.adapter_v2 import image_example, llama_adapter_v2, v2_config
from models.llm.instructions import TokenisedInstruction, instruction_batches
from models.llm.joint import BatchKind, JointTraining, Sharing
from models.llm.llama import LLAMA_SIZES, Llama, example, llama_adapter
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

__all__ = ["LlamaAdapter", "LlamaAdapterV2"]

_LOSS_SCALE = 1024.0
_SAMPLES = {"tiny": 300, "small": EXAMPLES}
_TESTED = {"tiny": 100, "small": TESTED}
"""Instructions of training and of test, by size."""
_PICTURES = {"tiny": (100, 20), "small": (CAPTIONED, CAPTIONS_TESTED)}
"""Pictures likewise."""


def _samples(split: Literal["train", "test"], size: str, seed: int) -> list[TokenisedInstruction]:
    count = (_SAMPLES if split == "train" else _TESTED)[size]
    return encode(instruction_data(split, count, seed, size), size)


class LlamaAdapter(Workload):
    """Version 1. Size ``full`` is LLaMA-7B and is compiled only."""

    name: ClassVar[str] = "llama-adapter"
    title: ClassVar[str] = "LLaMA-Adapter V1 over a frozen base, instructions of a small language"
    engine: ClassVar[Literal["chip", "array"]] = "array"
    train_batch: ClassVar[int] = V1_RECIPE.batch
    step_batch: ClassVar[int] = 2
    seeds: ClassVar[int] = 3
    recipes: ClassVar[dict[str, TuningRecipe]] = {
        "tiny": replace(V1_RECIPE, steps=300), "small": V1_RECIPE}

    def model(self, size: str, seed: int) -> nn.Module:
        """A base with fresh weights, frozen, and its adapter."""
        return llama_adapter(self.check_size(size), seed)

    def batch(self, size: str, count: int, seed: int = 0) -> Batch:
        """Instructions with their responses, shortest first; for ``full`` random tokens."""
        if self.check_size(size) == "full":
            ids = example(size, count)
            return Batch(ids, ids)
        if not 1 <= count <= _SAMPLES[size]:
            rule = f"must lie between 1 and the {_SAMPLES[size]} training instructions"
            raise ParameterError("batch", count, rule, min(max(count, 1), _SAMPLES[size]))
        first = next(instruction_batches(_samples("train", size, seed), count))
        return Batch(first.ids, first.labels)

    def score_loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of the tokens of responses."""
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
        """Pre-train the base with the method if the cache lacks it, and tune the adapter.

        ``gradient`` says nothing here: no weight that is pruned has a weight gradient.
        """
        return self._fit(method, pattern, epochs, seed, size, progress, {})

    def claim(
        self, dense: Sequence[Trained], sparse: Sequence[Trained], speedup: float, size: str
    ) -> Claim:
        """Section 3.2 of the paper: gates that start at zero beat prompts that act at once."""
        ours = [run.result.metric.value for run in dense]
        others = [self._fit("dense", "2:8", None, run.result.seed, size, None,
                            {"gated": False}).result.metric.value for run in dense]
        return Claim(
            text="zero-init gates beat random prompts without gates on each seed, dense base, "
                 "exact match in %",
            baseline=fmean(others), ours=fmean(ours),
            holds=all(one > other for one, other in zip(ours, others, strict=True)),
        )

    def _config(self, size: str, changes: dict[str, object]) -> AdapterConfig:
        shape = LLAMA_SIZES[size]
        return AdapterConfig.make(layers=shape.adapted, prompt=shape.prompt, **changes)

    def _fit(
        self, method: str, pattern: str | NmPattern, epochs: int | None, seed: int, size: str,
        progress: Progress | None, changes: dict[str, object],
    ) -> Trained:
        """:meth:`fit`, with ``changes`` to what is fitted."""
        start = time.perf_counter()
        recipe = self.recipes[self.check_size(size, trained=True)]
        check_run(epochs, seed)
        each = -(-_SAMPLES[size] // recipe.batch)
        if epochs is not None:
            recipe = replace(recipe, steps=epochs * each)
        chosen = as_pattern(pattern, "pattern")
        model = pretrained(size, method, chosen, seed, progress)
        with reproducible(seed):
            self._tune(model, recipe, size, seed, progress, changes)
            model.eval()
            value = exact_match(model, _samples("test", size, seed))
        inputs = self.batch(size, min(self.train_batch, _SAMPLES[size]), seed).inputs
        result = TrainResult(
            workload=self.name, method=method,
            **reported_patterns(model, chosen, "dense"),
            seed=seed, epochs=max(1, round(recipe.steps / each)),
            metric=Metric(name="exact match of held-out responses, %", value=value,
                          higher_is_better=True),
            train_mac_ratio=training_macs(model, inputs).ratio,
            seconds=time.perf_counter() - start,
        )
        return Trained(model, result, _LOSS_SCALE)

    def _tune(
        self, model: Llama, recipe: TuningRecipe, size: str, seed: int,
        progress: Progress | None, changes: dict[str, object],
    ) -> None:
        insert_adapter(model.base, self._config(size, changes))
        tune(model, _samples("train", size, seed), recipe, seed, progress)


@dataclass(frozen=True)
class JointBatch(Batch):
    """Instructions, and captions with the features of their pictures."""

    captions: Tensor
    caption_labels: Tensor
    features: Tensor


class LlamaAdapterV2(LlamaAdapter):
    """Version 2: captions of pictures and instructions in turns, a group of parameters each."""

    name: ClassVar[str] = "llama-adapter-v2"
    title: ClassVar[str] = "LLaMA-Adapter V2 over a frozen base, captions and instructions jointly"
    recipes: ClassVar[dict[str, TuningRecipe]] = {
        "tiny": replace(V2_RECIPE, steps=180), "small": replace(V2_RECIPE, steps=900)}

    def model(self, size: str, seed: int) -> nn.Module:
        """A base with fresh weights, frozen, and its adapter."""
        return llama_adapter_v2(self.check_size(size), seed)

    def batch(self, size: str, count: int, seed: int = 0) -> JointBatch:
        """As many captions beside the instructions."""
        made = super().batch(size, count, seed)
        if size == "full":
            return JointBatch(made.inputs, made.targets, made.inputs, made.targets,
                              image_example(size, count))
        pictures, features = next(_captioner(size, seed).batches(count, seed))
        return JointBatch(made.inputs, made.targets, pictures.ids, pictures.labels, features)

    def passes(self, model: nn.Module, batch: Batch) -> Iterator[tuple[nn.Module, tuple[Any, ...]]]:
        """Both kinds of batches, each while the group that learns from it learns."""
        assert isinstance(batch, JointBatch)
        inputs: dict[BatchKind, tuple[Tensor, ...]] = {
            "image_text": (batch.captions, batch.features), "instruction": (batch.inputs,)}
        joint = JointTraining(model, V2_RECIPE.optimiser)
        for kind, given in inputs.items():
            with joint.learning(kind):
                yield model, given

    def step(self, model: nn.Module, batch: Batch, loss_scale: float) -> list[Tensor]:
        """Both kinds of batches, one after the other, each with the group that learns from it."""
        assert isinstance(batch, JointBatch)
        found = []
        for (_, given), targets in zip(self.passes(model, batch),
                                       (batch.caption_labels, batch.targets), strict=True):
            value = self.score_loss(model(*given), targets)
            (value * loss_scale).backward()  # type: ignore[no-untyped-call]
            found.append(value.detach())
        return found

    def claim(
        self, dense: Sequence[Trained], sparse: Sequence[Trained], speedup: float, size: str
    ) -> Claim:
        """Section 4.2 of the paper: groups of their own keep the two tasks from interfering."""
        ours = [self._both(run, size) for run in dense]
        shared = [self._both(self._fit("dense", "2:8", None, run.result.seed, size, None,
                                       {"sharing": "shared"}), size) for run in dense]
        return Claim(
            text="disjoint groups beat shared ones on each seed, dense base, mean of instructions "
                 "and captions, exact match in %",
            baseline=fmean(shared), ours=fmean(ours),
            holds=all(one > other for one, other in zip(ours, shared, strict=True)),
        )

    @staticmethod
    def _both(run: Trained, size: str) -> float:
        assert isinstance(run.model, Llama)
        with reproducible(run.result.seed):
            captions = _captioner(size, run.result.seed).scores(run.model)["caption"]
        return fmean([run.result.metric.value, captions])

    def _tune(
        self, model: Llama, recipe: TuningRecipe, size: str, seed: int,
        progress: Progress | None, changes: dict[str, object],
    ) -> None:
        sharing: Sharing = "shared" if changes.get("sharing") == "shared" else "disjoint"
        third = recipe.steps // 3
        insert_adapter(model.base, v2_config(size))
        _captioner(size, seed).tune(
            model, _samples("train", size, seed), recipe,
            Mixture(sharing, third, recipe.steps - third), seed, progress)


@lru_cache(maxsize=2)
def _captioner(size: str, seed: int) -> Captioner:
    """Kept: its pictures go through the tower once."""
    return Captioner(size, seed, *_PICTURES[size])
