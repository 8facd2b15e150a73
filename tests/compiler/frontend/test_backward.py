"""The training step out of a forward graph: which gradients, with what sizes, after which tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from frontend_cases import CONVOLUTIONS, Lambda, captured
from torch import Tensor, nn

from compiler.frontend.backward import training_step
from compiler.frontend.export import capture
from compiler.ir import Gemm, HostTask, Step, Update


def gemms(step: Step) -> dict[str, Gemm]:
    found = {gemm.name: gemm for _, gemm in step.gemms()}
    assert len(found) == len(list(step.gemms())), "names are unique"
    return found


def step_of(model: nn.Module, *inputs: Tensor) -> Step:
    step = training_step(capture(model, *inputs))
    for index, task in enumerate(step.tasks):
        assert all(need < index for need in task.needs), f"{task.name} comes too early"
        assert len(set(task.needs)) == len(task.needs)
    return step


def needs(step: Step, name: str) -> set[str]:
    (task,) = (task for task in step.tasks if task.name == name)
    return {step.tasks[need].name for need in task.needs}


def names(step: Step) -> list[str]:
    return [task.name for task in step.tasks]


def test_a_perceptron_trains_in_the_known_order() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    step = step_of(model, torch.randn(3, 4))
    assert names(step) == [
        "0 FF", "2 FF", "2 BP", "2 WU", "0 WU", "0.weight update", "0.bias update",
        "2.weight update", "2.bias update"]
    found = gemms(step)
    sizes = {name: (gemm.p, gemm.q, gemm.k) for name, gemm in found.items()}
    assert sizes == {"0 FF": (3, 8, 4), "2 FF": (3, 2, 8), "2 BP": (3, 8, 2), "2 WU": (8, 2, 3),
                     "0 WU": (4, 8, 3)}
    operands = {name: (gemm.a, gemm.b, gemm.c, gemm.weight) for name, gemm in found.items()}
    assert operands["2 FF"] == ("linear", "2.weight", "linear_1", "2.weight")
    assert operands["2 BP"] == ("grad(linear_1)", "2.weight", "grad(linear)", "2.weight")
    assert operands["2 WU"] == ("linear", "grad(linear_1)", "grad(2.weight)", "2.weight")


def test_the_forward_pass_alone_has_no_gradients() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    step = training_step(capture(model, torch.randn(3, 4)), training=False)
    assert names(step) == ["0 FF", "1.gelu", "2 FF"]
    assert not step.training


def test_tasks_need_what_they_read() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    step = step_of(model, torch.randn(3, 4))
    assert needs(step, "1.gelu") == {"0 FF"}
    assert needs(step, "2 FF") == {"1.gelu"}
    assert needs(step, "2 BP") == {"2 FF"}, "the loss reads the output"
    assert needs(step, "2 WU") == {"2 FF", "1.gelu"}
    assert needs(step, "1.gelu backward") == {"2 BP", "0 FF", "1.gelu"}
    assert needs(step, "0 WU") == {"1.gelu backward"}
    assert needs(step, "0.weight update") == {"0 WU"}
    assert needs(step, "0.bias update") == {"1.gelu backward"}


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_the_gradient_of_a_convolution_skips_the_zeros_of_its_stride(
    layer: nn.Conv1d | nn.Conv2d,
) -> None:
    """Counted by a transposed convolution of ones that reach beyond the image on all sides."""
    axes = layer.weight.dim() - 2
    x = torch.ones(2, layer.in_channels, *(19, 10)[:axes], requires_grad=True)
    step = step_of(nn.Sequential(layer), x)
    (window,) = (product.window for product in step.forward.products)
    assert window is not None
    conv, margin = window.conv, 12
    around = torch.ones(1, 1, *(size + 2 * margin for size in window.out_size))
    met = F.conv_transpose2d(around, torch.ones(1, 1, *conv.kernel), stride=conv.stride,
                             dilation=conv.dilation)
    top, left = (margin * stride + pad for stride, pad in zip(
        conv.stride, (conv.padding[2], conv.padding[0]), strict=True))
    inside = met[0, 0, top : top + window.size[0], left : left + window.size[1]]
    assert inside.shape == window.size
    channels = layer.in_channels * layer.out_channels // layer.groups
    bp = [gemm for _, gemm in step.gemms() if gemm.stage == "BP"]
    assert sum(gemm.dense_macs for gemm in bp) == 2 * channels * int(inside.sum())
    assert all(gemm.k == gemm.taps * layer.out_channels // layer.groups for gemm in bp)
    assert {gemm.batch for gemm in bp} == {layer.groups}
    ff, wu = (gemms(step)[f"0 {stage}"] for stage in ("FF", "WU"))
    assert (wu.p, wu.q, wu.k, wu.batch, wu.taps) == (ff.k, ff.q, ff.p, ff.batch, 1)
    assert wu.result_bytes == 4


def test_residues_that_no_tap_meets_are_left_out() -> None:
    x = torch.randn(2, 5, 7, 7, requires_grad=True)
    found = gemms(step_of(nn.Sequential(nn.Conv2d(5, 8, 1, stride=2)), x))
    assert list(found) == ["0 FF", "0 BP 0,0", "0 WU"]
    assert (found["0 BP 0,0"].p, found["0 BP 0,0"].q, found["0 BP 0,0"].k) == (32, 5, 8)
    found = gemms(step_of(nn.Sequential(nn.Conv2d(5, 8, 3, stride=2, padding=1)), x))
    taps = {name: gemm.taps for name, gemm in found.items() if gemm.stage == "BP"}
    assert taps == {"0 BP 0,0": 1, "0 BP 0,1": 2, "0 BP 1,0": 2, "0 BP 1,1": 4}


def test_both_gradients_of_a_product_of_activations_are_bp() -> None:
    step = step_of(Lambda(lambda m, x: m.q(x) @ m.k(x).mT, q=nn.Linear(4, 8), k=nn.Linear(4, 8)),
                   torch.randn(2, 3, 4))
    found = gemms(step)
    assert found["matmul FF"].weight is None
    left, right = found["matmul BP left"], found["matmul BP right"]
    assert (left.p, left.q, left.k, left.batch) == (3, 8, 3, 2)
    assert (right.p, right.q, right.k, right.batch) == (8, 3, 3, 2)
    assert (left.a, left.b, left.c) == ("grad(matmul.bmm)", "linear_1", "grad(linear)")
    assert (right.a, right.b, right.c) == ("linear", "grad(matmul.bmm)", "grad(linear_1)")
    assert left.result_bytes == right.result_bytes == 2
    assert needs(step, "matmul BP left") == {"matmul FF", "k FF"}


def test_a_frozen_base_gets_no_gradient_below_the_adapter() -> None:
    base, adapter, head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    base.requires_grad_(False)
    head.requires_grad_(False)
    step = step_of(nn.Sequential(base, adapter, head), torch.randn(3, 4))
    assert names(step) == ["0 FF", "1 FF", "2 FF", "2 BP", "1 WU", "1.weight update",
                           "1.bias update"]


def test_low_rank_adapters_train_beside_their_frozen_layer() -> None:
    base = nn.Linear(8, 8).requires_grad_(False)
    model = Lambda(lambda m, x: m.base(x) + m.up(m.down(x)), base=base,
                   down=nn.Linear(8, 2, bias=False), up=nn.Linear(2, 8, bias=False))
    assert names(step_of(model, torch.randn(3, 8))) == [
        "base FF", "down FF", "up FF", "up BP", "up WU", "down WU", "down.weight update",
        "up.weight update"]


def test_the_gradient_of_a_prompt_comes_out_of_the_weights_of_its_layer() -> None:
    class Prompted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prompt = nn.Parameter(torch.randn(5, 4))
            self.layer = nn.Linear(4, 6, bias=False).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.layer(self.prompt), self.layer(x)])

    step = step_of(Prompted(), torch.randn(3, 4))
    gemm = gemms(step)["layer BP"]
    assert (gemm.p, gemm.q, gemm.k, gemm.c) == (5, 4, 6, "grad(prompt)")
    assert (gemm.b, gemm.weight, gemm.result_bytes) == ("layer.weight", "layer.weight", 4)
    assert step.tasks[-1] == Update("prompt", 20, half=True, needs=step.tasks[-1].needs)
    assert needs(step, "prompt update") == {"layer BP"}


def test_nothing_flows_through_detach_or_into_unused_values() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.a(x)
        m.unused(y)
        return m.b(y.detach()), y.argmax(-1)

    model = Lambda(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), unused=nn.Linear(4, 4))
    step = step_of(model, torch.randn(3, 4))
    assert names(step) == ["a FF", "unused FF", "b FF", "argmax", "b WU", "b.weight update",
                           "b.bias update"]
    assert gemms(step)["b FF"].a == gemms(step)["b WU"].a == "linear"
    assert needs(step, "b FF") == {"a FF"}


def test_a_layer_used_twice_adds_up_its_gradient() -> None:
    layer = nn.Linear(4, 4)
    step = step_of(nn.Sequential(layer, nn.Tanh(), layer), torch.randn(3, 4))
    first, second = gemms(step)["0#1 WU"], gemms(step)["0 WU"]
    assert (first.vector_ops, first.epilogue_words) == (1, 0)
    assert (second.vector_ops, second.epilogue_words) == (2, 2)
    assert needs(step, "0.weight update") == {"0 WU", "0#1 WU"}
    assert needs(step, "0 WU") >= {"0#1 WU"}


def test_a_tied_embedding_is_updated_once_after_both_uses() -> None:
    embed, head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    head.weight = embed.weight
    model = Lambda(lambda m, ids: m.head(m.embed(ids)), embed=embed, head=head)
    step = step_of(model, torch.zeros(2, 3, dtype=torch.long))
    assert names(step) == ["embed.embedding", "head FF", "head BP", "head WU",
                           "embed.embedding backward", "embed.weight update"]
    assert needs(step, "embed.weight update") == {"head WU", "embed.embedding backward"}
    update = step.tasks[-1]
    assert update == Update("embed.weight", 40, half=True, needs=update.needs)


def test_an_update_says_whether_a_product_reads_the_parameter() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    updates = [task for task in step_of(model, torch.randn(3, 4)).tasks if isinstance(task, Update)]
    assert {update.parameter: update.half for update in updates} == {
        "0.weight": True, "0.bias": False, "1.weight": False, "1.bias": False}


def test_the_gate_of_a_relu_and_residual_gradients_are_part_of_bp() -> None:
    def block(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.first(x))
        z = F.relu(m.a(y))
        return F.relu(m.b(z) + y)

    model = Lambda(block, first=nn.Linear(4, 4), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    step = step_of(model, torch.randn(3, 4))
    found = {name: (gemm.vector_ops, gemm.epilogue_words) for name, gemm in gemms(step).items()}
    assert found == {
        "first FF": (2, 0), "a FF": (2, 0), "b FF": (3, 1),
        "b BP": (2, 1), "b WU": (1, 0),  # gate of a
        "a BP": (3, 2), "a WU": (1, 0),  # gate of first, and the residual's gradient
        "first WU": (1, 0),
    }
    assert needs(step, "a BP") == {"b BP", "b FF", "first FF"}


def test_gradients_that_no_gemm_can_add_are_added_by_the_host() -> None:
    def block(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.first(x)
        return m.a(x) + y, m.b(x) + y

    model = Lambda(block, first=nn.Linear(4, 4), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    step = step_of(model, torch.randn(3, 4))
    (addition,) = (task for task in step.tasks if isinstance(task, HostTask))
    assert addition == HostTask("linear gradient", "aten.add", True, 3 * 12 * 2, False,
                                addition.needs)
    assert needs(step, "first WU") == {"linear gradient"}


def test_host_gradients_move_operands_results_and_gradients() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    step = step_of(model, torch.randn(3, 4))
    (backward,) = (t for t in step.tasks if isinstance(t, HostTask) and t.backward)
    activation, parameters = 3 * 4 * 2, 2 * 4 * 4
    assert backward.bytes == (activation + parameters) + activation + (activation + parameters)


def test_fallbacks_stay_marked_in_the_step() -> None:
    forward = capture(nn.LSTM(4, 4), torch.randn(5, 3, 4), host_fallback=True)
    marks = [(t.name, t.fallback) for t in training_step(forward).tasks if isinstance(t, HostTask)]
    assert marks[-2:] == [("lstm", True), ("lstm backward", True)]


def test_a_product_reading_one_value_twice_gives_it_two_gradients() -> None:
    step = step_of(Lambda(lambda m, x: (y := m.layer(x)) @ y.mT, layer=nn.Linear(4, 4)),
                   torch.randn(2, 3, 4))
    found = gemms(step)
    assert found["matmul BP left"].c == found["matmul BP right"].c == "grad(linear)"
    assert found["matmul BP right"].vector_ops == found["matmul BP left"].vector_ops + 1
    assert needs(step, "layer WU") == {"matmul BP left", "matmul BP right"}


def test_frozen_models_have_only_a_forward_pass() -> None:
    forward = captured(lambda m, x: m.a(x), torch.randn(3, 4),
                       a=nn.Linear(4, 4).requires_grad_(False))
    assert names(training_step(forward)) == ["a FF"]
    assert training_step(replace(forward, outputs=())).tasks == training_step(forward).tasks
