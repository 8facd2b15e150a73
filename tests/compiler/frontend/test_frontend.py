"""Captured products and values: sizes, names, what is fused, and what trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from frontend_cases import CONVOLUTIONS, Lambda, captured, host_names, only_product
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compiler.frontend.export import capture
from compiler.ir import Product


def macs(product: Product) -> int:
    return product.batch * product.p * product.q * product.k


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_a_convolution_is_its_im2col_product(layer: nn.Conv1d | nn.Conv2d) -> None:
    flat = isinstance(layer, nn.Conv1d)
    x = torch.randn(2, layer.in_channels, *((19,) if flat else (11, 10)))
    with FlopCounterMode(display=False) as counter:
        y = layer(x)
    forward = capture(nn.Sequential(layer), x)
    product = only_product(forward)
    assert 2 * macs(product) == counter.get_total_flops()
    assert product.batch == layer.groups
    assert product.taps == layer.weight[0, 0].numel()
    assert product.window is not None
    assert product.window.size == ((1, 19) if flat else (11, 10))
    assert product.window.out_size == ((1, y.shape[2]) if flat else tuple(y.shape[2:]))
    assert product.fused == (() if layer.bias is None else ("bias",))
    assert forward.values[product.output].shape == tuple(y.shape)


def test_padding_by_name_has_its_larger_half_behind() -> None:
    layer = nn.Conv2d(2, 3, (4, 3), padding="same")
    product = only_product(capture(layer, torch.randn(1, 2, 9, 9)))
    assert product.window is not None
    assert product.window.conv.padding == (1, 1, 1, 2)


def test_an_image_without_batch_is_one_image() -> None:
    product = only_product(capture(nn.Conv2d(2, 3, 3), torch.randn(2, 9, 9)))
    assert (product.p, product.q, product.k) == (49, 3, 18)


def test_a_linear_layer_multiplies_every_position() -> None:
    product = only_product(capture(nn.Sequential(nn.Linear(6, 4)), torch.randn(2, 5, 6)))
    assert product == Product("0", "input", "0.weight", "linear", 10, 4, 6, fused=("bias",),
                              bias="0.bias")


MATMULS = [
    ((3, 4), (4, 5), (3, 5, 4, 1)), ((2, 3, 4), (4, 5), (6, 5, 4, 1)),
    ((2, 3, 4), (2, 4, 5), (3, 5, 4, 2)), ((2, 1, 3, 4), (7, 4, 5), (3, 5, 4, 14)),
    ((4,), (4, 5), (1, 5, 4, 1)), ((2, 3, 4), (4,), (6, 1, 4, 1)), ((4,), (4,), (1, 1, 4, 1)),
]


@pytest.mark.parametrize(("left", "right", "expected"), MATMULS)
def test_matmul_broadcasts(
    left: tuple[int, ...], right: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    forward = captured(lambda _, a, b: a @ b, torch.randn(left), torch.randn(right))
    product = only_product(forward)
    assert (product.p, product.q, product.k, product.batch) == expected
    assert (product.left, product.right, product.name) == (*forward.inputs, "matmul")
    assert forward.outputs == (product.output,)


@pytest.mark.parametrize(("equation", "shapes"), [
    ("bsd,btd->bst", [(2, 3, 4), (2, 5, 4)]), ("bhqd,bhkd->bhqk", [(2, 3, 5, 4), (2, 3, 6, 4)]),
    ("ij,jk,kl->il", [(3, 4), (4, 5), (5, 6)]), ("bi,oij,bj->bo", [(2, 3), (4, 3, 5), (2, 5)]),
])
def test_einsum_is_the_products_that_torch_makes_of_it(
    equation: str, shapes: list[tuple[int, ...]]
) -> None:
    operands = [torch.randn(shape) for shape in shapes]
    with FlopCounterMode(display=False) as counter:
        torch.einsum(equation, operands)
    forward = captured(lambda _, *given: torch.einsum(equation, given), *operands)
    assert 2 * sum(map(macs, forward.products)) == counter.get_total_flops()


def test_products_that_add_have_a_bias_or_a_residual() -> None:
    x, w = torch.randn(3, 4), torch.randn(4, 5)
    bias = only_product(captured(lambda _, *given: torch.addmm(*given), torch.randn(5), x, w))
    assert (bias.fused, bias.bias, bias.residual) == (("bias",), "inputs_0", None)
    add = only_product(captured(lambda _, *given: torch.addmm(*given), torch.randn(3, 5), x, w))
    assert (add.fused, add.bias, add.residual) == (("add",), None, "inputs_0")
    column = captured(lambda _, *given: torch.addmm(*given), torch.randn(3, 1), x, w)
    assert only_product(column).fused == ()
    assert host_names(column) == ["add"]


@pytest.mark.parametrize("gqa", [False, True])
def test_attention_is_two_products_around_a_softmax(gqa: bool) -> None:
    def attend(_: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)

    heads = 2 if gqa else 4
    q = torch.randn(3, 4, 5, 8)
    k, v = torch.randn(3, heads, 6, 8), torch.randn(3, heads, 6, 7)
    forward = captured(lambda m, *given: m.attention(*given), q, k, v, attention=Lambda(attend))
    scores, softmax, values = forward.nodes
    assert isinstance(scores, Product) and isinstance(values, Product)
    assert (scores.p, scores.q, scores.k, scores.batch) == (5, 6, 8, 12)
    assert (values.p, values.q, values.k, values.batch) == (5, 7, 6, 12)
    assert [node.name for node in forward.nodes] == [
        "attention.scores", "attention.softmax", "attention.values"]
    assert scores.outputs == softmax.inputs and softmax.outputs == (values.left,)


def test_bias_residual_and_relu_leave_with_the_product() -> None:
    forward = captured(lambda m, x: F.relu(m.layer(x) + x), torch.randn(3, 4),
                       layer=nn.Linear(4, 4))
    product = only_product(forward)
    assert product.fused == ("bias", "add", "relu")
    assert product.residual == forward.inputs[0]
    assert forward.outputs == (product.output,)
    assert host_names(forward) == []


def test_operators_in_place_are_fused_too() -> None:
    def block(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 2
        y += m.layer(y)
        return F.relu_(y), y

    forward = captured(block, torch.randn(3, 4), layer=nn.Linear(4, 4, bias=False))
    product = only_product(forward)
    assert product.fused == ("add", "relu")
    assert forward.outputs == (product.output,), "both are the tensor that was written to"


def test_views_in_order_do_not_stop_fusion_but_others_do() -> None:
    layers = {"layer": nn.Linear(4, 4), "drop": nn.Dropout(0.0)}

    def block(m: Any, x: Tensor) -> Tensor:
        return F.relu_(m.drop(m.layer(x)).view(2, 2, 4) + x.view(2, 2, 4))

    assert only_product(captured(block, torch.randn(4, 4), **layers)).fused == (
        "bias", "add", "relu")
    turned = captured(lambda m, x: m.layer(x).t() + x, torch.randn(4, 4), **layers)
    assert only_product(turned).fused == ("bias",)


def test_a_result_with_another_reader_is_not_fused() -> None:
    def block(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.layer(x)
        return F.relu(y), y

    forward = captured(block, torch.randn(3, 4), layer=nn.Linear(4, 4, bias=False))
    assert only_product(forward).fused == ()
    assert host_names(forward) == ["relu"]


def test_the_later_of_two_branches_adds() -> None:
    forward = captured(lambda m, x: m.a(x) + m.b(x), torch.randn(3, 4), a=nn.Linear(4, 4),
                       b=nn.Linear(4, 4))
    first, second = forward.products
    assert (first.fused, second.fused) == (("bias",), ("bias", "add"))
    assert second.residual == first.output


def test_an_operand_changed_in_between_is_not_added_early() -> None:
    def block(m: Any, x: Tensor) -> Tensor:
        x = x * 2
        y: Tensor = m.layer(x)
        x.mul_(3)
        return y + x

    forward = captured(block, torch.randn(3, 4), layer=nn.Linear(4, 4))
    assert only_product(forward).fused == ("bias",)
    assert host_names(forward) == ["mul", "mul#1", "add"]


def test_views_read_what_was_written_through_another() -> None:
    def block(_: nn.Module, x: Tensor) -> Tensor:
        y = x.relu()
        row, copied = y[0], y.clone()
        row.fill_(1.0)
        return y.t() @ copied

    product = only_product(captured(block, torch.randn(3, 4)))
    assert (product.left, product.right) == ("fill_", "relu")


def test_views_are_the_value_that_they_show() -> None:
    def block(_: nn.Module, x: Tensor) -> Tensor:
        a, b = x.reshape(4, 6).t().unsqueeze(0).expand(5, 6, 4).contiguous().chunk(2, dim=1)
        return torch.bmm(a, b.to(torch.float64).float().permute(0, 2, 1).detach())

    forward = captured(block, torch.randn(2, 3, 4))
    assert forward.nodes == forward.products
    product = only_product(forward)
    assert product.left == product.right == forward.inputs[0]
    assert (product.p, product.q, product.k, product.batch) == (3, 3, 4, 5)


def test_a_shared_layer_is_numbered_and_goes_by_its_first_name() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    forward = capture(model, torch.randn(3, 4))
    assert [product.name for product in forward.products] == ["0", "0#1"]
    assert {product.right for product in forward.products} == {"0.weight"}
    assert forward.parameters == {"0.weight": 16, "0.bias": 4}


def test_a_tied_weight_is_one_parameter() -> None:
    embed, head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    head.weight = embed.weight
    forward = captured(lambda m, ids: m.head(m.embed(ids)), torch.zeros(2, 3, dtype=torch.long),
                       embed=embed, head=head)
    assert forward.parameters == {"embed.weight": 40}
    assert only_product(forward).right == "embed.weight"
    assert only_product(forward).name == "head"


def test_functional_products_have_the_name_of_their_module() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 4, 8))
            self.other = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.bmm(x, self.up)
            return y @ y.mT @ F.linear(y, self.other.weight)

    forward = capture(nn.Sequential(Block()), torch.randn(3, 5, 4))
    assert [product.name for product in forward.products] == [
        "0.up", "0.matmul", "0.linear", "0.matmul#1"]


def test_a_weight_on_the_left_is_moved_to_the_right() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight @ x

    product = only_product(capture(nn.Sequential(Mixer()), torch.randn(2, 3, 4)))
    assert product.right == "0.weight"
    assert (product.p, product.q, product.k, product.batch) == (8, 5, 3, 1)
