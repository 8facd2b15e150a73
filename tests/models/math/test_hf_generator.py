"""Local models as generators: exact greedy text, stops, seeds, batches, and errors."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from algorithms import ParameterError
from models.math.generation import PromptTooLongError
from models.math.hf_generator import HfGenerator

END, OWN_END = "<|endofblock|>", "</s>"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
CONTEXT = 48
PROMPTS = ["a", "hello", "b2", "abcabc", "hello", "zzzzzzzzzz"]


def spelling() -> PreTrainedTokenizerFast:
    """A token a character, two special tokens."""
    vocabulary = {letter: i for i, letter in enumerate((*LETTERS, "?"))}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="?"))
    raw.pre_tokenizer, raw.decoder = Split(Regex("."), "isolated"), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw, eos_token=OWN_END, unk_token="?")
    tokenizer.add_special_tokens({"additional_special_tokens": [END]})
    return tokenizer


@pytest.fixture(scope="module", autouse=True)
def single_thread() -> Iterator[None]:
    """Products this small take longer on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return spelling()


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights large enough that the next token depends on the text."""
    torch.manual_seed(5)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=None))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.4)
    return model


@pytest.fixture
def generator(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> HfGenerator:
    return HfGenerator(model, tokenizer)


def greedy(generator: HfGenerator, prompt: str, count: int, stop: str = "") -> str:
    """One token at a time, without cache or padding."""
    ids = generator.tokenizer(prompt)["input_ids"]
    new: list[int] = []
    while len(new) < count:
        with torch.no_grad():
            token = int(generator.model(torch.tensor([ids + new])).logits[0, -1].argmax())
        if token == generator.tokenizer.eos_token_id:
            break
        new.append(token)
        if stop and str(generator.tokenizer.decode(new)).endswith(stop):
            break
    return str(generator.tokenizer.decode(new))


def test_greedy_text_is_that_of_single_steps(generator: HfGenerator) -> None:
    texts = generator.generate(PROMPTS, stop=[END], max_new_tokens=16)
    assert texts == [greedy(generator, prompt, 16, END) for prompt in PROMPTS]
    assert len(set(texts)) > 2


def test_a_special_token_ends_its_row_alone(model: LlamaForCausalLM, generator: HfGenerator,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    end = generator.tokenizer.get_vocab()[END]
    bias_after(model, monkeypatch, "q", end)
    texts = generator.generate(["aq", "a"], stop=[END], max_new_tokens=8)
    assert texts[0] == END
    assert texts[1] == greedy(generator, "a", 8, END) and len(texts[1]) > 1


def test_the_models_own_end_is_not_part_of_the_text(
        model: LlamaForCausalLM, generator: HfGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    end = generator.tokenizer.get_vocab()[OWN_END]
    bias_after(model, monkeypatch, "q", end)
    assert generator.generate(["aq"], stop=[END], max_new_tokens=8) == [""]


def bias_after(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, letter: str,
               token: int) -> None:
    """Make ``token`` follow ``letter`` for certain."""
    forward = model.forward
    trigger = LETTERS.index(letter)

    def biased(input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out = forward(input_ids, *args, **kwargs)
        out.logits[input_ids[:, -1] == trigger, -1, token] += 1e4
        return out

    monkeypatch.setattr(model, "forward", biased)


def test_a_stop_string_of_several_tokens_ends_the_text(generator: HfGenerator) -> None:
    whole = greedy(generator, "hello", 12)
    stop = next(pair for pair in map("".join, itertools.pairwise(whole)) if pair.isalnum())
    cut = whole[:whole.index(stop) + 2]
    texts = generator.generate(["hello", "a"], stop=[stop], max_new_tokens=12)
    assert texts[0] == cut
    assert texts[1] == greedy(generator, "a", 12, stop)


def test_a_stop_string_cannot_begin_in_the_prompt(generator: HfGenerator) -> None:
    whole = greedy(generator, "hello", 6)
    stop = "o" + whole[0]
    assert stop not in whole
    assert generator.generate(["hello"], stop=[stop], max_new_tokens=6) == [whole]


def test_an_impossible_stop_string_is_named(generator: HfGenerator) -> None:
    with pytest.raises(ParameterError, match="no token of the tokenizer's vocabulary"):
        generator.generate(["a"], stop=["é"], max_new_tokens=2)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_samples_do_not_depend_on_the_batch(model: LlamaForCausalLM, batch_size: int,
                                            tokenizer: PreTrainedTokenizerFast) -> None:
    whole = HfGenerator(model, tokenizer).generate(
        PROMPTS, stop=[END], max_new_tokens=16, temperature=1.3, seed=3)
    again = HfGenerator(model, tokenizer, batch_size=batch_size).generate(
        PROMPTS, stop=[END], max_new_tokens=16, temperature=1.3, seed=3)
    assert whole == again
    alone = HfGenerator(model, tokenizer).generate(
        PROMPTS[2:3], stop=[END], max_new_tokens=16, temperature=1.3, seed=3)
    assert alone == whole[2:3]


def test_seeds_and_equal_prompts_differ(generator: HfGenerator) -> None:
    def sample(seed: int) -> list[str]:
        return generator.generate(["hello"] * 4, stop=[END], max_new_tokens=16, temperature=1.5,
                                  seed=seed)
    assert sample(0) == sample(0)
    assert len({*sample(0), *sample(1)}) == 8


def test_samples_follow_the_models_distribution(generator: HfGenerator) -> None:
    """Chi-square of first tokens against the softmax; the critical value is for p = 0.001."""
    draws, temperature = 1500, 2.0
    ids = torch.tensor([generator.tokenizer("a")["input_ids"]])
    with torch.no_grad():
        logits = generator.model(ids).logits[0, -1].double()
    likely = (logits / temperature).softmax(-1)
    # An end of the model's own is an empty text.
    counts = Counter(HfGenerator(generator.model, generator.tokenizer, batch_size=draws).generate(
        ["a"] * draws, stop=[END], max_new_tokens=1, temperature=temperature, seed=1))
    names = [str(generator.tokenizer.decode([i])) for i in range(len(likely))]
    names[generator.tokenizer.eos_token_id] = ""
    bins = [(counts[name], float(p) * draws) for name, p in zip(names, likely, strict=True)]
    often = [pair for pair in bins if pair[1] >= 5]
    rare = [pair for pair in bins if pair[1] < 5]
    often.append((sum(n for n, _ in rare), sum(e for _, e in rare)))
    statistic = sum((n - e) ** 2 / e for n, e in often)
    freedom = len(often) - 1
    assert freedom > 5
    # Wilson and Hilferty's approximation of the quantile.
    critical = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < critical, (statistic, critical, "seed 1")


def test_texts_end_where_the_context_does(generator: HfGenerator) -> None:
    long = "ab" * 22
    texts = generator.generate([long, "a"], stop=[END], max_new_tokens=16)
    assert texts == [greedy(generator, long, CONTEXT - len(long), END),
                     greedy(generator, "a", 16, END)]


def test_prompts_without_room_are_named(generator: HfGenerator) -> None:
    with pytest.raises(PromptTooLongError, match=r"prompts='50 tokens': 2 of 3 prompts leave no "
                       r"room for a new token in the model's 48; nearest legal value: 47") as error:
        generator.generate(["a" * 50, "b", "c" * 48], stop=[END], max_new_tokens=4)
    assert error.value.indices == (0, 2)


@pytest.mark.parametrize(("options", "message"), [
    ({"max_new_tokens": 0}, "max_new_tokens=0: must be 1 or more"),
    ({"temperature": -0.5}, "temperature=-0.5: must be 0 or more"),
    ({"stop": END}, "stop=.*must be a sequence of strings"),
    ({"stop": [""]}, "stop=.*not empty"),
])
def test_bad_requests_are_named(generator: HfGenerator, options: dict[str, Any],
                                message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        generator.generate(["a"], **{"stop": [END], "max_new_tokens": 2, **options})


def test_bad_generators_are_named(model: LlamaForCausalLM,
                                  tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ParameterError, match="must have one token or more"):
        HfGenerator(model, tokenizer).generate([""], stop=[END], max_new_tokens=2)
    with pytest.raises(ParameterError, match="batch_size=0"):
        HfGenerator(model, tokenizer, batch_size=0)
    with pytest.raises(ParameterError, match="with generate"):
        HfGenerator(model.model, tokenizer)


def test_training_mode_and_no_prompts(generator: HfGenerator) -> None:
    generator.model.train()
    assert generator.generate([], stop=[END], max_new_tokens=2) == []
    assert generator.generate(["a"], stop=[END], max_new_tokens=2)
    assert generator.model.training
    generator.model.eval()  # type: ignore[no-untyped-call]
