"""What :func:`algorithms.sparsify` did, layer by layer, as an object that prints itself."""

from __future__ import annotations

from dataclasses import dataclass

from algorithms.methods import Method
from algorithms.plan import LayerPlan

__all__ = ["LayerReport", "SparsityReport"]


@dataclass(frozen=True)
class LayerReport:
    """One weight layer: dotted name, class, weight shape, and its plan.

    ``plan`` is ``None`` for a layer left as it was, and ``reason`` then says why.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    plan: LayerPlan | None
    reason: str = ""

    @property
    def note(self) -> str:
        """Why a pass is dense or padded; empty when there is nothing to explain."""
        if self.plan is None:
            return f"left as is: {self.reason}"
        forward, backward = self.plan.forward.note, self.plan.backward.note
        if forward == backward:
            return forward
        named = (("FF", forward), ("BP", backward))
        return "; ".join(f"{stage}: {note}" for stage, note in named if note)

    def cells(self) -> tuple[str, ...]:
        """The columns of this layer's line in the printed report."""
        patterns = self.plan.executed_patterns().values() if self.plan else ("-", "-", "-")
        shape = "x".join(str(size) for size in self.shape)
        return self.name or "(model)", self.kind, shape, *(str(p) for p in patterns), self.note


@dataclass(frozen=True)
class SparsityReport:
    """Every weight layer of a model under one method; ``str()`` is a table."""

    method: Method
    layers: tuple[LayerReport, ...]

    @property
    def sparse_layers(self) -> tuple[LayerReport, ...]:
        """Layers with at least one N:M pass."""
        return tuple(row for row in self.layers if row.plan and not row.plan.is_dense)

    def __str__(self) -> str:
        header = ("layer", "class", "weight", "FF", "BP", "WU", "note")
        rows = [header, *(row.cells() for row in self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
                 for row in rows]
        lines.append(f"method {self.method.name} ({self.method.summary}): "
                     f"{len(self.sparse_layers)} of {len(self.layers)} layers sparse")
        if self.method.decay:
            lines.append(f"decay {self.method.decay:g}: call decay_pruned(model) before each "
                         "optimiser step, after gradients are unscaled")
        return "\n".join(line.rstrip() for line in lines)
