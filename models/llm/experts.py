"""Expert visual context at inference (LLaMA-Adapter V2, arXiv:2304.15010, section 4.4).

An expert turns an image into text: a captioner, a reader of text, a detector. What the experts say
is put next to the question as plain words; nothing is trained. Any callable can be an expert.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter
from typing import Literal, Protocol

from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from algorithms import ParameterError, closest
from models.llm.adapter import adapter_root, image_context
from models.llm.decoding import greedy_answer
from models.llm.instructions import Instruction
from models.llm.vision import Picture, VisionTower, open_picture

__all__ = ["DESCRIBE", "CaptionExpert", "Expert", "ExpertConfig", "ExpertContext", "RecordedExpert"]

DESCRIBE = "Describe the image."
"""What a captioning model is asked first."""


class Expert(Protocol):
    """Anything that says something about an image."""

    def __call__(self, image: Picture, /) -> str:
        """What it says; nothing but white space where it has nothing to say."""


@dataclass(frozen=True)
class ExpertConfig:
    """Which experts are asked and how their words are put next to a question.

    enabled: names of the experts to ask; ``None`` for all, ``()`` for none, the ablation.
    template: of the whole, with ``{context}`` and ``{question}``.
    line: of one expert, with ``{text}`` and perhaps ``{name}``.

    Raises :class:`ParameterError` for a template whose fields are not those.
    """

    enabled: tuple[str, ...] | None = None
    template: str = "{context}\n{question}"
    line: str = "{name}: {text}"

    def __post_init__(self) -> None:
        _check_fields("template", self.template, {"context", "question"})
        _check_fields("line", self.line, {"text"}, {"name"})


class ExpertContext:
    """A chain of experts.

    Parameters
    ----------
    experts: by name, in the order of their words.
    config: see :class:`ExpertConfig`.

    Raises :class:`ParameterError` for an expert that is not callable, or an unknown name.
    """

    def __init__(
        self, experts: Mapping[str, Expert], config: ExpertConfig | None = None
    ) -> None:
        for name, expert in experts.items():
            if not callable(expert):
                raise ParameterError(f"experts[{name!r}]", type(expert).__name__,
                                     "must be callable: an image to text")
        self.experts, self.config = dict(experts), config or ExpertConfig()
        asked = self.config.enabled
        for name in asked or ():
            if name not in experts:
                raise ParameterError("enabled", name,
                                     f"must be one of {', '.join(experts) or 'no experts'}",
                                     closest(name, experts))
        self.asked = tuple(name for name in experts if asked is None or name in asked)
        """Names of the experts that are on, in order."""

    def only(self, *names: str) -> ExpertContext:
        """The same chain with these experts switched on, and no others."""
        return ExpertContext(self.experts, replace(self.config, enabled=names))

    def says(self, image: Picture) -> dict[str, str]:
        """What each expert that is on says of ``image``, if it says anything.

        Raises :class:`ParameterError` for what is no image, and for an expert whose answer is no
        text.
        """
        if not isinstance(image, Image.Image | str | Path):
            open_picture(image)
        said: dict[str, str] = {}
        for name in self.asked:
            text = self.experts[name](image)
            if not isinstance(text, str):
                raise ParameterError(f"experts[{name!r}]", type(text).__name__,
                                     "must return text, a str")
            if text.strip():
                said[name] = " ".join(text.split())
        return said

    def apply(self, question: str, image: Picture) -> str:
        """The question with the experts' words; the question itself where there are none."""
        if not isinstance(question, str):
            raise ParameterError("question", type(question).__name__, "must be text, a str")
        lines = [self.config.line.format(name=name, text=text)
                 for name, text in self.says(image).items()]
        if not lines:
            return question
        return self.config.template.format(context="\n".join(lines), question=question)


