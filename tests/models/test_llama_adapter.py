"""LLaMA-Adapter: starts as the base model, adds what the paper says, trains 1.2 M parameters."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from models.llama_adapter import (
    LLAMA_SIZES,
    AdapterAttention,
    Llama,
    example,
    insert_adapter,
    llama,
    llama_adapter,
)

HEADS = 4
KV_HEADS = pytest.mark.parametrize("kv_heads", [HEADS, 2], ids=["MHA", "GQA"])
IDS = torch.randint(64, (2, 7), generator=torch.Generator().manual_seed(1))


def base_model(kv_heads: int = 2) -> LlamaForCausalLM:
    """Three layers, of 4 heads with 8 features each: not those of width / heads."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=40, num_hidden_layers=3, head_dim=8,
        num_attention_heads=HEADS, num_key_value_heads=kv_heads, use_cache=False,
    ))


def adapted(kv_heads: int = 2) -> Llama:
    """The topmost two layers of it with five prompt rows each."""
    base = base_model(kv_heads)
    insert_adapter(base, layers=2, prompt=5)
    return Llama(base)


def adapters(model: nn.Module) -> list[AdapterAttention]:
    """In order of layers."""
    return [module for module in model.modules() if isinstance(module, AdapterAttention)]


def open_gates(model: nn.Module) -> None:
    """Another value for every head of every layer."""
    torch.manual_seed(2)
    for attention in adapters(model):
        nn.init.normal_(attention.gate)


def loss(model: nn.Module) -> Tensor:
    """A number that every logit has a part in."""
    logits: Tensor = model(IDS)
    return logits.logsumexp(-1).sum()


def on_meta(size: str, adapter: bool) -> nn.Module:
    """Shapes without values."""
    with torch.device("meta"):
        return llama_adapter(size) if adapter else llama(size)


