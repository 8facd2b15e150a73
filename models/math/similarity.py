"""Finds copies among texts, by the triples of words that they share."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

__all__ = ["SeedIndex", "word_triples"]

_WORD = re.compile(r"\w+|[^\w\s]")


def word_triples(text: str) -> frozenset[tuple[str, ...]]:
    """All triples of adjacent words, numbers and signs, without case; fewer words are one tuple."""
    words = _WORD.findall(text.casefold())
    return frozenset(tuple(words[at:at + 3]) for at in range(max(1, len(words) - 2)))


class SeedIndex:
    """Texts with a label each, to look for copies of new ones.

    A text is a copy if it shares at least ``similarity`` of all triples that it and the other have
    (Jaccard's index); 1 asks for the same words.
    """

    def __init__(self, similarity: float) -> None:
        self.similarity = similarity
        self._texts: list[tuple[int, str]] = []
        self._having: dict[tuple[str, ...], list[int]] = defaultdict(list)

    def add(self, text: str, label: str) -> None:
        """Know ``text`` from now on."""
        triples = word_triples(text)
        for triple in triples:
            self._having[triple].append(len(self._texts))
        self._texts.append((len(triples), label))

    def find(self, text: str) -> str:
        """The label of the first text that this one copies, or nothing."""
        triples = word_triples(text)
        shared = Counter(number for triple in triples for number in self._having.get(triple, ()))
        copies = [number for number, common in shared.items()
                  if common >= self.similarity * (len(triples) + self._texts[number][0] - common)]
        return self._texts[min(copies)][1] if copies else ""
