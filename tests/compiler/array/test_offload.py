"""Every product of a model on the array's arithmetic: which run, with which pattern and name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms import METHODS, apply_mask, nm_mask, sparse_layers, sparsify
from compiler.array.offload import Offload, Product, golden_product
from rtl.pattern import DENSE, NmPattern
from sim import golden


class Block(nn.Module):
    """Attention over two heads and a linear layer with a bias; sizes that 8 does not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(20, 12, bias=False), nn.Linear(20, 24, bias=False)
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, 20) to (B, S, 5)."""
        query, key, value = (one.unflatten(-1, (2, 6)).transpose(1, 2)
                             for one in (self.q(x), *self.kv(x).chunk(2, -1)))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


X = torch.randn(3, 7, 20, generator=torch.Generator().manual_seed(0))


def block() -> Block:
    """The same one each time."""
    torch.manual_seed(1)
    return Block()


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and all gradients of a step."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    out = model(x)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    found = [values.grad for values in model.parameters()]
    return [out.detach(), *(one for one in (x.grad, *found) if one is not None)]


def test_all_products_of_a_step_run_and_the_step_goes_on_with_them() -> None:
    model, seen = block(), list[Product]()
    plain = gradients(model, X)
    with Offload(model, note=seen.append) as offload:
        ours = gradients(model, X)
    assert not offload.elsewhere
    forward = [(one.name, one.a.shape, one.b.shape[2]) for one in seen if one.stage == "FF"]
    assert forward == [("q", (1, 21, 20), 12), ("kv", (1, 21, 20), 24), ("Block", (6, 7, 6), 7),
                       ("Block[#2]", (6, 7, 7), 6), ("out", (1, 21, 12), 5)]
    backward = {(one.name, one.stage): (one.a.shape, one.b.shape[2]) for one in seen[5:]}
    assert len(backward) == len(seen) - 5
    assert backward == {
        ("out", "BP"): ((1, 21, 5), 12), ("out", "WU"): ((1, 5, 21), 12),
        ("Block", "BP"): ((6, 7, 7), 6), ("Block[#2]", "BP"): ((6, 7, 6), 7),
        ("Block[#3]", "BP"): ((6, 6, 7), 7), ("Block[#4]", "BP"): ((6, 7, 7), 6),
        ("kv", "BP"): ((1, 21, 24), 20), ("kv", "WU"): ((1, 24, 21), 20),
        ("q", "BP"): ((1, 21, 12), 20), ("q", "WU"): ((1, 12, 21), 20)}
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)
        # Operands in FP16 leave a trace; the gradient of the bias has no product.
        assert torch.equal(one, other) == (one.dim() == 1)
    for product in seen:
        assert product.pattern == DENSE
        assert np.array_equal(product.c, golden_product(product.a, product.b, DENSE))
        np.testing.assert_allclose(product.c, product.torch_c, rtol=1e-4, atol=1e-5)


def test_a_run_of_its_own_is_what_the_step_goes_on_with() -> None:
    model = block()
    calls: list[int] = []

    def zeros(a: np.ndarray, b: np.ndarray, _: NmPattern) -> np.ndarray:
        calls.append(a.size)
        return np.zeros((len(a), a.shape[1], b.shape[2]), np.float32)

    with Offload(model, zeros), torch.no_grad():
        out = model(X)
    assert len(calls) == 5
    assert torch.equal(out, model.out.bias.expand(3, 7, 5))


@pytest.mark.parametrize("method", METHODS)
def test_pruned_operands_are_recognised_in_every_pass(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 40), nn.ReLU(),
                          nn.Linear(40, 8))
    sparsify(model, method, "2:8", gradient="2:4")
    seen: list[Product] = []
    torch.manual_seed(3)
    with Offload(model, note=seen.append):
        got = gradients(model, torch.randn(13, 20))
    torch.manual_seed(3)
    plain = gradients(model, torch.randn(13, 20))
    for one, other in zip(got, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    by_name = {(one.name, one.stage): one for one in seen}
    assert len(by_name) == 9 == len(seen)
    for name, layer in sparse_layers(model):
        plan = layer.nm_plan
        expected = plan.executed_patterns()
        for stage in ("FF", "BP", "WU"):
            assert by_name[name, stage].pattern == expected[stage], (name, stage)
    sparse = [product for product in seen if product.pattern != DENSE]
    assert bool(sparse) == (method != "dense")
    for product in sparse:
        # Selection finds nothing left to prune.
        assert product.pattern.mask(product.b[0])[product.b[0] != 0].all()


def test_frozen_layers_have_no_weight_gradient_product() -> None:
    model, seen = block(), list[Product]()
    model.kv.requires_grad_(False)
    with Offload(model, note=seen.append):
        gradients(model, X)
    assert ("kv", "BP") in {(one.name, one.stage) for one in seen}
    assert ("kv", "WU") not in {(one.name, one.stage) for one in seen}


def test_a_weight_on_the_left_is_the_second_operand_all_the_same() -> None:
    model = nn.Linear(16, 8, bias=False)
    sparsify(model, "bdwp", "2:8", rules={"*": "2:8"})
    layer = next(iter(dict(sparse_layers(model)).values()))
    weight, x = layer.forward_weight().float(), torch.randn(16, 3)
    seen: list[Product] = []
    with Offload(model, note=seen.append):
        y = weight @ x
    assert seen[0].a.shape == (1, 3, 16) and str(seen[0].pattern) == "2:8"
    want = golden.gemm(x.half().numpy().T.copy(), weight.half().numpy().T.copy())
    assert np.array_equal(y.numpy(), want.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_results_have_the_dtype_of_the_operands(dtype: torch.dtype) -> None:
    model = nn.Linear(16, 8).to(dtype)
    with Offload(model), torch.no_grad():
        y = model(torch.ones(2, 16, dtype=dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y, model(torch.ones(2, 16, dtype=dtype)), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("call", "name"), [
    (lambda: F.conv2d(torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3)), "aten.convolution"),
    (lambda: torch.addmm(torch.ones(2, 2), torch.ones(2, 3), torch.ones(3, 2), beta=2),
     "aten.addmm"),
], ids=["convolution", "scaled addition"])
def test_what_is_no_plain_product_is_counted(call: Callable[[], Tensor], name: str) -> None:
    plain = call()
    with Offload(nn.Identity()) as offload:
        assert torch.equal(call(), plain)
    assert [(key.split()[-1], count) for key, count in offload.elsewhere.items()] == [(name, 1)]


def test_a_plain_layer_over_pruned_weights_runs_dense() -> None:
    """Only a sparse layer promises a pattern."""
    model = nn.Linear(16, 8, bias=False)
    with torch.no_grad():
        model.weight.copy_(apply_mask(model.weight, nm_mask(model.weight, NmPattern(2, 8), 1)))
    seen: list[Product] = []
    with Offload(model, note=seen.append), torch.no_grad():
        model(torch.ones(2, 16))
    assert [one.pattern for one in seen] == [DENSE]


def test_the_model_is_as_before_even_after_a_failure() -> None:
    model = block()
    sparsify(model, "bdwp+wu", "2:8")
    plain = model(X)

    def broken(*_: object) -> np.ndarray:
        raise RuntimeError("out of time")

    def attempt() -> None:
        with Offload(model, broken):
            model(X)

    with pytest.raises(RuntimeError, match="out of time"):
        attempt()
    assert torch.equal(model(X), plain)
