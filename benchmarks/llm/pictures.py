"""Small pictures with captions: a coloured shape at a place, ``red square top``.

32 x 32 pixels, RGB, noise everywhere; shapes vary by a pixel in size. A fifth of the combinations
of colour, shape and place is in no picture of training. What a frozen vision tower makes of them is
what a language model sees; captions are asked for in Alpaca's format.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from algorithms import ParameterError
from benchmarks.llm.tasks import COLOURS, PLACES, SHAPES
from models.llm.instructions import Instruction
from models.llm.vision import VisionTower

__all__ = ["DESCRIBE", "QUESTIONS", "Scene", "caption", "features_of", "question", "scenes"]

DESCRIBE = "describe the image ."
"""What a captioner is asked."""

QUESTIONS = ("what is the colour ?", "what is the shape ?", "what is the place ?")
"""What can be asked of a picture; the answer is the caption's word of the same number."""

SIDE = 32
_RGB = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230),
        "white": (240, 240, 240), "pink": (250, 140, 190), "yellow": (240, 220, 60)}
_CENTRES = {"top": (16, 8), "bottom": (16, 24), "left": (8, 16), "right": (24, 16),
            "middle": (16, 16)}
_GROUND, _NOISE = 90, 12.0


class Scene(NamedTuple):
    """A picture and what it shows: colour, shape, place."""

    picture: Image.Image
    words: tuple[str, str, str]


def scenes(split: Literal["train", "test"], count: int, seed: int) -> list[Scene]:
    """``count`` random scenes; ``test`` has combinations that ``train`` never has.

    Raises :class:`ParameterError` for an unknown split and ``count`` below 1.
    """
    if split not in ("train", "test"):
        raise ParameterError("split", split, "must be train or test", "test")
    if count < 1:
        raise ParameterError("count", count, "must be at least 1", 1)
    chooser = random.Random(f"scenes {split} {seed}")
    kept = [words for colour in COLOURS for shape in SHAPES for place in PLACES
            for words in [(colour, shape, place)]
            if (zlib.crc32(" ".join(words).encode()) % 5 == 0) is (split == "test")]
    return [Scene(_draw(*words, chooser), words)
            for words in (chooser.choice(kept) for _ in range(count))]


def caption(scene: Scene) -> Instruction:
    """The caption as the answer to :data:`DESCRIBE`."""
    return Instruction(instruction=DESCRIBE, output=" ".join(scene.words))


def question(scene: Scene, number: int) -> Instruction:
    """Number 0 to 2 of :data:`QUESTIONS` with its answer."""
    return Instruction(instruction=QUESTIONS[number], output=scene.words[number])


def features_of(tower: VisionTower, seen: Sequence[Scene]) -> Tensor:
    """Features (N, T, F) of the pictures, as the tower makes them."""
    parts = [tower(tower.pixels([scene.picture for scene in seen[start:start + 256]]))
             for start in range(0, len(seen), 256)]
    return torch.cat(parts)


def _draw(colour: str, shape: str, place: str, chooser: random.Random) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), (_GROUND,) * 3)
    pen, fill, edge = ImageDraw.Draw(picture), _RGB[colour], (0, 0, 0)
    x, y = _CENTRES[place]
    size = chooser.choice((6, 7))
    box = (x - size, y - size, x + size, y + size)
    if shape == "square":
        pen.rectangle(box, fill, edge, 2)
    elif shape == "disc":
        pen.ellipse(box, fill, edge, 2)
    elif shape == "ring":
        pen.ellipse(box, fill, edge, 2)
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), edge)
    else:
        pen.line((x - size, y, x + size, y), fill, 5)
        pen.line((x, y - size, x, y + size), fill, 5)
    noise = np.random.default_rng(chooser.getrandbits(32)).normal(0, _NOISE, (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
