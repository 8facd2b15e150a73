"""Multiply-accumulates of whole training steps against PyTorch's own counter."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from frontend_cases import Lambda
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compiler.frontend.backward import training_step
from compiler.frontend.export import capture


def counted(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of a forward and a backward pass, as PyTorch counts them."""
    # Fused attention computes the scores twice; the step keeps them.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(*inputs).sum().backward()
    return int(counter.get_total_flops()) // 2


def stages(model: nn.Module, *inputs: Tensor) -> Counter[str]:
    found: Counter[str] = Counter()
    for _, gemm in training_step(capture(model, *inputs)).gemms():
        found[gemm.stage] += gemm.dense_macs
    return found


class Decoder(nn.Module):
    """The layers of LLaMA: norms and rotary embedding are no products and do not matter here."""

    def __init__(
        self, width: int, inner: int, layers: int, heads: int, kv_heads: int, words: int
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.embed = nn.Embedding(words, width)
        kv = width // heads * kv_heads
        self.layers = nn.ModuleList(
            nn.ModuleDict({
                "norm": nn.RMSNorm(width), "q": nn.Linear(width, width, bias=False),
                "k": nn.Linear(width, kv, bias=False), "v": nn.Linear(width, kv, bias=False),
                "o": nn.Linear(width, width, bias=False), "norm2": nn.RMSNorm(width),
                "gate": nn.Linear(width, inner, bias=False),
                "up": nn.Linear(width, inner, bias=False),
                "down": nn.Linear(inner, width, bias=False),
            }) for _ in range(layers))
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            y = layer["norm"](x)
            q, k, v = (layer[name](y).unflatten(-1, (heads, -1)).transpose(1, 2) for name, heads in
                       (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + layer["o"](y.transpose(1, 2).flatten(2))
            y = layer["norm2"](x)
            x = x + layer["down"](F.silu(layer["gate"](y)) * layer["up"](y))
        logits: Tensor = self.head(x)
        return logits


MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "perceptron": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (5, 6)),
    "same convolution": (
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
                      nn.Conv2d(8, 8, 3, padding="same", dilation=2)), (2, 3, 9, 8)),
    "pointwise": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), (2, 3, 5, 5)),
    "one axis": (
        nn.Sequential(nn.Conv1d(3, 8, 5, padding=2), nn.Conv1d(8, 4, 3, padding=1)), (2, 3, 9)),
    "self-attention": (
        Lambda(lambda m, x: m.layer(x, x, x)[0], layer=nn.MultiheadAttention(
            16, 4, batch_first=True)), (2, 5, 16)),
    "encoder": (nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (2, 5, 16)),
    "einsum": (
        Lambda(lambda m, x: torch.einsum("bsd,btd,te->bse", m.a(x), m.b(x), m.c.weight),
               a=nn.Linear(6, 8), b=nn.Linear(6, 8), c=nn.Linear(4, 5)), (3, 5, 6)),
    "broadcast": (
        Lambda(lambda m, x: m.a(x)[:, None] @ m.b(x).mT[None] @ x[:, None],
               a=nn.Linear(6, 8), b=nn.Linear(6, 8)), (3, 5, 6)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_has_the_macs_that_torch_counts(name: str) -> None:
    model, shape = MODELS[name]
    x = torch.randn(shape)
    assert sum(stages(model, x).values()) == counted(model, x)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_decoder_has_the_macs_that_torch_counts(kv_heads: int) -> None:
    model = Decoder(16, 24, 2, 4, kv_heads, 32)
    ids = torch.zeros(2, 6, dtype=torch.long)
    found = stages(model, ids)
    assert sum(found.values()) == counted(model, ids)
    attention = 2 * 2 * 2 * 6 * 6 * 16
    assert found["WU"] == found["FF"] - attention
    assert found["BP"] == found["FF"] + attention


def test_a_frozen_model_with_an_adapter_has_the_macs_that_torch_counts() -> None:
    model = Decoder(16, 24, 3, 4, 4, 32).requires_grad_(False)
    layer = model.layers[1]
    assert isinstance(layer, nn.ModuleDict)
    layer["up"].requires_grad_(True)
    ids = torch.zeros(2, 6, dtype=torch.long)
    assert sum(stages(model, ids).values()) == counted(model, ids)


@st.composite
def stacks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Convolutions that keep the image's size, pooling and residual blocks, then linear layers."""
    channels, size = draw(st.integers(1, 6)), draw(st.integers(4, 9))
    x = torch.randn(draw(st.integers(1, 3)), channels, size, size)
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(0, 3))):
        width, kernel = draw(st.integers(1, 6)), draw(st.sampled_from([1, 3]))
        layers.append(nn.Conv2d(channels, width, kernel, padding="same", bias=draw(st.booleans()),
                                dilation=draw(st.integers(1, 2))))
        layers.append(draw(st.sampled_from([nn.ReLU(), nn.BatchNorm2d(width), nn.GELU(),
                                            nn.AvgPool2d(2, 1)])))
        channels = width
    layers.append(nn.Flatten())
    features = int(nn.Sequential(*layers)(x)[0].numel())
    for _ in range(draw(st.integers(1, 3))):
        width = draw(st.integers(1, 8))
        layers += [nn.Linear(features, width), draw(st.sampled_from([nn.ReLU(), nn.Tanh()]))]
        features = width
    model = nn.Sequential(*layers)
    frozen = draw(st.integers(0, len(layers) - 2))
    model[:frozen].requires_grad_(False)
    return model, x


@settings(max_examples=25)
@given(stacks())
def test_random_stacks_have_the_macs_that_torch_counts(stack: tuple[nn.Module, Tensor]) -> None:
    model, x = stack
    assert sum(stages(model, x).values()) == counted(model, x)


def test_full_fine_tuning_of_llama_7b_takes_the_published_work() -> None:
    """4 sequences of 512 tokens: 27.61 + 28.16 + 27.06 TFLOP, attention dense."""
    with torch.device("meta"):
        model = Decoder(4096, 11008, 32, 32, 32, 32000)
    found = stages(model, torch.zeros(4, 512, dtype=torch.long))
    teraflop = {stage: round(2 * macs / 1e12, 2) for stage, macs in found.items()}
    assert teraflop == {"FF": 27.61, "BP": 28.16, "WU": 27.06}
    assert round(2 * sum(found.values()) / 1e12, 2) == 82.84
