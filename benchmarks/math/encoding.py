"""Word problems and their solutions as token ids: a token a word, a digit or a sign of Python.

Tokens hold the spaces before them, but for digits, so that a number has the same tokens wherever it
stands, and decoding is joining. What is written in the words of generated problems comes back
exactly, code with its lines and blanks included. Instructions of prompts are a token each.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from functools import lru_cache

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from benchmarks.math.solutions import CODE_CHECK, FORMS, WORDS_CHECK, misread, solved
from benchmarks.math.word_problems import problems
from models.math.prompts import REPAIR
from models.math.solution import SPECIAL_TOKENS
from models.math.solver import EMPTY_EXECUTION

__all__ = ["tokenizer"]

_PAD, _UNKNOWN = "<pad>", "<unk>"
_PHRASES = (CODE_CHECK.instruction, WORDS_CHECK.instruction, REPAIR, EMPTY_EXECUTION)
_PIECE = re.compile(r" (?=\d)|\d| [=*/+-]+ | ?[A-Za-z]+|\\[a-z]+\{|\s|.")
_PROBLEMS = 2000
"""Words come from small sets: enough problems have every one."""


@lru_cache
def tokenizer(size: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a size: every piece of its problems and solutions, and the special tokens.

    Raises :class:`ParameterError` for an unknown size.
    """
    marks = [_PAD, _UNKNOWN, *SPECIAL_TOKENS]
    words = {word: i for i, word in enumerate([*marks, *_PHRASES, *sorted(set(_pieces(size)))])}
    plain = Tokenizer(WordLevel(words, unk_token=_UNKNOWN))
    plain.pre_tokenizer = Split(Regex(_PIECE.pattern), "isolated")
    plain.decoder = Fuse()
    plain.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    plain.add_tokens([AddedToken(phrase, normalized=False) for phrase in _PHRASES])
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=plain, pad_token=_PAD, unk_token=_UNKNOWN,
        clean_up_tokenization_spaces=False)
    return made


def _pieces(size: str) -> Iterator[str]:
    yield from (*(str(digit) for digit in range(10)), "-")
    told = problems("train", _PROBLEMS, 0, size)
    for problem in told:
        yield from _PIECE.findall(problem.question)
    chooser = random.Random(0)
    for problem in told[:_PROBLEMS // 10]:
        for form, given in itertools.product(FORMS, (None, misread(problem, chooser))):
            for block in solved(problem, form, given)[-1].content:
                yield from _PIECE.findall(block.content)