def direct(attention: AdapterAttention, x: Tensor) -> Tensor:
    """Attention (B, S, width) written out head by head in float64, equations 4 to 7 of the paper.

    Rotary positions as products of complex numbers, of feature i and feature i + d / 2.
    """
    size = attention.head_dim
    weights = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
    q, k, v = (weight.detach().double().view(-1, size, x.shape[2]) for weight in weights)
    prompt, gate = attention.prompt.detach().double(), attention.gate.detach().double()
    length = x.shape[1]
    frequencies = 10000 ** (-torch.arange(0, size, 2).double() / size)
    angles = torch.arange(length).double()[:, None] * frequencies
    turn = torch.polar(torch.ones_like(angles), angles)

    def rotate(rows: Tensor) -> Tensor:
        turned = torch.complex(rows[..., :size // 2], rows[..., size // 2:]) * turn
        return torch.cat([turned.real, turned.imag], -1)

    future = torch.ones(length, length).triu(1).bool()
    heads = []
    for head in range(HEADS):
        shared = head * len(k) // HEADS
        query = rotate(x @ q[head].T)
        scores = query @ rotate(x @ k[shared].T).mT / size ** 0.5
        tokens = scores.masked_fill(future, -torch.inf).softmax(-1) @ (x @ v[shared].T)
        weighted = (query @ (prompt @ k[shared].T).T / size ** 0.5).softmax(-1)
        heads.append(tokens + gate[head].tanh() * (weighted @ (prompt @ v[shared].T)))
    return torch.cat(heads, -1) @ attention.o_proj.weight.detach().double().T


@KV_HEADS
def test_starts_as_the_base_model(kv_heads: int) -> None:
    expected = base_model(kv_heads)(input_ids=IDS).logits
    model = adapted(kv_heads)
    assert len(adapters(model)) == 2
    assert torch.equal(model(IDS), expected)
    open_gates(model)
    assert not torch.allclose(model(IDS), expected)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_sizes_start_as_their_base_models(size: str) -> None:
    ids = example(size, batch=2)
    assert torch.equal(llama_adapter(size, seed=3)(ids), llama(size, seed=3)(ids))


def test_adapters_stay_float32_on_a_bfloat16_base() -> None:
    base = base_model().bfloat16()
    expected = base(input_ids=IDS).logits
    insert_adapter(base, layers=3, prompt=5)
    model = Llama(base)
    assert expected.dtype == torch.bfloat16 and torch.equal(model(IDS), expected)
    open_gates(model)
    loss(model).backward()  # type: ignore[no-untyped-call]
    for attention in adapters(model):
        for values in (attention.prompt, attention.gate):
            assert values.dtype == torch.float32
            assert values.grad is not None and values.grad.any()


def test_gates_learn_first_and_prompts_next() -> None:
    model = adapted()
    loss(model).backward()  # type: ignore[no-untyped-call]
    for attention in adapters(model):
        assert attention.gate.grad is not None and attention.gate.grad.all()
        assert attention.prompt.grad is not None and not attention.prompt.grad.any()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    optimiser.step()
    loss(model).backward()  # type: ignore[no-untyped-call]
    assert all(a.prompt.grad is not None and a.prompt.grad.any(1).all() for a in adapters(model))


@KV_HEADS
def test_attention_is_the_papers(kv_heads: int) -> None:
    model = adapted(kv_heads)
    open_gates(model)
    seen: list[tuple[AdapterAttention, Tensor, Tensor]] = []
    for attention in adapters(model):
        attention.register_forward_hook(
            lambda module, _, given, out: seen.append((module, given["hidden_states"], out[0])),
            with_kwargs=True)
    with torch.no_grad():
        model(IDS)
    assert len(seen) == 2
    for attention, x, mixed in seen:
        torch.testing.assert_close(
            mixed.double(), direct(attention, x.double()), rtol=1e-5, atol=1e-5)
        # A tolerance that would also pass without prompts shows nothing.
        nn.init.zeros_(attention.gate)
        assert (mixed - direct(attention, x.double())).abs().max() > 1e-3


def test_adapters_alone_train() -> None:
    model = adapted()
    trained = {name for name, values in model.named_parameters() if values.requires_grad}
    assert trained == {f"base.model.layers.{layer}.self_attn.{name}"
                       for layer in (1, 2) for name in ("prompt", "gate")}
    # Checkpoints of the base fit as they are.
    missing, unexpected = model.base.load_state_dict(base_model().state_dict(), strict=False)
    assert not unexpected and {f"base.{name}" for name in missing} == trained
    assert all(values.requires_grad for values in llama("tiny").parameters())


def test_full_size_has_the_published_parameters() -> None:
    model = on_meta("full", adapter=True)
    trained = sum(values.numel() for values in model.parameters() if values.requires_grad)
    assert trained == 30 * (10 * 4096 + 32) == 1_229_760
    base = sum(values.numel() for values in on_meta("full", adapter=False).parameters())
    assert base == 6_738_415_616  # LLaMA-7B
    assert sum(values.numel() for values in model.parameters()) == base + trained


def flops(adapter: bool, training: bool) -> Counter[str]:
    """FLOP of the full size by operator, 4 x 512 tokens.

    On ``meta`` no fused kernel exists: attention runs as its two batched products, ``bmm``, each
    counted at its full size S x S, causal or not.
    """
    model, ids = on_meta("full", adapter), example("full", device="meta")
    with FlopCounterMode(display=False) as counter:
        logits = model(ids)
        if training:
            logits.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    return Counter({str(name): count for name, count in counts.items()})


@pytest.mark.parametrize(("adapter", "forward", "step"), [(True, 27.64, 53.88),
                                                          (False, 27.61, 82.84)])
def test_full_size_has_the_derived_work(adapter: bool, forward: float, step: float) -> None:
    assert round(flops(adapter, training=False).total() / 1e12, 2) == forward
    assert round(flops(adapter, training=True).total() / 1e12, 2) == step


def test_adapter_adds_ten_rows_to_each_product() -> None:
    added = flops(adapter=True, training=False) - flops(adapter=False, training=False)
    assert added == {
        "aten.mm": 30 * 2 * 2 * 10 * 4096 * 4096,  # keys and values, once for the whole batch
        "aten.bmm": 30 * 2 * 4 * 32 * 2 * 512 * 128 * 10,  # scores, and values by them
    }


def test_exports_to_plain_operators() -> None:
    model, ids = on_meta("tiny", adapter=True), example("tiny", device="meta")
    program = torch.export.export(model, (ids,), strict=False)
    called = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    assert all(name.startswith("aten.") for name in called)
    assert called["aten.linear.default"] == 3 * 7 + 1 + 2 * 2
    assert called["aten.scaled_dot_product_attention.default"] == 3 + 2


def test_exported_program_gives_the_same_logits() -> None:
    model, ids = llama_adapter("tiny"), example("tiny")
    open_gates(model)
    program = torch.export.export(model, (ids,), strict=False)
    assert torch.equal(program.module()(ids), model(ids))


def test_later_tokens_and_other_sequences_do_not_matter() -> None:
    # An eager base would look ahead: nobody gives it a mask.
    base = base_model()
    base.set_attn_implementation("eager")
    insert_adapter(base, layers=2, prompt=5)
    model = Llama(base)
    open_gates(model)
    changed = IDS.clone()
    changed[0, 4:] = 0
    changed[1] = 0
    torch.testing.assert_close(model(changed)[0, :4], model(IDS)[0, :4])
    assert not torch.allclose(model(changed)[0, 4:], model(IDS)[0, 4:])


def test_the_bases_own_forward_pass_works_with_padding_but_without_a_cache() -> None:
    base = base_model()
    insert_adapter(base, layers=2, prompt=5)
    open_gates(base)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), IDS], 1)
    mask = (torch.arange(10) >= 3).expand(2, -1).long()
    # Rotated queries meet prompt keys that are not, so positions must be those without padding.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = base(input_ids=padded, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(logits[:, 3:], base(input_ids=IDS).logits)
    with pytest.raises(ValueError, match="use_cache=False"):
        base(input_ids=IDS, use_cache=True)


def test_initialisation_depends_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = (llama_adapter("tiny", seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], second[key]) for key in first)
    for name in ("self_attn.prompt", "mlp.up_proj.weight"):
        key = f"base.model.layers.2.{name}"
        assert not torch.equal(first[key], other[key])


@pytest.mark.parametrize("size", LLAMA_SIZES)
def test_examples_fit_their_model(size: str) -> None:
    shape, ids = LLAMA_SIZES[size], example(size)
    assert ids.dtype == torch.int64 and ids.shape == (shape.batch, shape.tokens)
    assert int(ids.min()) >= 0 and int(ids.max()) < shape.vocabulary
    assert torch.equal(ids, example(size))
    few = example(size, batch=2, tokens=8, device="meta")
    assert on_meta(size, adapter=True)(few).shape == (2, 8, shape.vocabulary)


def test_what_is_not_there_is_refused_by_name() -> None:
    for ask in (llama, llama_adapter, example):
        with pytest.raises(ValueError, match=r"size='huge': must be one of tiny, small, full"):
            ask("huge")
    base = base_model()
    for layers in (0, 4):
        with pytest.raises(ValueError, match=f"layers={layers}: must be from 1 to 3"):
            insert_adapter(base, layers, prompt=5)
    with pytest.raises(ValueError, match="prompt=0: must be 1 or more"):
        insert_adapter(base, 1, prompt=0)
    assert all(values.requires_grad for values in base.parameters()) and not adapters(base)
