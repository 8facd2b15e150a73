"""Instruction data: reading, the prompts' wording, labels of answers alone, batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from algorithms import ParameterError
from models.llm.instructions import (
    IGNORED,
    Instruction,
    TokenisedInstruction,
    instruction_batches,
    prompt_ids,
    read_instructions,
    tokenise_instructions,
)

PLAIN = Instruction(instruction="Name a bird.", output="heron crane")
ABOUT = Instruction(instruction="Name it.", input="It has a long bill.", output="heron")


def tokenizer(**special: str) -> Any:
    """Words and punctuation; the start token is 1, the end token 2."""
    words = " ".join([PLAIN.prompt(), ABOUT.prompt(), PLAIN.output, ABOUT.output])
    split = pre_tokenizers.Whitespace()
    found = sorted({word for word, _ in split.pre_tokenize_str(words)})
    vocabulary = {word: at for at, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *found])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = split
    options = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
               "unk_token": "<unk>", **special}
    kind: Any = PreTrainedTokenizerFast  # untyped
    return kind(tokenizer_object=made, **options)


def test_prompts_have_alpacas_wording() -> None:
    assert PLAIN.prompt() == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nName a bird.\n\n### Response:")
    assert ABOUT.prompt() == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName it.\n\n### Input:\nIt has a long bill.\n\n### Response:")
    braces = Instruction(instruction="{input}", input="{0}")
    assert "\n{input}\n" in braces.prompt() and "\n{0}\n" in braces.prompt()


def test_answers_and_end_tokens_have_a_loss_and_nothing_else_has() -> None:
    words = tokenizer()
    tokens = tokenise_instructions([PLAIN, ABOUT], words)
    batch = next(instruction_batches(tokens, batch=2))
    for row, ids in enumerate(batch.ids):
        sample = ABOUT if words.convert_tokens_to_ids("bill") in ids else PLAIN
        answer = words(sample.output, add_special_tokens=False).input_ids
        length = int(batch.mask[row].sum())
        learnt = (batch.labels[row] != IGNORED).nonzero().flatten().tolist()
        assert learnt == list(range(length - len(answer) - 1, length))
        assert batch.labels[row][learnt].tolist() == ids[learnt].tolist() == [*answer, 2]
        assert ids[:length - len(answer) - 1].tolist() == prompt_ids(sample, words)
        assert ids[0] == 1
        assert not batch.mask[row, length:].any() and not batch.ids[row, length:].any()
    assert batch.ids.dtype == batch.labels.dtype == batch.mask.dtype == torch.int64


def test_tokenizers_without_start_or_end() -> None:
    words = tokenizer()
    words.bos_token = None
    assert prompt_ids(PLAIN, words) == prompt_ids(PLAIN, tokenizer())[1:]
    words.eos_token = None
    with pytest.raises(ParameterError, match="has no end token"):
        tokenise_instructions([PLAIN], words)


def test_sequences_that_are_too_long() -> None:
    words = tokenizer()
    short, long = PLAIN, PLAIN.model_copy(update={"output": "heron " * 40})
    limit = len(tokenise_instructions([short], words)[0].ids)
    length = len(tokenise_instructions([long], words)[0].ids)
    assert length == limit + 38
    with pytest.raises(ParameterError, match=rf"birds.json, item 2={length}: its sequence has more "
                       f"than {limit} tokens"):
        tokenise_instructions([short, long], words, limit, "error", "birds.json")
    assert len(tokenise_instructions([short, long], words, limit, "drop")) == 1
    silent = short.model_copy(update={"output": "\n"})
    assert tokenise_instructions([silent, short], words) == tokenise_instructions([short], words)
    kept = tokenise_instructions([short, long], words, limit, "truncate")
    assert [len(sample.ids) for sample in kept] == [limit, limit]
    assert kept[0].ids[-1] == 2 and kept[1].ids[-1] != 2
    prompt = kept[0].prompt
    with pytest.raises(ParameterError, match=rf"item 1={prompt}: its prompt leaves no room for an "
                       f"answer within {prompt} tokens"):
        tokenise_instructions([short], words, prompt, "truncate")
    with pytest.raises(ParameterError, match="has no sample of at most 5 tokens"):
        tokenise_instructions([short], words, 5, "drop")
    with pytest.raises(ParameterError, match=r"overlong='cut': must be one of error, truncate"):
        tokenise_instructions([short], words, 5, "cut")  # type: ignore[arg-type]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=60), st.integers(1, 7), st.integers(0, 9))
def test_batches_have_every_sample_once(lengths: list[int], batch: int, seed: int) -> None:
    samples = [TokenisedInstruction((index + 1,) * length, 1)
               for index, length in enumerate(lengths)]
    seen = []
    for ids, labels, mask in instruction_batches(samples, batch, seed):
        assert len(ids) <= batch and ids.shape == labels.shape == mask.shape
        assert int(mask.sum(1).max()) == ids.shape[1]  # as short as can be
        seen += [(int(row[0]), int(held.sum())) for row, held in zip(ids, mask, strict=True)]
        assert torch.equal(labels != IGNORED, (mask.cumsum(1) * mask) > 1)
    assert sorted(seen) == [(index + 1, length) for index, length in enumerate(lengths)]


def test_batches_of_like_length_in_an_order_of_the_seed() -> None:
    lengths = torch.randint(2, 100, (512,), generator=torch.Generator().manual_seed(0)).tolist()
    samples = [TokenisedInstruction((1,) * length, 1) for length in lengths]
    first, again, other = ([ids.shape for ids, _, _ in instruction_batches(samples, 8, seed)]
                           for seed in (1, 1, 2))
    assert first == again != other
    assert first != sorted(first)
    assert sum(rows * width for rows, width in first) < 1.1 * sum(lengths)
    with pytest.raises(ParameterError, match="batch=0: must be 1 or more"):
        next(instruction_batches(samples, 0))


def test_both_formats_are_read(tmp_path: Path) -> None:
    wanted = [PLAIN, ABOUT]
    rows = [sample.model_dump() for sample in wanted]
    del rows[0]["input"]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_instructions(tmp_path / "a.json") == wanted
    assert read_instructions(str(tmp_path / "a.jsonl")) == wanted


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    rows = [Instruction(instruction=f"a{mark}b", output="c") for mark in "\u2028\u2029\x85"]
    path = tmp_path / "a.jsonl"
    path.write_text("\r\n".join(row.model_dump_json() for row in rows), encoding="utf-8")
    assert "\x85" in path.read_text(encoding="utf-8"), "not escaped"
    assert read_instructions(path) == rows


GOOD = '{"instruction": "a", "output": "b"}'


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.jsonl", f"{GOOD}\n{{oops\n", r"a.jsonl:2='{oops': is not JSON \(Expecting property name"),
    ("a.json", f"[{GOOD},\n\n{{]", r"a.json='\[.*\(Expecting .*, line 3, column 2"),
    ("a.json", "", "a.json='': is not JSON"), ("a.json", "[\n", "is not JSON .*, line 2, column 1"),
    ("a.json", "[]", "has no samples"),
    ("a.jsonl", "\n", "has no samples"),
    ("a.json", GOOD, "a.json='dict': must be a JSON list"),
    ("a.json", f"[{GOOD}, {{}}]", "a.json, item 2: instruction=None: field required"),
    ("a.jsonl", f'{GOOD}\n{{"instruction": 3}}', "a.jsonl:2: instruction='3': input should be a "),
    ("a.jsonl", '{"instruction": "a", "answer": "b"}', "a.jsonl:1: answer='b': extra inputs"),
    ("a.jsonl", "7", "a.jsonl:1='7': must be a JSON object"),
    ("a.jsonl", '{"instruction": ""}', "a.jsonl:1: instruction='': string should have at least 1"),
])
def test_malformed_files_name_file_and_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ParameterError, match=message) as caught:
        read_instructions(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"none.json'?: cannot be read \(No such file"):
        read_instructions(tmp_path / "none.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ParameterError, match=r"a.json=.*is not UTF-8 \(byte 1\)"):
        read_instructions(tmp_path / "a.json")