class RecordedExpert:
    """Texts from a JSON file, by the name of the image's file.

    The file has either one object, ``{"cat.png": "a cat"}``, or a list of objects with ``image``
    and ``field``. Folders in names do not matter, unless two images differ in them alone.

    Raises :class:`ParameterError`, naming file and line or entry, for a file that is not there or
    holds something else.
    """

    def __init__(self, path: str | Path, field: str = "caption") -> None:
        self.path = Path(path)
        self.texts: dict[str, str] = {}
        for place, name, text in self._entries(field):
            if not isinstance(name, str) or not isinstance(text, str):
                raise self._error(place, f"must have texts as image and {field}")
            if self.texts.setdefault(name, text) != text:
                raise self._error(place, f"says something else of {name} than an entry before")
        files = Counter(Path(name).name for name in self.texts)
        self._by_file = {Path(name).name: text for name, text in self.texts.items()
                         if files[Path(name).name] == 1}

    def __call__(self, image: Picture, /) -> str:
        """The text; :class:`ParameterError` for an image that has none, or no file name."""
        given = getattr(image, "filename", "") if isinstance(image, Image.Image) else str(image)
        if not given:
            raise ParameterError("image", type(image).__name__,
                                 "must come from a file, since texts are recorded by its name")
        name = Path(given).name
        text = self.texts.get(str(given), self._by_file.get(name))
        if text is None:
            raise ParameterError("image", str(given), f"has no text in {self.path}",
                                 closest(name, self.texts))
        return text

    def _entries(self, field: str) -> list[tuple[str, object, object]]:
        try:
            read = json.loads(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ParameterError("path", str(self.path), "must be a JSON file of texts "
                                 f"({error.strerror})") from None
        except json.JSONDecodeError as error:
            raise self._error(f"line {error.lineno}", f"is not JSON: {error.msg}") from None
        except UnicodeDecodeError as error:
            raise self._error(f"byte {error.start}", "is not UTF-8") from None
        if isinstance(read, dict):
            return [(f"entry {name!r}", name, text) for name, text in read.items()]
        if not isinstance(read, list):
            raise self._error("line 1", "must be one object, or a list of objects")
        entries: list[tuple[str, object, object]] = []
        for number, entry in enumerate(read, 1):
            if not isinstance(entry, dict) or not {"image", field} <= entry.keys():
                raise self._error(f"entry {number}", f"must be an object with image and {field}")
            entries.append((f"entry {number}", entry["image"], entry[field]))
        return entries

    def _error(self, place: str, rule: str) -> ParameterError:
        return ParameterError("path", str(self.path), f"{place} {rule}")


class CaptionExpert:
    """The caption-trained model itself, asked to describe the image before the question.

    Parameters
    ----------
    base: a model with an adapter that takes images.
    tokenizer: its tokenizer.
    tower: the vision tower that it was trained with.
    instruction: what it is asked, in the wording of :mod:`models.llm.instructions`.
    max_new_tokens: longest caption.

    Raises :class:`ParameterError` for a model whose adapter takes no images, no instruction or no
    tokens.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tower: VisionTower,
        instruction: str = DESCRIBE,
        max_new_tokens: int = 48,
    ) -> None:
        if max_new_tokens < 1:
            raise ParameterError("max_new_tokens", max_new_tokens, "must be 1 or more", 1)
        if not isinstance(instruction, str) or not instruction:
            raise ParameterError("instruction", instruction, "must be text", DESCRIBE)
        visual = adapter_root(base).config.visual
        if visual == "none":
            raise ParameterError("base", type(base).__name__, "has an adapter that takes no images")
        self.visual: Literal["early", "late"] = visual
        self.base, self.tokenizer, self.tower = base, tokenizer, tower
        self.sample, self.max_new_tokens = Instruction(instruction=instruction), max_new_tokens

    def __call__(self, image: Picture, /) -> str:
        """The caption, the most likely token at each step."""
        with image_context(self.base, self.tower.see([image], self.visual)):
            return greedy_answer(self.base, self.tokenizer, self.sample, self.max_new_tokens)


def _check_fields(
    parameter: str, template: str, needed: set[str], optional: Collection[str] = ()
) -> None:
    known = needed.union(optional)
    try:
        found = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
        if found <= known:
            # ?? is no format, so that none depends on what is said: {text:{name}}.
            template.format(**dict.fromkeys(known, "??"))
    except ValueError as error:
        raise ParameterError(parameter, template, f"must be a template: {error}") from None
    if not needed <= found <= known:
        fields = " and ".join(f"{{{field}}}" for field in sorted(needed))
        raise ParameterError(parameter, template, f"must have the fields {fields}, and no unknown")
