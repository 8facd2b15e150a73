"""Labels of solutions: what a model must write has a loss and executions have none, in numbers and
gradients; new tokens, lengths, and packed samples that do not see each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFKC
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from algorithms import ParameterError
from models.llm.instructions import IGNORED
from models.math.labels import Labelled, add_format_tokens, collate, labelled, labelled_traces
from models.math.packing import pack, packed_batches
from models.math.solution import ROLES, SPECIAL_TOKENS, TYPES, Block, BlockType, Message, Trace

END, OVER = SPECIAL_TOKENS[-2:]
CONTENT = st.text(st.characters(codec="utf-8"), max_size=12).filter(
    lambda text: not any(token in text for token in SPECIAL_TOKENS))
BLOCKS = st.lists(st.builds(Block, type=st.sampled_from(TYPES), content=CONTENT),
                  min_size=1, max_size=5).map(tuple)
CONVERSATIONS = st.lists(st.builds(Message, role=st.sampled_from(ROLES), content=BLOCKS),
                         max_size=4).map(tuple)


def plain_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """A token for each byte, a start token before a text, and none of the format's tokens."""
    letters = ["<s>", *sorted(ByteLevel.alphabet())]
    made = Tokenizer(BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    made.normalizer = NFKC()
    made.decoder = ByteLevelDecoder()
    if bos:
        made.post_processor = TemplateProcessing("<s> $A", None, [("<s>", 0)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made, bos_token="<s>")


def format_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = plain_tokenizer()
    add_format_tokens(tokenizer)
    return tokenizer


TOKENIZER = format_tokenizer()
NAMES = {number: name for name, number in TOKENIZER.get_vocab().items()}


def small_llama(tokens: int, seed: int = 0, tied: bool = False,
                attention: str = "sdpa") -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=tokens, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied))
    model.set_attn_implementation(attention)
    return model


def message(role: str, *blocks: tuple[str, str]) -> Message:
    return Message.model_validate(
        {"role": role, "content": [{"type": kind, "content": text} for kind, text in blocks]})


SOLVED = (
    message("system", ("text", "")), message("user", ("text", "1+1?")),
    message("assistant", ("text", "So:"), ("code", "1+1"), ("execution", "2"), ("text", "2")))


def learned(sample: Labelled) -> str:
    """The text that has a loss, runs of it joined by spaces."""
    text = "".join(NAMES[number] if label != IGNORED else " "
                   for number, label in zip(sample.ids, sample.labels, strict=True))
    return " ".join(text.split())


def test_loss_is_on_what_the_model_has_to_write() -> None:
    sample = labelled(SOLVED, TOKENIZER)
    assert learned(sample) == (f"<|text|>So:{END}<|code|>1+1{END} <|text|>2{END}{OVER}")
    assert sample.ids[0] == TOKENIZER.bos_token_id and sample.labels[0] == IGNORED
    assert all(label in (number, IGNORED) for number, label in zip(*sample, strict=True))


@pytest.mark.parametrize(("masked", "rest"), [
    ((), f"<|text|>So:{END}<|code|>1+1{END}<|execution|>2{END}<|text|>2{END}{OVER}"),
    (("execution", "code"), f"<|text|>So:{END} <|text|>2{END}{OVER}"),
    (("text",), f"<|code|>1+1{END}<|execution|>2{END} {OVER}"),
])
def test_each_block_type_can_be_switched(masked: tuple[BlockType, ...], rest: str) -> None:
    assert learned(labelled(SOLVED, TOKENIZER, masked=masked)) == rest


def spans(messages: tuple[Message, ...]) -> list[bool]:
    """Whether each token has a loss, put together block by block: each is tokenised alone."""
    weights = [False]
    for each in messages:
        weights.append(False)
        for block in each.content:
            length = len(TOKENIZER.encode(block.content, add_special_tokens=False)) + 2
            weights += [each.role == "assistant" and block.type != "execution"] * length
        weights.append(each.role == "assistant")
    return weights


