"""A small language with skills in it: text to pre-train on, and instructions that need the skills.

Eleven skills work on lists of words or numbers: repeat, reverse, first, second, last, count, sort,
largest, smallest, plural, add. Three are about what a picture can show, said in words as ``red
square top``: colour, shape, place. Every skill has a word of its
own and some noun phrases that mean the same ("the words backwards").

The corpus shows them in plain text, ``reverse cat dog = dog cat .`` or ``the words backwards of cat
dog is dog cat .``, and nothing else. Instructions come in the fields of Alpaca, {instruction,
input, output}, as requests ("please give me the words backwards .") under headers that the corpus
never has: the base knows the answers but not that anybody asks.

Split by content, so that no seed can mix them: a fifth of all inputs is held out, from the corpus
too but where inputs are facts to be learnt by heart. One request and one phrase of each skill are
in the corpus at most and in no instruction of training: split ``paraphrased``.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from algorithms import ParameterError
from models.llm.instructions import Instruction

__all__ = [
    "COLOURS", "LANGUAGES", "PLACES", "SHAPES", "SPLITS", "Language", "Sentence", "Skill", "Split",
    "corpus", "instruction_data", "language", "state",
]

Words = tuple[str, ...]
Split = Literal["train", "test", "paraphrased"]
SPLITS: tuple[Split, ...] = ("train", "test", "paraphrased")
"""``test``: held-out inputs under phrases of training; ``paraphrased``: under held-out ones."""

COLOURS: Words = ("red", "green", "blue", "white", "pink", "yellow")
SHAPES: Words = ("square", "disc", "ring", "cross")
PLACES: Words = ("top", "bottom", "left", "right", "middle")
"""What pictures can show: see :mod:`benchmarks.llm.pictures`."""

_NOUNS: Words = ("cat", "dog", "cow", "hen", "pig", "rat", "bee", "ant", "owl", "fox", "cup", "pen",
                 "hat", "map", "key")
_NUMBERS: Words = tuple(str(number) for number in range(19))

_CHATTER = 0.04
"""Share of small talk."""

_HELD_OUT = 5
"""One input of so many is held out."""

_FRAMES = (
    "{word} {x} = {y} .",
    "{word} ( {x} ) -> {y} .",
    "{phrase} of {x} is {y} .",
    "for {x} , {phrase} is {y} .",
    "please give {phrase} of {x} -> {y} .",
    "i want to know {phrase} : {x} = {y} .",
    "### {word} ### {x} ### {y} .",
    "### {phrase} for {x} response: {y} .",
    "input: {x} ( {phrase} ) {y} .",
)
"""How the corpus puts a fact; the answer comes last."""

_REQUESTS = ("please give me {phrase} .", "write {phrase} .", "what is {phrase} ?",
             "i want to know {phrase} .", "tell me {phrase} .")
"""How instructions ask; the last one is held out."""

_SMALL_TALK = ("please tell me what you want .", "i want to write to you .",
               "you give me what i know .", "what is it ?", "please write it .",
               "tell me to give .", "i describe the image .", "please describe me an image .")
"""Sentences of the corpus in which the words of requests occur."""


@dataclass(frozen=True)
class Skill:
    """One thing that the language can do.

    word: its name. phrases: what else it is called, the last held out from instructions.
    draw: a random input. solve: its answer. facts: inputs are learnt by heart, so that the corpus
    has all of them.
    """

    word: str
    phrases: Words
    draw: Callable[[random.Random], Words]
    solve: Callable[[Words], Words]
    facts: bool = False

    def question(self, chooser: random.Random, held_out: bool | None) -> Words:
        """An input that is held out, that is not, or (``None``) any."""
        while True:
            drawn = self.draw(chooser)
            # Not `hash`, which differs between processes.
            held = zlib.crc32(" ".join((self.word, *drawn)).encode()) % _HELD_OUT == 0
            if held_out is None or held is held_out:
                return drawn


@dataclass(frozen=True)
class Language:
    """Skills and what their sentences are made of; ``requests`` as in :func:`instruction_data`."""

    skills: tuple[Skill, ...]
    frames: Words
    requests: Words
    small_talk: Words

    @property
    def words(self) -> Words:
        """Every word that any sentence can have, sorted."""
        # Inputs are lists without repetition over small sets: enough draws meet every word.
        chooser = random.Random(0)
        drawn = (" ".join((*question, *skill.solve(question))) for skill in self.skills
                 for _ in range(400) for question in [skill.draw(chooser)])
        phrases = (text for skill in self.skills for text in (skill.word, *skill.phrases))
        texts = (*self.frames, *self.requests, *self.small_talk, *phrases, *drawn)
        found = {word for text in texts for word in text.split() if not word.startswith("{")}
        return tuple(sorted(found))


def _listed(words: Words, shortest: int, longest: int) -> Callable[[random.Random], Words]:
    """Lists without repetition."""
    return lambda chooser: tuple(chooser.sample(words, chooser.randint(shortest, longest)))


def _addends(limit: int) -> Callable[[random.Random], Words]:
    return lambda chooser: (str(chooser.randrange(limit)), str(chooser.randrange(limit)))


def _seen(chooser: random.Random) -> Words:
    return chooser.choice(COLOURS), chooser.choice(SHAPES), chooser.choice(PLACES)


def _sorted(numbers: Words) -> Words:
    return tuple(sorted(numbers, key=int))


def _skills(nouns: Words, numbers: Words, longest: int) -> dict[str, Skill]:
    some, several = _listed(nouns, 2, longest), _listed(numbers, 2, longest)
    found = (
        Skill("repeat", ("the same words", "the words again", "the words once more"), some,
              lambda x: x),
        Skill("reverse", ("the words backwards", "the words in reverse", "the words from the end"),
              some, lambda x: x[::-1]),
        Skill("first", ("the first word", "the word at the start", "the word before all others"),
              some, lambda x: x[:1]),
        Skill("second", ("the second word", "the word in place two", "the word after one other"),
              some, lambda x: x[1:2]),
        Skill("last", ("the last word", "the word at the end", "the word after all others"),
              some, lambda x: x[-1:]),
        Skill("count", ("the number of words", "the length", "the count of words"), some,
              lambda x: (str(len(x)),)),
        Skill("sort", ("the numbers in order", "the sorted numbers", "the numbers that go up"),
              several, _sorted),
        Skill("largest", ("the largest number", "the biggest number", "the number above others"),
              several, lambda x: _sorted(x)[-1:]),
        Skill("smallest", ("the smallest number", "the lowest number", "the number below others"),
              several, lambda x: _sorted(x)[:1]),
        Skill("plural", ("the plural", "the words for many", "the words for more than one"),
              _listed(nouns, 1, 2), lambda x: tuple(f"{word}s" for word in x), facts=True),
        Skill("add", ("the sum", "the total", "all of it together"),
              _addends(len(numbers) // 2 + 1), lambda x: (str(int(x[0]) + int(x[1])),), facts=True),
        Skill("colour", ("the colour", "the hue", "the paint on it"), _seen, lambda x: x[:1]),
        Skill("shape", ("the shape", "the form", "the kind of thing"), _seen, lambda x: x[1:2]),
        Skill("place", ("the place", "the spot", "the part where it is"), _seen, lambda x: x[2:]),
    )
    return {skill.word: skill for skill in found}


def _small() -> Language:
    skills = _skills(_NOUNS, _NUMBERS, 3)
    return Language(tuple(skills.values()), _FRAMES, _REQUESTS, _SMALL_TALK)


def _tiny() -> Language:
    """What pictures show, which is soonest learnt."""
    skills = _skills(_NOUNS, _NUMBERS, 3)
    return Language(tuple(skills[word] for word in ("colour", "shape", "place")),
                    _FRAMES[::2] + _FRAMES[7:8], _REQUESTS[1:4:2] + _REQUESTS[-1:],
                    _SMALL_TALK)


LANGUAGES: dict[str, Callable[[], Language]] = {"tiny": _tiny, "small": _small}


@lru_cache
def language(size: str) -> Language:
    """The language of a model's size; raises :class:`ParameterError` for an unknown one."""
    if size not in LANGUAGES:
        raise ParameterError("size", size, f"must be one of {', '.join(LANGUAGES)}", "small")
    return LANGUAGES[size]()


