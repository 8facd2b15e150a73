"""Text of :mod:`benchmarks.llm.tasks` to token ids, a token a word."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from algorithms import ParameterError
from benchmarks.llm.tasks import corpus, language
from models.llm.instructions import Instruction, TokenisedInstruction, tokenise_instructions
from models.llm.llama import LLAMA_SIZES

__all__ = ["PackedRow", "encode", "packed_corpus", "tokenizer"]

_SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_TASK = "<task>"


class PackedRow(NamedTuple):
    """Token ids of a training sequence, and whether each is of an answer."""

    ids: list[int]
    answers: list[bool]


@lru_cache
def tokenizer(size: str) -> PreTrainedTokenizerFast:
    """A token for every word of the language and of Alpaca's headers.

    Alpaca's preamble, the same in all samples and longer than the rest of them, is one token. Ids
    fit the vocabulary of the model of that size. Raises :class:`ParameterError` if they do not, and
    for an unknown size.
    """
    asked = Instruction(instruction="{", input="{").prompt()
    preamble = asked[:asked.index("###")]
    headers = {word for word in asked[len(preamble):].lower().split() if word != "{"}
    words = [*_SPECIAL.values(), _TASK, *sorted(headers | set(language(size).words))]
    if len(words) > LLAMA_SIZES[size].vocabulary:
        rule = f"must hold the {len(words)} tokens of the language of size {size}"
        raise ParameterError("vocabulary", LLAMA_SIZES[size].vocabulary, rule, len(words))
    plain = Tokenizer(WordLevel({word: i for i, word in enumerate(words)},
                                unk_token=_SPECIAL["unk_token"]))
    plain.normalizer = Normalizers([Replace(preamble, f"{_TASK} "), Lowercase()])
    plain.pre_tokenizer = WhitespaceSplit()
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=plain, **_SPECIAL)
    return made


def encode(samples: Sequence[Instruction], size: str) -> list[TokenisedInstruction]:
    """Sequences for :func:`models.llm.instructions.instruction_batches`, in the same order."""
    return tokenise_instructions(samples, tokenizer(size))


def packed_corpus(size: str, tokens: int, seed: int) -> Iterator[PackedRow]:
    """Sequences of ``tokens`` ids without end: documents of one to four sentences, then cut off.

    Every sequence starts with the start token, every document ends with the end token.
    """
    words, sentences = tokenizer(size), corpus(size, seed)
    chooser = random.Random(f"documents {seed}")
    ids, answers = [words.bos_token_id], [False]
    while True:
        # Many at once: a call costs more than its words.
        drawn = [next(sentences) for _ in range(256)]
        texts = words([sentence.text for sentence in drawn])["input_ids"]
        replies = words([sentence.answer for sentence in drawn])["input_ids"]
        left = chooser.randint(1, 4)
        for text, reply in zip(texts, replies, strict=True):
            ids += text + reply
            answers += [False] * len(text) + [True] * len(reply)
            left -= 1
            if left == 0:
                ids.append(words.eos_token_id)
                answers.append(False)
                left = chooser.randint(1, 4)
            if len(ids) >= tokens:
                yield PackedRow(ids[:tokens], answers[:tokens])
                ids, answers = [words.bos_token_id], [False]
