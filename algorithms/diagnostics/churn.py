"""How much the masks move: from one look to the next, and from a reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from algorithms.diagnostics.table import aligned
from algorithms.handle import SparseHandle
from algorithms.layers import sparse_layers
from rtl.errors import ParameterError

__all__ = ["ChurnReport", "MaskChange", "MaskChurn"]

_Key = tuple[str, str]


@dataclass(frozen=True)
class MaskChange:
    """The mask of one weight operand: layer by dotted name, ``"FF"`` or ``"BP"``.

    size: weights under the mask.
    changed: positions that differ from the mask at the last update.
    diverged: positions that differ from the reference.
    """

    layer: str
    stage: str
    size: int
    changed: int
    diverged: int

    @property
    def churn(self) -> float:
        """Share of positions that changed since the last update."""
        return self.changed / self.size


@dataclass(frozen=True)
class ChurnReport:
    """All masks of a model at one update; ``str()`` is a table."""

    rows: tuple[MaskChange, ...]

    def churn(self, stage: str) -> float:
        """Share of all of the model's mask positions in ``stage`` that changed; 0 without masks."""
        size = sum(row.size for row in self.rows if row.stage == stage)
        changed = sum(row.changed for row in self.rows if row.stage == stage)
        return changed / size if size else 0.0

    def sad(self, stage: str) -> int:
        """Sparse architecture divergence of the whole model in ``stage``."""
        return sum(row.diverged for row in self.rows if row.stage == stage)

    def __str__(self) -> str:
        cells = [(row.layer or "(model)", row.stage, str(row.size), f"{row.churn:.2%}",
                  str(row.diverged)) for row in self.rows]
        return aligned([("layer", "pass", "weights", "changed", "SAD"), *cells])


class MaskChurn:
    """Follows the masks of a sparse model.

    **Churn** is the share of mask positions that differ from those at the last update: with N:M,
    each exchange of a kept weight for another counts twice. **SAD**, the sparse architecture
    divergence of SR-STE (arXiv:2102.04010), is a count, summed over layers: weights pruned at one
    of two moments of training and not at the other. Here one moment is the reference, at first the
    masks at construction, and the other is the update.

    FF and BP are apart, as a method may prune each along its own axis. A pass that a schedule makes
    dense keeps every weight; one that never was sparse has no row. A kept weight whose operand is
    zero counts as pruned.

    An update compares booleans of the weights' size and waits for the device once. Two masks per
    operand are held, a byte a weight each.

    Raises :class:`ParameterError` for a model without sparse layers.
    """

    def __init__(self, model: SparseHandle | nn.Module) -> None:
        self._model = model.model if isinstance(model, SparseHandle) else model
        if next(sparse_layers(self._model), None) is None:
            raise ParameterError("model", type(self._model).__name__,
                                 "has no sparse layers; call sparsify(model) first")
        self._last: dict[_Key, Tensor | None] = self._masks()
        self._reference = dict(self._last)

    def set_reference(self) -> None:
        """Count SAD from the present masks on."""
        self._reference = self._masks()

    def update(self) -> ChurnReport:
        """Compare the present masks with the last ones and with the reference."""
        present = self._masks()
        found: list[tuple[_Key, int]] = []
        counts: list[Tensor] = []
        for key, mask in present.items():
            last, reference = self._last.get(key), self._reference.get(key)
            of = next((held for held in (mask, last, reference) if held is not None), None)
            if of is not None:
                found.append((key, of.numel()))
                counts += [_differing(mask, last, of), _differing(mask, reference, of)]
        self._last = present
        numbers = torch.stack(counts).tolist() if counts else []
        return ChurnReport(tuple(
            MaskChange(*key, size, changed, diverged) for (key, size), changed, diverged
            in zip(found, numbers[::2], numbers[1::2], strict=True)))

    def _masks(self) -> dict[_Key, Tensor | None]:
        """Masks by layer and pass; ``None`` keeps everything."""
        found: dict[_Key, Tensor | None] = {}
        for name, layer in sparse_layers(self._model):
            patterns = layer.pass_patterns()
            for stage, mask in (("FF", layer.forward_mask), ("BP", layer.backward_mask)):
                found[name, stage] = None if patterns[stage].is_dense else mask()
        return found


def _differing(left: Tensor | None, right: Tensor | None, of: Tensor) -> Tensor:
    """int64 scalar on the device of ``of``: positions that differ; ``None`` keeps everything."""
    if left is right:
        return torch.zeros((), dtype=torch.int64, device=of.device)
    if left is not None and right is not None:
        return (left != right).sum()
    one = left if left is not None else right
    assert one is not None
    return (~one).sum()