class Sentence(NamedTuple):
    """A sentence of the corpus, cut where its answer begins; small talk has none."""

    text: str
    answer: str


def corpus(size: str, seed: int) -> Iterator[Sentence]:
    """Sentences in plain text without end: a fact, or now and then small talk."""
    spoken, chooser = language(size), random.Random(f"corpus {seed}")
    while True:
        if spoken.small_talk and chooser.random() < _CHATTER:
            yield Sentence(chooser.choice(spoken.small_talk), "")
            continue
        skill = chooser.choice(spoken.skills)
        question = skill.question(chooser, None if skill.facts else False)
        yield state(chooser.choice(spoken.frames), skill, question, chooser)


def state(frame: str, skill: Skill, question: Words, chooser: random.Random) -> Sentence:
    """The sentence of the corpus that answers ``question`` in ``frame``."""
    text, _, rest = frame.partition("{y}")
    return Sentence(
        text.format(word=skill.word, phrase=chooser.choice(skill.phrases), x=" ".join(question)),
        " ".join(skill.solve(question)) + rest)


def instruction_data(split: Split, count: int, seed: int, size: str = "small"
                     ) -> list[Instruction]:
    """``count`` examples, the skills in turn; the same for equal arguments.

    Raises :class:`ParameterError` for an unknown split or size and for ``count`` below 1.
    """
    if split not in SPLITS:
        raise ParameterError("split", split, f"must be one of {', '.join(SPLITS)}", "test")
    if count < 1:
        raise ParameterError("count", count, "must be at least 1", 1)
    spoken, chooser = language(size), random.Random(f"{split} {seed}")
    known = slice(-1, None) if split == "paraphrased" else slice(None, -1)
    found = []
    for number in range(count):
        skill = spoken.skills[number % len(spoken.skills)]
        question = skill.question(chooser, split != "train")
        request = chooser.choice(spoken.requests[known])
        found.append(Instruction(
            instruction=request.format(phrase=chooser.choice(skill.phrases[known])),
            input=" ".join(question), output=" ".join(skill.solve(question))))
    return found
