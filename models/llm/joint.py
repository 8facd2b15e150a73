"""Joint training of LLaMA-Adapter V2 in disjoint groups (arXiv:2304.15010, section 4.2).

Image-text batches update the visual projection and the gates of the early layers that see the
image; instruction batches update late prompts and their gates, norms, biases and scales. Whoever
does not learn from a batch needs no gradient while it runs, and has an optimiser of its own, so
that neither its values nor its optimiser state move, weight decay included.

The paper gives no mixing ratio and no order of batches: :meth:`JointConfig.kinds` spreads the rarer
kind evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.optim import Optimizer

from algorithms import ParameterError
from models.llm.adapter import Adapter
from models.llm.choices import one_of
from models.llm.vision import VisualAttention

__all__ = ["BatchKind", "JointConfig", "JointTraining", "Sharing", "parameter_groups"]

BatchKind = Literal["image_text", "instruction"]
"""What a batch is made of: images with captions, or instructions with responses."""

_LARGEST_MIXTURE = 10**6
"""Batches that shares are told apart by."""

Sharing = Literal["disjoint", "shared"]
"""Whether each kind of batch updates its own parameters alone, or all of them."""


@dataclass(frozen=True)
class JointConfig:
    """How both kinds of batches are trained on.

    sharing: see :data:`Sharing`; ``"shared"`` is the ablation.
    image_text: share of image-text batches, from 0 to 1.

    Raises :class:`ParameterError` for any other value.
    """

    sharing: Sharing = "disjoint"
    image_text: float = 0.5

    def __post_init__(self) -> None:
        one_of("sharing", self.sharing, get_args(Sharing))
        if not 0 <= self.image_text <= 1:
            raise ParameterError("image_text", self.image_text, "must be a share from 0 to 1",
                                 0 if self.image_text < 0 else 1)

    def kinds(self, steps: int) -> list[BatchKind]:
        """The kind of each of ``steps`` batches, the same at every call.

        Of the first n, n times the share are image-text, rounded down. Raises
        :class:`ParameterError` for a negative number.
        """
        if steps < 0:
            raise ParameterError("steps", steps, "must be 0 or more", 0)
        # The fraction that was meant: 2 / 3 in binary falls short of every third whole number.
        share = Fraction(self.image_text).limit_denominator(_LARGEST_MIXTURE)
        return ["image_text" if int((step + 1) * share) > int(step * share) else "instruction"
                for step in range(steps)]


def parameter_groups(model: nn.Module) -> dict[BatchKind, dict[str, nn.Parameter]]:
    """By kind of batch, the dotted names and tensors that learn from it; disjoint.

    Whatever learns and does not belong to the image belongs to the instructions.
    """
    visual = {id(values) for module in model.modules()
              if isinstance(module, Adapter | VisualAttention)
              for values in module.parameters()}
    groups: dict[BatchKind, dict[str, nn.Parameter]] = {"image_text": {}, "instruction": {}}
    for name, values in model.named_parameters():
        if values.requires_grad:
            groups["image_text" if id(values) in visual else "instruction"][name] = values
    return groups


class JointTraining:
    """Steps over batches of both kinds.

    Parameters
    ----------
    model: one that has something to learn from each kind, with ``requires_grad`` set on all of it.
    optimiser: makes an optimiser of a list of parameters, e.g. ``partial(AdamW, lr=1e-3)``. Called
        once for each kind, or once altogether for ``"shared"``.
    config: see :class:`JointConfig`.

    Raises :class:`ParameterError` for a kind of batch that nothing learns from.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: Callable[[list[nn.Parameter]], Optimizer],
        config: JointConfig | None = None,
    ) -> None:
        self.config = config or JointConfig()
        own = parameter_groups(model)
        for kind, group in own.items():
            if not group:
                raise ParameterError("model", type(model).__name__,
                                     f"has nothing that learns from {kind} batches")
        self.groups: dict[BatchKind, dict[str, nn.Parameter]] = own
        """What each kind of batch updates."""
        self.optimisers: dict[BatchKind, Optimizer]
        """The optimiser of each kind; the same one twice for ``"shared"``."""
        if self.config.sharing == "shared":
            everything = own["image_text"] | own["instruction"]
            both = optimiser([*everything.values()])
            self.groups = dict.fromkeys(own, everything)
            self.optimisers = dict.fromkeys(own, both)
        else:
            self.optimisers = {kind: optimiser([*group.values()]) for kind, group in own.items()}
        self.skipped = 0
        """Steps whose loss was not finite, and which changed nothing."""

    @contextmanager
    def learning(self, kind: BatchKind) -> Iterator[None]:
        """Only the group of ``kind`` requires a gradient inside."""
        one_of("kind", kind, get_args(BatchKind))
        learns = {id(values) for values in self.groups[kind].values()}
        others = [values for group in self.groups.values() for values in group.values()
                  if id(values) not in learns]
        for values in others:
            values.requires_grad_(False)
        try:
            yield
        finally:
            for values in others:
                values.requires_grad_(True)

    def step(self, kind: BatchKind, loss: Callable[[], Tensor]) -> Tensor:
        """One update by a batch of ``kind``.

        Parameters
        ----------
        loss: runs the model on the batch and returns a scalar.

        Returns
        -------
        The loss, detached. One that is not finite changes no parameter and counts as skipped.

        Raises :class:`ParameterError` for an unknown kind.
        """
        with self.learning(kind):
            optimiser, value = self.optimisers[kind], loss()
            if not value.isfinite():
                self.skipped += 1
                return value.detach()
            optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return value.detach()

    def state_dict(self) -> dict[str, Any]:
        """State of the optimisers by kind, to go on with later."""
        return {kind: optimiser.state_dict() for kind, optimiser in self.optimisers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        for kind, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state[kind])
