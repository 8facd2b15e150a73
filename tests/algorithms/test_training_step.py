"""The three GEMMs of a sparse layer against references that use no autograd."""

import copy
from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from algorithms import METHODS, NmConv2d, NmLayer, NmLinear, apply_mask, nm_mask, sparsify
from algorithms.plan import plan_layer
from rtl.pattern import DENSE, NmPattern

PATTERN = NmPattern(2, 8)


def fp16(tensor: Tensor) -> Tensor:
    return tensor.detach().half().double()


def sparse(module: nn.Module, method: str) -> NmLayer:
    """``module`` alone, swapped; rules lift the default that keeps an only layer dense."""
    sparsify(module, method, PATTERN, rules={type(module): PATTERN})
    assert isinstance(module, NmLayer)
    return module


def expected_weights(weight: Tensor, groups: int, method: str) -> tuple[Tensor, Tensor]:
    blocks = weight.detach().half().view(groups, -1, *weight.shape[1:])
    chosen = METHODS[method]
    forward = backward = blocks
    if chosen.forward == "weight":
        forward = apply_mask(blocks, nm_mask(blocks, PATTERN, 2))
    if chosen.backward == "weight":
        backward = apply_mask(blocks, nm_mask(blocks, PATTERN, 1))
    else:
        backward = forward
    return forward.reshape(weight.shape).double(), backward.reshape(weight.shape).double()


def expected_grad(grad: Tensor, groups: int, method: str) -> Tensor:
    """dY that BP reads: (B, C_out, ...) pruned along its channels for SDGP."""
    rounded = grad.half()
    if METHODS[method].backward == "grad":
        blocks = rounded.view(grad.shape[0], groups, -1, *grad.shape[2:])
        rounded = apply_mask(blocks, nm_mask(blocks, PATTERN, 2)).view(grad.shape)
    return rounded.double()


def update_grad(grad: Tensor, method: str, seen: list[Tensor]) -> Tensor:
    """dY that WU reads; for BDWP+WU what the layer drew: 1:2 along batch and pixels, unbiased."""
    if METHODS[method].update != "grad":
        return fp16(grad)
    (drawn,) = seen
    assert drawn.shape == grad.shape
    rows, whole = (t.movedim(1, -1).flatten(0, -2) for t in (drawn.double(), fp16(grad)))
    if len(rows) % 2:
        rows, whole = (torch.cat([t, torch.zeros(1, t.shape[1])]) for t in (rows, whole))
    pairs, sums = rows.view(-1, 2, rows.shape[1]), whole.view(-1, 2, rows.shape[1]).abs().sum(1)
    # Either of a pair stands for both: the one that is left has the sum of their magnitudes.
    assert (pairs != 0).sum(1).max() == 1
    torch.testing.assert_close(pairs.abs().sum(1), sums.half().double(), rtol=1e-3, atol=1e-6)
    kept = pairs != 0
    assert torch.equal(pairs.sign()[kept], whole.view(pairs.shape).sign()[kept])
    return drawn.double()


def watched(layer: NmLayer) -> list[Tensor]:
    seen: list[Tensor] = []
    layer.watch_update(seen.append)
    return seen


