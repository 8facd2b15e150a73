"""Runs of the adapter study and the file that keeps them, a JSON line a run."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rtl.errors import ParameterError

__all__ = ["Outcome", "Runs"]


class Outcome(BaseModel):
    """What one run gave."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: str = Field(description="Its name.")
    settings: str = Field(description="Changes with everything that the run depends on.")
    seed: int = Field(ge=0, description="Of base, data and tuning.")
    scores: dict[str, float] = Field(description="Exact match of responses, per cent, by test.")
    seconds: float = Field(description="CPU time of tuning; of V2 with its own tests.")


class Runs:
    """The file ``path``, which need not exist; later lines replace earlier ones.

    Raises :class:`ParameterError` with file and line for a line that is no run, and for a path that
    no file can have: in no folder, or a folder itself.
    """

    def __init__(self, path: Path) -> None:
        if path.is_dir() or not path.parent.is_dir():
            raise ParameterError("--record", str(path), "must be a file in a folder that is there")
        self.path = path
        self._found: dict[tuple[str, str, int], Outcome] = {}
        lines = path.read_bytes().splitlines() if path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                self._keep(Outcome.model_validate_json(line))
            except ValidationError as failure:
                raise ParameterError("--record", f"{path}:{number}",
                                     f"is no run ({failure.errors()[0]['msg']})") from None

    def __len__(self) -> int:
        return len(self._found)

    def find(self, variant: str, settings: str) -> dict[int, Outcome]:
        """Runs of a variant under those settings, by seed in order."""
        found = {seed: run for (name, key, seed), run in self._found.items()
                 if (name, key) == (variant, settings)}
        return dict(sorted(found.items()))

    def add(self, outcome: Outcome) -> None:
        """Keep a run, in the file too."""
        self._keep(outcome)
        with self.path.open("a") as file:
            file.write(outcome.model_dump_json() + "\n")

    def _keep(self, outcome: Outcome) -> None:
        self._found[outcome.variant, outcome.settings, outcome.seed] = outcome
