"""What :func:`algorithms.sparsify` did, layer by layer, as an object that prints itself."""

from __future__ import annotations

from dataclasses import dataclass

from algorithms.methods.base import Method
from algorithms.plan import STAGES, LayerPlan

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
    conv_groups: int = 1

    @property
    def note(self) -> str:
        """Why a pass is dense or padded; empty when there is nothing to explain."""
        if self.plan is None:
            return f"left as is: {self.reason}"
        notes = [self.plan.forward.note, self.plan.backward.note, self.plan.update.note]
        if len(set(notes)) == 1:
            return notes[0]
        named = zip(STAGES, notes, strict=True)
        return "; ".join(f"{stage}: {note}" for stage, note in named if note)

    def densities(self) -> dict[str, float]:
        """Multiplications of each pass over those of the dense one, padded groups included.

        The sum of WU runs over batch and pixels, unknown here: the pattern's own density.
        """
        if self.plan is None:
            return dict.fromkeys(STAGES, 1.0)
        patterns = self.plan.executed_patterns()
        channels = {"FF": self.shape[1], "BP": self.shape[0] // self.conv_groups}
        found = {stage: patterns[stage].kept(size) / size for stage, size in channels.items()}
        return found | {"WU": patterns["WU"].density}

    def cells(self) -> tuple[str, ...]:
        """The columns of this layer's line in the printed report."""
        shape = "x".join(str(size) for size in self.shape)
        passes = ["-", "-", "-"]
        if self.plan is not None:
            densities = self.densities()
            passes = [str(pattern) if pattern.is_dense else f"{pattern} {densities[stage]:.1%}"
                      for stage, pattern in self.plan.executed_patterns().items()]
        return self.name or "(model)", self.kind, shape, *passes, self.note


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
        if self.method.decays:
            lines.append(f"decay {self.method.decays:g}: attach(optimiser) of the handle adds it "
                         "to the gradients")
        return "\n".join(line.rstrip() for line in lines)
