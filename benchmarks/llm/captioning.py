"""Joint training of LLaMA-Adapter V2 on captions and instructions, and what it can tell of images.

Pictures of :mod:`benchmarks.llm.pictures` go through a frozen vision tower with random weights. Its
features are made once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from statistics import fmean

import torch
from torch import Tensor

from algorithms import ParameterError
from benchmarks.llm.encoding import encode, tokenizer
from benchmarks.llm.pictures import QUESTIONS, caption, features_of, question, scenes
from benchmarks.llm.tuning import TuningRecipe, endless, exact_hits, response_loss
from benchmarks.workload import Progress
from models.llm.instructions import (
    IGNORED,
    Instruction,
    InstructionBatch,
    TokenisedInstruction,
)
from models.llm.joint import JointConfig, JointTraining, Sharing
from models.llm.llama import Llama
from models.llm.vision import vision_tower

__all__ = ["Captioner", "Mixture"]

_WORDS = 3
_PLACES_LOUDER = 15.0
"""Positions then weigh as much in a random tower as what is there."""


@dataclass(frozen=True)
class Mixture:
    """What joint training is made of: ``instructions`` and ``captions`` batches, spread evenly.

    sharing: which parameters learn from which, see :class:`models.llm.joint.JointTraining`.
    """

    sharing: Sharing = "disjoint"
    instructions: int = 300
    captions: int = 600


class Captioner:
    """``pictures`` of training and ``tested`` of test as a tower sees them, drawn by ``seed``.

    The tower's weights come from ``seed`` too. Pictures of test show combinations of colour, shape
    and place that none of training shows.
    """

    def __init__(self, size: str, seed: int, pictures: int, tested: int) -> None:
        self.size = size
        tower = vision_tower(size, seed)
        # Trained towers tell where a patch is; random ones of transformers hardly do.
        with torch.no_grad():
            for name, values in tower.named_parameters():
                if name.endswith("position_embedding.weight"):
                    values.mul_(_PLACES_LOUDER)
        seen = scenes("train", pictures, seed)
        self.unseen = scenes("test", tested, seed)
        self.samples = encode([caption(scene) for scene in seen], size)
        self.features, self.unseen_features = (features_of(tower, some)
                                               for some in (seen, self.unseen))

    def tune(
        self, model: Llama, instructions: Sequence[TokenisedInstruction], recipe: TuningRecipe,
        mixture: Mixture, seed: int, progress: Progress | None = None,
    ) -> None:
        """Train the adapter of ``model`` on the mixture; of ``recipe`` clip and steps do not count.

        Raises :class:`ParameterError` for a mixture of nothing and for a loss that is not finite.
        """
        steps = mixture.instructions + mixture.captions
        if steps < 1:
            raise ParameterError("mixture", mixture, "must have a batch")
        plan = JointConfig(mixture.sharing, mixture.captions / steps)
        joint = JointTraining(model, recipe.optimiser, plan)
        recipe = replace(recipe, steps=steps)
        texts = endless(instructions, recipe.batch, seed)
        pictures = self.batches(recipe.batch, seed)
        model.train()
        total, share = 0.0, max(1, steps // 10)
        for step, kind in enumerate(plan.kinds(steps)):
            for group in joint.optimisers[kind].param_groups:
                group["lr"] = recipe.rate_at(step)
            seen = next(pictures) if kind == "image_text" else (next(texts), None)
            total += joint.step(kind, partial(_loss, model, *seen)).item()
            if (step + 1) % share == 0:
                if progress is not None:
                    progress((step + 1) // share, steps // share, total / share)
                total = 0.0
        if joint.skipped:
            raise ParameterError("recipe", recipe, f"{joint.skipped} losses were not finite")

    def scores(self, model: Llama) -> dict[str, float]:
        """Per cent of unseen pictures, greedy and exact.

        caption: its words and the end. word: of captions as the model gives them, each by itself.
        question: about the picture, which no training has.
        expert: the same with the model's own caption as the input of the instruction, without
        the picture.
        """
        model.eval()
        said = self.captions(model)
        questions = [question(scene, number % len(QUESTIONS))
                     for number, scene in enumerate(self.unseen)]
        told = [asked.model_copy(update={"input": text})
                for asked, text in zip(questions, said, strict=True)]
        return {
            "caption": self._exact(model, [caption(scene) for scene in self.unseen], True),
            "word": 100 * fmean(right for scene, text in zip(self.unseen, said, strict=True)
                                for right in self._right(scene.words, text.split())),
            "question": self._exact(model, questions, True),
            "expert": self._exact(model, told, False),
        }

    def captions(self, model: Llama) -> list[str]:
        """What the model says of each unseen picture, greedily, at most three words."""
        words = tokenizer(self.size)
        asked = encode([caption(self.unseen[0])], self.size)[0]
        ids = torch.tensor([asked.ids[:asked.prompt]] * len(self.unseen))
        with torch.no_grad():
            for _ in range(_WORDS):
                best = model(ids, self.unseen_features)[:, -1].argmax(-1, keepdim=True)
                ids = torch.cat([ids, best], 1)
        said: list[str] = words.batch_decode(ids[:, asked.prompt:], skip_special_tokens=True)
        return said

    def batches(self, batch: int, seed: int) -> Iterator[tuple[InstructionBatch, Tensor]]:
        """Captions with their features without end, in a new order each time around."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.tensor([sample.ids for sample in self.samples])
        labels = ids.clone()
        labels[:, :self.samples[0].prompt] = IGNORED
        while True:
            for rows in torch.split(torch.randperm(len(ids), generator=generator), batch):
                chosen = InstructionBatch(ids[rows], labels[rows], torch.ones_like(ids[rows]))
                yield chosen, self.features[rows]

    @staticmethod
    def _right(words: Sequence[str], said: Sequence[str]) -> list[bool]:
        return [text == word for word, text in zip_longest(words, said[:len(words)])]

    def _exact(self, model: Llama, asked: Sequence[Instruction], look: bool) -> float:
        hits = []
        with torch.no_grad():
            for number, sample in enumerate(encode(asked, self.size)):
                ids = torch.tensor([sample.ids])
                labels = ids.clone()
                labels[:, :sample.prompt] = IGNORED
                features = self.unseen_features[number:number + 1] if look else None
                hits.append(exact_hits(model(ids, features), labels))
        return 100 * float(torch.cat(hits).double().mean())


def _loss(model: Llama, batch: InstructionBatch, features: Tensor | None) -> Tensor:
    return response_loss(model(batch.ids, features), batch.labels)
