"""What the claims train, and the record of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.math.encoding import tokenizer
from benchmarks.math.mathcoder_training import TRAINING, Mode, fit, hits, training_samples
from benchmarks.math.solutions import Form
from benchmarks.math.verified_sampling import WEIGHTS, information, sample_votes, shuffled, won
from benchmarks.math.word_problems import problems
from benchmarks.run_file import RunFile
from models.llm.instructions import IGNORED
from models.llm.llama import LLAMA_SIZES
from models.math.solution import BlockType
from sim.build import content_key

__all__ = ["ARMS", "PATHS", "TEMPERATURE", "Arm", "Record", "Run", "run_arm",
           "settings_key"]

TEST_PROBLEMS = 200
VOTED_PROBLEMS = 100
PATHS = 16
TEMPERATURE = 0.7
_VERSION = 1
"""Raised when the code changes what a run gives; settings count by themselves."""
LONGER = 2000
"""Steps after which sparse training has had the time that the recipe's 700 leave it short of."""


@dataclass(frozen=True)
class Arm:
    """A way to train: solutions of one form, blocks without a loss, a sparse-training method.

    modes: how it is judged; a form that is checked is judged by votes instead. steps: of training,
    those of the recipe where it is ``None``.
    """

    form: Form
    masked: tuple[BlockType, ...] = ("execution",)
    method: str = "dense"
    modes: tuple[Mode, ...] = ("code",)
    steps: int | None = None


ARMS: dict[str, Arm] = {
    "code": Arm("code"),
    "text": Arm("text", modes=("text",)),
    "unmasked": Arm("code", masked=(), modes=("code", "own")),
    "bdwp": Arm("code", method="bdwp"),
    "code-longer": Arm("code", steps=LONGER),
    "bdwp-longer": Arm("code", method="bdwp", steps=LONGER),
    "csv-words": Arm("text-verified"),
    "csv-code": Arm("code-verified"),
}
"""All with the same problems, order and batch for a seed, and those that are compared with the same
steps."""


class Run(BaseModel):
    """What one arm gave with one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str = Field(description="A name of ARMS.")
    settings: str = Field(description="Changes with everything that the run depends on.")
    seed: int = Field(description="Of weights, training problems, their order and test problems.")
    steps: int = Field(description="Training steps.")
    tokens: float = Field(description="Mean length of a training sequence.")
    learnt: float = Field(description="Tokens of it with a loss.")
    seconds: float = Field(description="Processor time of training and test.")
    right: dict[str, str] = Field(description="By measure, a 1 for each test problem solved.")
    figures: dict[str, float] = Field(default_factory=dict, description="Worth of the verdicts.")

    def hits(self, measure: str) -> list[int]:
        """1 or 0 for each test problem."""
        return [int(bit) for bit in self.right[measure]]


class Record(RunFile[Run, tuple[str, str, int]]):
    """The runs of the file ``path``, by arm, settings and seed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, Run, lambda run: (run.arm, run.settings, run.seed))

    def of(self, arm: str, seeds: Iterable[int] | None = None) -> Mapping[int, Run]:
        """Runs of an arm as it is trained and judged now, by seed: of those ``seeds`` that there
        are, or of all."""
        wanted, settings = None if seeds is None else set(seeds), settings_key(arm)
        return {seed: run for (name, key, seed), run in sorted(self._runs.items())
                if (name, key) == (arm, settings) and (wanted is None or seed in wanted)}


@cache
def settings_key(
    name: str, size: str = "small", *, steps: int | None = None, tested: int = TEST_PROBLEMS,
    voted: int = VOTED_PROBLEMS, paths: int = PATHS, temperature: float = TEMPERATURE,
) -> str:
    """A short name that changes with the settings and data of :func:`run_arm`, but not with its
    seed; with its code only where :data:`_VERSION` says so."""
    arm = ARMS[name]
    tests = ((voted, paths, temperature, WEIGHTS) if arm.form.endswith("-verified")
             else (tested, arm.modes))
    return content_key(
        _VERSION, LLAMA_SIZES[size], asdict(TRAINING[size]), arm.form, arm.masked, arm.method,
        steps or arm.steps or TRAINING[size].recipe.steps, *tests,
        sorted(tokenizer(size).get_vocab().items()),
        training_samples(size, arm.form, 0, arm.masked, count=20), problems("test", 20, 0, size))


def run_arm(
    name: str, seed: int, size: str = "small", *, steps: int | None = None,
    tested: int = TEST_PROBLEMS, voted: int = VOTED_PROBLEMS, paths: int = PATHS,
    temperature: float = TEMPERATURE,
) -> Run:
    """Train and judge one arm with one seed."""
    arm, began = ARMS[name], time.process_time()
    settings = settings_key(name, size, steps=steps, tested=tested, voted=voted, paths=paths,
                            temperature=temperature)
    steps = steps or arm.steps or TRAINING[size].recipe.steps
    samples = training_samples(size, arm.form, seed, arm.masked, count=500)
    model = fit(size, seed, arm.form, masked=arm.masked, method=arm.method, steps=steps)
    figures: dict[str, float] = {}
    if arm.form.endswith("-verified"):
        asked = problems("test", voted, seed, size)
        votes = sample_votes(model, asked, arm.form, paths, temperature, seed, size)
        dealt = shuffled(votes, seed)
        right = {"one path": won([of_one[:1] for of_one in votes], asked),
                 "plain": won(votes, asked), "weighted": won(votes, asked, WEIGHTS),
                 "dealt": won(dealt, asked, WEIGHTS)}
        informed, chance = information(votes, asked), information(dealt, asked)
        figures = {"precision": informed.precision, "recall": informed.recall,
                   "right": informed.right, "dealt precision": chance.precision,
                   "dealt recall": chance.recall}
        # JSON has no NaN.
        figures = {name: value for name, value in figures.items() if not math.isnan(value)}
    else:
        asked = problems("test", tested, seed, size)
        right = {mode: hits(model, asked, mode, size) for mode in arm.modes}
    return Run(arm=name, settings=settings, seed=seed, steps=steps,
               tokens=_mean([len(each.ids) for each in samples]),
               learnt=_mean([sum(label != IGNORED for label in each.labels) for each in samples]),
               seconds=round(time.process_time() - began, 1), figures=figures,
               right={measure: "".join(str(int(bit)) for bit in bits)
                      for measure, bits in right.items()})


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
