"""What a run of the adapter study gave, and the file that keeps them."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.run_file import RunFile

__all__ = ["Outcome", "Runs"]


class Outcome(BaseModel):
    """What one run gave."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: str = Field(description="Its name.")
    settings: str = Field(description="Changes with everything that the run depends on.")
    seed: int = Field(ge=0, description="Of base, data and tuning.")
    scores: dict[str, float] = Field(description="Exact match of responses, per cent, by test.")
    seconds: float = Field(description="CPU time of tuning; of V2 with its own tests.")


class Runs(RunFile[Outcome, tuple[str, str, int]]):
    """The runs of the file ``path``, by variant, settings and seed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, Outcome, lambda run: (run.variant, run.settings, run.seed))

    def find(self, variant: str, settings: str) -> dict[int, Outcome]:
        """Runs of a variant under those settings, by seed in order."""
        found = {seed: run for (name, key, seed), run in self._runs.items()
                 if (name, key) == (variant, settings)}
        return dict(sorted(found.items()))