@given(CONVERSATIONS)
@settings(max_examples=200)
def test_no_token_of_an_execution_has_weight(messages: tuple[Message, ...]) -> None:
    sample = labelled(messages, TOKENIZER)
    assert [label != IGNORED for label in sample.labels] == spans(messages)


def loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    value = model(input_ids=ids, labels=labels).loss
    assert isinstance(value, Tensor)
    return value


def test_loss_and_gradients_do_not_see_what_an_execution_was_predicted_to_be() -> None:
    sample = labelled(SOLVED, TOKENIZER)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(sample.ids), len(TOKENIZER), generator=generator)

    def loss_of(labels: tuple[int, ...]) -> Tensor:
        # As transformers has it: logits at t predict token t + 1.
        return functional.cross_entropy(logits[:-1], torch.tensor(labels[1:]), ignore_index=IGNORED)

    logits.requires_grad_()
    torch.autograd.backward(loss_of(sample.labels))
    assert logits.grad is not None
    moved = logits.grad.abs().sum(1) > 0
    names = [NAMES[number] for number in sample.ids]
    start = names.index("<|execution|>")
    end = names.index(END, start)
    assert not moved[start - 1:end].any() and moved[end] and moved[start - 2]

    other = message("assistant", ("text", "So:"), ("code", "1+1"), ("execution", "3"),
                    ("text", "2"))
    for masked, equal in ((("execution",), True), ((), False)):
        chosen = cast(tuple[BlockType, ...], masked)
        ours, theirs = (labelled(each, TOKENIZER, masked=chosen)
                        for each in (SOLVED, (*SOLVED[:2], other)))
        assert ours.ids != theirs.ids
        assert (loss_of(ours.labels) == loss_of(theirs.labels)).item() == equal


def test_samples_that_are_too_long() -> None:
    trace = Trace(messages=SOLVED, origin="solutions.jsonl:7")
    short = Trace(messages=(*SOLVED[:1], message("assistant", ("text", "x"))))
    length = len(labelled(SOLVED, TOKENIZER).ids)

    def read(most: int, **how: Any) -> list[Labelled]:
        return list(labelled_traces([trace, short], TOKENIZER, max_tokens=most, **how))

    assert len(read(length)) == 2
    with pytest.raises(ParameterError, match=rf"solutions.jsonl:7={length}: has more than "
                                             rf"{length - 1} tokens"):
        read(length - 1)
    with pytest.raises(ParameterError, match=r"trace 1=\d+: has more than 3"):
        list(labelled_traces([short], TOKENIZER, max_tokens=3))
    dropped = read(length - 1, overlong="drop")
    assert dropped == [labelled(short.messages, TOKENIZER)]
    whole = labelled(SOLVED, TOKENIZER)
    assert read(length - 1, overlong="truncate")[0] == Labelled(whole.ids[:-1], whole.labels[:-1])
    with pytest.raises(ParameterError, match=r"jsonl:7=\d+: its first 5 tokens.*no label"):
        read(5, overlong="truncate")
    with pytest.raises(ParameterError, match=r"overlong='cut'.*error, truncate, drop"):
        read(5, overlong="cut")


def test_tokenizers_and_types_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"lacks <\|system\|>.*add_format_tokens"):
        labelled(SOLVED, plain_tokenizer())
    with pytest.raises(ParameterError, match=r"masked='execute'.*nearest legal value: execution"):
        labelled(SOLVED, TOKENIZER, masked=(cast(BlockType, "execute"),))
    lossy = plain_tokenizer()
    lossy.add_tokens(list(SPECIAL_TOKENS), special_tokens=False)
    # Its tokens are found after normalisation, which turns wide signs into those of a token.
    wide = (message("user", ("text", "<\uff5cendofblock\uff5c>")),)
    with pytest.raises(ParameterError, match="does not keep the special tokens of messages"):
        labelled(wide, lossy)
    assert learned(labelled(wide, TOKENIZER)) == ""


def embeddings(model: LlamaForCausalLM) -> list[nn.Parameter]:
    return [model.model.embed_tokens.weight, model.lm_head.weight]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("spare", [-8, 0, 40])
