"""One run of the adapter study: a base, what is tuned on it, and the exact match it gives."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Literal

from algorithms import ParameterError, closest, sparsify
from benchmarks.llm.captioning import Captioner, Mixture
from benchmarks.llm.encoding import encode, packed_corpus, tokenizer
from benchmarks.llm.pretraining import PRETRAINING, pretrained
from benchmarks.llm.record import Outcome
from benchmarks.llm.tasks import SPLITS, instruction_data, language, state
from benchmarks.llm.tuning import TuningRecipe, exact_match, tune
from benchmarks.training import reproducible
from benchmarks.workload import Progress
from models.llm.adapter import AdapterConfig, insert_adapter
from models.llm.adapter_v2 import v2_config
from models.llm.instructions import TokenisedInstruction
from models.llm.llama import LLAMA_SIZES
from models.llm.vision import VISION_SIZES
from sim.build import content_key

__all__ = ["CAPTIONED", "CAPTIONS_TESTED", "EXAMPLES", "FEW", "TESTED", "VARIANTS", "Variant",
           "get_variant", "run", "settings_key"]

SIZE = "small"
PATTERN = "2:8"

EXAMPLES, FEW, TESTED = 4000, 400, 700
"""Instructions of training, of training with few, and of each test."""
CAPTIONED, CAPTIONS_TESTED = 2000, 300
"""Pictures of training and of test."""

_VERSION = 1
"""Raised when the code changes what a run gives; settings count by themselves."""

V1_RECIPE = TuningRecipe(steps=500, batch=32, rate=3e-2)
FEW_RECIPE = TuningRecipe(steps=300, batch=32, rate=3e-2)
FULL_RECIPE = TuningRecipe(steps=200, batch=32, rate=1e-3)
"""Full fine-tuning at that rate has converged by then."""
V2_RECIPE = TuningRecipe(steps=0, batch=32, rate=1e-2)
"""The mixture says how many steps."""


@dataclass(frozen=True)
class Variant:
    """What is compared.

    base: dense; pruned 2:8 by magnitude after dense pre-training; or pre-trained with BDWP 2:8.
    tuned: nothing, all weights, the adapter of V1 with gates that start at zero, at random, or with
    none, or that of V2. few: on few instructions, and V1 for fewer steps. mixture, changes: what V2
    is trained on, and changes to its configuration.
    """

    base: Literal["dense", "one-shot", "bdwp"]
    tuned: Literal["nothing", "everything", "zero-init", "random-init", "ungated", "v2"]
    mixture: Mixture = field(default_factory=Mixture)
    changes: Mapping[str, bool] = field(default_factory=dict)
    few: bool = False

    @property
    def recipe(self) -> TuningRecipe:
        """How it is tuned."""
        by_default = FEW_RECIPE if self.few else V1_RECIPE
        return {"everything": FULL_RECIPE, "v2": V2_RECIPE}.get(self.tuned, by_default)

    @property
    def examples(self) -> int:
        """Instructions of training."""
        return FEW if self.few else EXAMPLES


_LOCKED = {"unlock_norm": False, "unlock_bias": False, "unlock_scale": False}

_MANY = 100, 1000
"""Batches of instructions and of captions, in the ratio of the samples in the paper."""

VARIANTS: dict[str, Variant] = {
    "base alone": Variant("dense", "nothing"),
    "one-shot 2:8 base alone": Variant("one-shot", "nothing"),
    "bdwp 2:8 base alone": Variant("bdwp", "nothing"),
    "full fine-tuning": Variant("dense", "everything"),
    "adapter": Variant("dense", "zero-init"),
    "adapter, random init": Variant("dense", "random-init"),
    "adapter, no gates": Variant("dense", "ungated"),
    "adapter, few examples": Variant("dense", "zero-init", few=True),
    "adapter, random init, few examples": Variant("dense", "random-init", few=True),
    "adapter, no gates, few examples": Variant("dense", "ungated", few=True),
    "adapter on one-shot 2:8": Variant("one-shot", "zero-init"),
    "adapter on bdwp 2:8": Variant("bdwp", "zero-init"),
    "v2 disjoint": Variant("dense", "v2"),
    "v2 shared": Variant("dense", "v2", Mixture("shared")),
    "v2 disjoint, captions 10:1": Variant("dense", "v2", Mixture("disjoint", *_MANY), few=True),
    "v2 shared, captions 10:1": Variant("dense", "v2", Mixture("shared", *_MANY), few=True),
    "v2 instructions only": Variant("dense", "v2", Mixture(captions=0)),
    "v2 captions only": Variant("dense", "v2", Mixture(instructions=0)),
    "v2 disjoint, nothing unlocked": Variant("dense", "v2", changes=_LOCKED),
}


def get_variant(name: str) -> Variant:
    """By name; raises :class:`ParameterError` for an unknown one."""
    if name not in VARIANTS:
        raise ParameterError("variant", name, f"must be one of {', '.join(VARIANTS)}",
                             closest(name, VARIANTS))
    return VARIANTS[name]


def settings_key(variant: Variant) -> str:
    """A short name that changes with the settings and data of a run of ``variant``, but not with
    its seed; with its code only where :data:`_VERSION` says so."""
    parts = [_VERSION, variant.base, variant.tuned, LLAMA_SIZES[SIZE], asdict(PRETRAINING[SIZE]),
             variant.examples, TESTED, PATTERN, *_seen()]
    if variant.tuned != "nothing":
        parts.append(asdict(variant.recipe))
    if variant.tuned == "v2":
        parts += [asdict(variant.mixture), v2_config(SIZE, **variant.changes), VISION_SIZES[SIZE],
                  CAPTIONED, CAPTIONS_TESTED]
    return content_key(*parts)


@cache
def _seen() -> tuple[object, ...]:
    """The vocabulary, and what data of one seed begin with."""
    row = next(packed_corpus(SIZE, PRETRAINING[SIZE].tokens, 0))
    samples = instruction_data("train", 20, 0, SIZE)
    return sorted(tokenizer(SIZE).get_vocab().items()), row.ids, repr(samples)


def run(name: str, seed: int, progress: Progress | None = None) -> Outcome:
    """Pre-train if need be, tune and test; the same for equal arguments.

    ``progress`` is told of pre-training and of tuning. Raises :class:`ParameterError` for an
    unknown variant, and if training diverges.
    """
    variant = get_variant(name)
    model = pretrained(SIZE, "bdwp" if variant.base == "bdwp" else "dense", PATTERN, seed, progress)
    if variant.base == "one-shot":
        sparsify(model, "bdwp", PATTERN, precision="native")
    scores: dict[str, float] = {}
    began = time.process_time()
    with reproducible(seed):
        if variant.tuned == "v2":
            insert_adapter(model.base, v2_config(SIZE, **variant.changes))
            samples = encode(instruction_data("train", variant.examples, seed, SIZE), SIZE)
            captioner = Captioner(SIZE, seed, CAPTIONED, CAPTIONS_TESTED)
            captioner.tune(model, samples, variant.recipe, variant.mixture, seed, progress)
            scores = captioner.scores(model)
        elif variant.tuned == "everything":
            model.requires_grad_(True)
        elif variant.tuned != "nothing":
            shape = LLAMA_SIZES[SIZE]
            insert_adapter(model.base, AdapterConfig(
                layers=shape.adapted, prompt=shape.prompt, gated=variant.tuned != "ungated",
                zero_init=variant.tuned == "zero-init"))
        if variant.tuned not in ("nothing", "v2"):
            samples = encode(instruction_data("train", variant.examples, seed, SIZE), SIZE)
            tune(model, samples, variant.recipe, seed, progress)
        seconds = time.process_time() - began
        scores |= {split: exact_match(model, encode(
            instruction_data(split, TESTED, seed, SIZE), SIZE)) for split in SPLITS[1:]}
        if variant.tuned == "nothing":
            scores["corpus"] = exact_match(model, _own_format(seed))
    return Outcome(variant=name, settings=settings_key(variant), seed=seed,
                   scores={key: round(value, 2) for key, value in scores.items()},
                   seconds=round(seconds, 1))


def _own_format(seed: int) -> list[TokenisedInstruction]:
    """Held-out inputs in the sentences of the corpus: what the base was trained for."""
    spoken, chooser, words = language(SIZE), random.Random(f"own {seed}"), tokenizer(SIZE)
    found = []
    for number in range(TESTED):
        skill = spoken.skills[number % len(spoken.skills)]
        said = state(chooser.choice(spoken.frames), skill, skill.question(chooser, True), chooser)
        start = [words.bos_token_id, *words.encode(said.text)]
        found.append(TokenisedInstruction((*start, *words.encode(said.answer)), len(start)))
    return found
