"""What a workload is: a model, its data, one training step and a metric, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from rtl.errors import ParameterError, closest
from rtl.pattern import NmPattern

__all__ = ["Batch", "Claim", "Metric", "Progress", "TrainResult", "Trained", "Workload"]

Progress = Callable[[int, int, float], None]
"""Called after each epoch with its number from 1, the number of epochs, and the mean loss."""


class Metric(BaseModel):
    """The figure that a workload is judged by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="What was measured, with its unit.")
    value: float = Field(description="The measured value.")
    higher_is_better: bool = Field(description="Direction of improvement.")


class TrainResult(BaseModel):
    """Result of one training run; the keys are those of ``nmsat train --json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: str = Field(description="Name of the workload.")
    method: str = Field(description="Sparse-training method.")
    pattern: str = Field(description="N:M, or dense where the method prunes nothing.")
    seed: int = Field(description="Seed of initialisation, order and data split.")
    epochs: int = Field(description="Passes over the training data.")
    metric: Metric = Field(description="Quality on held-out data after the last epoch.")
    train_mac_ratio: float = Field(
        description="Multiply-accumulates of FF, BP and WU over those of dense training.")
    seconds: float = Field(description="Wall time of training and evaluation.")
    gradient: str = Field("dense", description="Pattern of the sampled dY in WU; dense if it is "
                          "not.")


class Claim(BaseModel):
    """The claim of a workload's paper, restated for the data at hand, and whether it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(description="The claim.")
    baseline: float = Field(description="Figure of the baseline.")
    ours: float = Field(description="Figure of the method under test.")
    holds: bool = Field(description="Whether the claim holds for these figures.")


@dataclass(frozen=True)
class Batch:
    """Model inputs and targets of one step; the first axis counts examples."""

    inputs: Tensor
    targets: Tensor

    def to(self, device: str) -> Self:
        """All of it on another device."""
        return replace(self, **{part.name: getattr(self, part.name).to(device)
                                for part in fields(self)})


@dataclass(frozen=True)
class Trained:
    """A trained model beside its result.

    loss_scale: of a further step; what its last one used, if its training scales losses.
    """

    model: nn.Module
    result: TrainResult
    loss_scale: float


class Workload(ABC):
    """One system to train, compile and simulate. Instances hold no state."""

    name: ClassVar[str]
    """What the command line calls it."""
    title: ClassVar[str]
    """One line for reports."""
    sizes: ClassVar[tuple[str, ...]] = ("tiny", "small", "full")
    trainable: ClassVar[tuple[str, ...]] = ("tiny", "small")
    """Sizes that can be trained here; the others are compiled and costed only."""

    engine: ClassVar[Literal["chip", "array"]] = "chip"
    """Which RTL runs its training step: the chip, as one program, or the array, product by product,
    for models that the chip's program generator does not take."""
    sandboxed: ClassVar[bool] = False
    """Whether code of the model runs, for which the sandbox must be installed."""
    train_batch: ClassVar[int]
    """Examples of a training step in the workload's own recipe."""
    seeds: ClassVar[int] = 5
    """Seeds of a benchmark run."""
    step_batch: ClassVar[int] = 16
    """Examples in the training step that runs on the RTL: few, for time's sake."""

    @abstractmethod
    def model(self, size: str, seed: int) -> nn.Module:
        """A fresh dense model whose initial weights depend on ``seed`` alone."""

    @abstractmethod
    def batch(self, size: str, count: int, seed: int = 0) -> Batch:
        """``count`` training examples, drawn by ``seed``, from the data that ``seed`` trains on."""

    @abstractmethod
    def score_loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The scalar that training minimises, unscaled, from the model's output."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """:meth:`score_loss` of the model on a batch."""
        return self.score_loss(model(batch.inputs), batch.targets)

    @abstractmethod
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
        """Train and evaluate; arguments as for :meth:`train`."""

    @abstractmethod
    def claim(
        self, dense: Sequence[Trained], sparse: Sequence[Trained], speedup: float, size: str
    ) -> Claim:
        """The claim of the workload's paper, judged.

        ``dense`` and ``sparse`` are runs of equal seeds, ``speedup`` that of a step of
        ``train_batch`` examples. What else the claim compares is trained here, for the same seeds.
        """

    def train(
        self,
        method: str = "bdwp",
        pattern: str | NmPattern = "2:8",
        epochs: int | None = None,
        seed: int = 0,
        size: str = "small",
        progress: Progress | None = None,
        *,
        gradient: str | NmPattern = "1:2",
    ) -> TrainResult:
        """Train from scratch and measure on held-out data.

        Parameters
        ----------
        method, pattern, gradient: as for :func:`algorithms.sparsify`.
        epochs: passes over the training data; the workload's own recipe when ``None``.
        seed: chooses initialisation, order and data split; the same for every method.
        size: one of :attr:`trainable`.
        progress: called after each epoch.

        Raises
        ------
        ParameterError: unknown method, pattern or size, ``epochs`` below 1, ``seed`` below 0.
        """
        return self.fit(method, pattern, epochs, seed, size, progress, gradient=gradient).result

    def training_step(self, model: nn.Module, batch: Batch, loss_scale: float = 1024.0) -> float:
        """One forward pass, loss and backward pass in training mode; returns the unscaled loss.

        Gradients replace those in ``.grad`` and stay multiplied by ``loss_scale``, as a chip sees
        them. No parameter changes; batch normalisation moves its running statistics.
        """
        was_training = model.training
        model.train()
        model.zero_grad(set_to_none=True)
        loss = self.loss(model, batch)
        (loss * loss_scale).backward()  # type: ignore[no-untyped-call]
        model.train(was_training)
        return loss.item()

    def step(self, model: nn.Module, batch: Batch, loss_scale: float) -> list[Tensor]:
        """What runs on the RTL of the array: a training step. Returns what is compared beside the
        gradients, the loss."""
        return [torch.tensor(self.training_step(model, batch, loss_scale))]

    def passes(self, model: nn.Module, batch: Batch) -> Iterator[tuple[nn.Module, tuple[Any, ...]]]:
        """What the compiler is given of :meth:`step`: one after the other, modules and their
        inputs, with ``requires_grad`` as it is in that pass while the caller has it."""
        yield model, (batch.inputs,)

    def check_tools(self) -> None:
        """Raise :class:`sim.toolchain.ToolError` if training needs what is not installed."""
        if self.sandboxed:
            from benchmarks.math.shared_sandbox import require_sandbox

            require_sandbox()

    def check_size(self, size: str, trained: bool = False) -> str:
        """``size`` if it exists and, with ``trained``, can be trained."""
        legal = self.trainable if trained else self.sizes
        if size in legal:
            return size
        if size in self.sizes:
            rule = "is compiled and costed, not trained"
            raise ParameterError("size", size, rule, self.trainable[-1])
        rule = f"must be one of {', '.join(legal)}"
        raise ParameterError("size", size, rule, closest(str(size), legal) or legal[-1])