def close(actual: Tensor | None, expected: Tensor) -> None:
    assert actual is not None
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [(16, 24), (20, 9)])
def test_linear_step_equals_the_reference(method: str, sizes: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = sparse(nn.Linear(*sizes), method)
    x = torch.randn(3, 5, sizes[0], requires_grad=True)
    grad = torch.randn(3, 5, sizes[1])
    seen = watched(layer)
    y = layer(x)
    y.backward(grad)
    forward, backward = expected_weights(layer.weight, 1, method)
    rows, dy = fp16(x).flatten(0, 1), grad.flatten(0, 1)
    close(y, F.linear(fp16(x), forward, layer.get_parameter("bias").detach().double()))
    close(x.grad, (expected_grad(dy, 1, method) @ backward).view(x.shape))
    close(layer.weight.grad, update_grad(dy, method, seen).T @ rows)
    close(layer.get_parameter("bias").grad, fp16(dy).sum(0))
    assert torch.equal(layer.forward_weight().double(), forward)
    assert torch.equal(layer.backward_weight().double(), backward)


CONVOLUTIONS: dict[str, Callable[[], nn.Conv2d]] = {
    "plain": lambda: nn.Conv2d(16, 24, 3, padding=1),
    "strided": lambda: nn.Conv2d(16, 8, (3, 5), stride=(2, 1), padding=(1, 2), bias=False),
    "dilated": lambda: nn.Conv2d(8, 16, 3, dilation=2, padding=2),
    "padded": lambda: nn.Conv2d(12, 10, 1),
    "grouped": lambda: nn.Conv2d(32, 48, 3, padding=1, groups=2),
}


def reference_conv(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolution_step_equals_the_reference(method: str, kind: str) -> None:
    torch.manual_seed(0)
    layer = sparse(CONVOLUTIONS[kind](), method)
    assert isinstance(layer, NmConv2d)
    x = torch.randn(2, layer.in_channels, 7, 6, requires_grad=True)
    seen = watched(layer)
    y = layer(x)
    grad = torch.randn(y.shape)
    y.backward(grad)
    forward, backward = expected_weights(layer.weight, layer.groups, method)
    geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation,
                "groups": layer.groups}
    bias = 0 if layer.bias is None else layer.bias.detach().double().view(-1, 1, 1)
    close(y, reference_conv(layer, fp16(x), forward) + bias)
    close(x.grad, conv2d_input(  # type: ignore[no-untyped-call]
        x.shape, backward, expected_grad(grad, layer.groups, method), **geometry))
    close(layer.weight.grad, conv2d_weight(  # type: ignore[no-untyped-call]
        fp16(x), layer.weight.shape, update_grad(grad, method, seen), **geometry))
    if layer.bias is not None:
        close(layer.bias.grad, fp16(grad).sum((0, 2, 3)))
    assert torch.equal(layer.forward_weight().double(), forward)
    assert torch.equal(layer.backward_weight().double(), backward)


# Torch's own layer warns that an even kernel with "same" padding copies the input; ours does not.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("padding", [1, (0, 2), "same", "valid"])
def test_every_padding_of_a_dense_layer_equals_torch(
    mode: Literal["zeros", "circular", "reflect", "replicate"], padding: int | str | tuple[int, int]
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, (4, 3), padding=padding, padding_mode=mode)
    x = torch.randint(-3, 4, (2, 8, 9, 9)).float()
    with torch.no_grad():
        plain.weight.copy_(torch.randint(-3, 4, plain.weight.shape))
    left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = plain(left)
    expected.sum().backward()
    actual = sparse(plain, "dense")(right)
    actual.sum().backward()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(right.grad, left.grad)


def test_unbatched_images_are_accepted() -> None:
    layer = sparse(nn.Conv2d(8, 8, 3), "bdwp")
    x = torch.randn(8, 5, 5)
    assert torch.equal(layer(x), layer(x[None])[0])


def test_operands_overflow_to_infinity_and_never_saturate() -> None:
    layer = sparse(nn.Linear(8, 8, bias=False), "dense")
    x = torch.full((1, 8), 1e6, requires_grad=True)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    assert layer(x).isinf().all()
    layer(torch.ones(1, 8, requires_grad=True)).backward(torch.full((1, 8), 1e6))
    assert layer.weight.grad is not None and layer.weight.grad.isinf().all()


def test_only_the_gradients_asked_for_are_computed() -> None:
    for module, x in ((nn.Linear(8, 8), torch.randn(2, 8)),
                      (nn.Conv2d(8, 8, 1), torch.randn(2, 8, 2, 2))):
        for method in ("bdwp", "sdgp", "bdwp+wu"):
            layer = sparse(copy.deepcopy(module), method)
            layer(x).sum().backward()
            assert layer.weight.grad is not None
            layer.weight.requires_grad_(False)
            layer.weight.grad = None
            x_grad = x.clone().requires_grad_()
            layer(x_grad).sum().backward()
            assert layer.weight.grad is None and x_grad.grad is not None


def test_autocast_does_not_lower_the_products() -> None:
    torch.manual_seed(0)
    for module, x in ((nn.Linear(64, 16), torch.randn(4, 64)),
                      (nn.Conv2d(16, 16, 3), torch.randn(2, 16, 5, 5))):
        layer = sparse(module, "bdwp")
        expected = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = layer(x)
            actual.sum().backward()
        assert actual.dtype == torch.float32 and torch.equal(actual, expected)


def test_gradients_have_the_dtype_of_their_tensor() -> None:
    layer = sparse(nn.Linear(16, 16).double(), "bdwp")
    x = torch.randn(2, 16, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float64
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float64


def test_sdgp_prunes_the_gradient_and_reports_dense_weights() -> None:
    plan = plan_layer(METHODS["sdgp"], PATTERN, 16, 16)
    assert plan.executed_patterns() == {"FF": DENSE, "BP": PATTERN, "WU": DENSE}
    assert plan.weight_patterns() == {"FF": DENSE, "BP": DENSE, "WU": DENSE}


def test_a_second_derivative_is_refused() -> None:
    layer = sparse(nn.Linear(8, 8), "bdwp")
    assert isinstance(layer, NmLinear)
    x = torch.randn(2, 8, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()  # type: ignore[no-untyped-call]