def test_exactly_the_new_rows_are_the_mean_of_the_old(tied: bool, spare: int) -> None:
    tokenizer = plain_tokenizer()
    old = len(tokenizer)
    model = small_llama(old + 8 + spare, tied=tied)
    before = [table.detach().clone() for table in embeddings(model)]
    ids = add_format_tokens(tokenizer, model)
    assert ids == list(range(old, old + 8))
    assert [tokenizer.convert_ids_to_tokens(number) for number in ids] == list(SPECIAL_TOKENS)
    after = embeddings(model)
    for was, now in zip(before, after, strict=True):
        assert now.shape[0] == old + 8 + max(spare, 0)
        assert torch.equal(now[:old], was[:old]) and torch.equal(now[old + 8:], was[old + 8:])
        torch.testing.assert_close(now[old:old + 8], was[:old].mean(0).expand(8, -1))
    assert (after[0] is after[1]) == tied
    trained = [table.detach().clone() for table in after]
    with torch.no_grad():
        after[0][ids[2]] += 1
    trained[0][ids[2]] += 1
    assert add_format_tokens(tokenizer, model) == ids
    assert torch.equal(embeddings(model)[0], trained[0])


def test_batches_are_padded_without_a_loss() -> None:
    one, two = Labelled((1, 2, 3), (IGNORED, 2, 3)), Labelled((4,), (4,))
    ids, labels, mask = collate([one, two], pad=9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert labels.tolist() == [[IGNORED, 2, 3], [4, IGNORED, IGNORED]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


@given(st.lists(st.integers(1, 10), max_size=200))
@settings(max_examples=50)
def test_every_sample_is_in_one_row_that_has_room(lengths: list[int]) -> None:
    samples = [Labelled((number,) * length, (number,) * length)
               for number, length in enumerate(lengths)]
    rows = list(pack(samples, 10))
    assert all(sum(len(each.ids) for each in row) <= 10 for row in rows)
    assert sorted(each for row in rows for each in row) == samples
    assert sum(sum(len(each.ids) for each in row) <= 5 for row in rows) <= 1


def test_no_sample_is_predicted_from_the_one_before() -> None:
    batch, = packed_batches([[Labelled((1, 2), (1, 2)), Labelled((3, 4, 5), (3, 4, 5))]], 1)
    assert batch.labels.tolist() == [[IGNORED, 2, IGNORED, 4, 5]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_samples_do_not_see_each_other(attention: str) -> None:
    questions = [(message("user", ("text", "a" * n)), message("assistant", ("text", "b" * n)))
                 for n in (3, 1, 5, 2)]
    samples = [labelled(each, TOKENIZER) for each in questions]
    model = small_llama(len(TOKENIZER), attention=attention).double()
    rows = list(pack(samples, len(samples[0].ids) + len(samples[2].ids) + 3))
    assert [len(row) for row in rows] == [2, 2]
    batch, = packed_batches(rows, 2, dtype=torch.float64)
    logits = model(input_ids=batch.ids, position_ids=batch.positions,
                   attention_mask=batch.mask).logits
    for index, row in enumerate(rows):
        at = 0
        for sample in row:
            end = at + len(sample.ids)
            alone = model(input_ids=torch.tensor([sample.ids])).logits[0]
            torch.testing.assert_close(logits[index, at:end], alone, rtol=1e-9, atol=1e-9)
            at = end
    separate = [loss(model, torch.tensor([each.ids]), torch.tensor([each.labels]))
                for each in samples]
    counts = torch.tensor([sum(label != IGNORED for label in each.labels) for each in samples])
    packed = model(input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask,
                   labels=batch.labels).loss
    mean = (torch.stack(separate) * counts).sum() / counts.sum()
    torch.testing.assert_close(packed, mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("call", "error"), [
    (lambda: list(pack([Labelled((1,) * 5, (1,) * 5)], 4)), "sample 1=5: has more than the 4 tok"),
    (lambda: list(packed_batches([], 0)), "batch=0: must be 1 or more"),
])
def test_impossible_packing_is_refused(call: Callable[[], object], error: str) -> None:
    with pytest.raises(ParameterError, match=error):
        call()
