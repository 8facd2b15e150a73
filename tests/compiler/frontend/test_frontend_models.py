"""Capture of whole models: what trains, what the host moves, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from frontend_cases import captured, host_names, only_product
from torch import Tensor, nn

from algorithms import NmLayer, sparsify
from compiler.frontend.export import capture
from compiler.frontend.operators import UnsupportedOperators
from compiler.ir import Forward, HostOp
from rtl.errors import ParameterError


def training(forward: Forward) -> set[str]:
    return {name for name, value in forward.values.items() if value.trains}


def operators(forward: Forward) -> dict[str, HostOp]:
    return {node.name: node for node in forward.nodes if isinstance(node, HostOp)}


def test_a_frozen_base_trains_only_behind_the_adapter() -> None:
    base, adapter, head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    base.requires_grad_(False)
    head.requires_grad_(False)
    forward = capture(nn.Sequential(base, adapter, head), torch.randn(3, 4))
    assert training(forward) == {"1.weight", "1.bias", "linear_1", "linear_2"}
    assert set(forward.parameters) == {"1.weight", "1.bias"}


def test_gradients_stop_at_detach_and_no_grad() -> None:
    def block(m: Any, x: Tensor) -> Tensor:
        y = m.layer(x)
        with torch.no_grad():
            quiet = m.layer(y) * 2
            shown = y.t()
        made: Tensor = y.detach() * quiet + shown.t()
        return made

    forward = captured(block, torch.randn(3, 4), layer=nn.Linear(4, 4))
    assert training(forward) == {"layer.weight", "layer.bias", "linear"}
    stopped = forward.values["linear.detached"]
    assert (stopped.of, stopped.trains) == ("linear", False)
    assert [product.name for product in forward.products] == ["layer", "layer#1"]


def test_integers_and_factories_never_train() -> None:
    def block(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = m.layer(x)
        return y.argmax(-1), y > 0, torch.zeros_like(y)

    forward = captured(block, torch.randn(3, 4), layer=nn.Linear(4, 4))
    assert not training(forward).intersection(forward.outputs)
    assert operators(forward)["zeros_like"].inputs == ()


def test_an_input_that_requires_a_gradient_trains() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    assert capture(nn.Linear(4, 4), x).inputs[0] in training(capture(nn.Linear(4, 4), x))


def test_every_tensor_given_and_returned_is_named() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, pair: tuple[Tensor, Tensor], scale: float) -> list[Tensor]:
            return [x * scale, pair[1] + 1, x]

    forward = capture(Model(), torch.randn(2), (torch.randn(3), torch.randn(4)), 2.0)
    assert forward.inputs == ("x", "pair_0", "pair_1")
    assert forward.outputs == ("mul", "add", "x")


def test_host_traffic_is_two_bytes_an_activation_and_four_a_parameter() -> None:
    model = nn.Sequential(nn.Embedding(1000, 8), nn.LayerNorm(8)).double()
    found = operators(capture(model, torch.zeros(2, 3, dtype=torch.long)))
    gather, norm = found["0.embedding"], found["1.layer_norm"]
    assert gather.inputs == ("0.weight", "input")
    assert gather.read_bytes == 6 * 8 * 4 + 6 * 8, "the rows that are picked, and the indices"
    assert gather.written_bytes == 6 * 8 * 2
    assert norm.read_bytes == 6 * 8 * 2 + 2 * 8 * 4


def test_host_traffic_counts_a_value_once_and_only_what_is_shown() -> None:
    x = torch.randn(8, 16)
    found = operators(captured(lambda _, a: (a * a, a[:2] + 1, a.expand(3, 8, 16) - 1), x))
    read = {name: (node.read_bytes, node.written_bytes) for name, node in found.items()}
    assert read == {"mul": (256, 256), "add": (64, 64), "sub": (256, 768)}


def test_dropout_is_seen_through_unless_it_drops() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh())
    assert host_names(capture(model, torch.randn(3, 4))) == ["1.dropout", "2.tanh"]
    assert host_names(capture(model.eval(), torch.randn(3, 4))) == ["2.tanh"]


def test_counting_batches_costs_nothing() -> None:
    forward = capture(nn.Sequential(nn.BatchNorm1d(4)), torch.randn(3, 4))
    assert host_names(forward) == ["0.batch_norm"]


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Dropout())
    before, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    for training_flag in (True, False):
        model.train(training_flag)
        capture(model, torch.randn(2, 2, 8, 8))
        assert all(module.training is training_flag for module in model.modules())
    assert all(map(lambda a, b: a is b, model.parameters(), parameters))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in parameters)


def test_a_sparse_model_is_traced_as_the_dense_one_and_stays_sparse() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 16))
    x = torch.randn(2, 8, 4, 4)
    dense = capture(model, x)
    sparsify(model, "bdwp", "2:8")
    y = model(x)
    assert capture(model, x) == dense
    with pytest.raises(ParameterError):
        capture(model, torch.randn(2, 3))
    assert [isinstance(layer, NmLayer) for layer in model] == [True, False, True, True]
    assert torch.equal(model(x), y)


class Strange(nn.Module):
    """Operators that no table has, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 4)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.rfft(self.rnn(x)[0]).real + torch.fft.rfft(self.layer(x)).real
        inverse: Tensor = torch.linalg.inv(y[:3, :3, :3])
        return inverse


def test_all_unsupported_operators_are_listed_at_once() -> None:
    with pytest.raises(UnsupportedOperators) as caught:
        capture(Strange(), torch.randn(5, 3, 4))
    assert caught.value.operators == {
        "aten.lstm": (1, "rnn"), "aten.fft_rfft": (2, ""), "aten.linalg_inv": (1, "")}
    message = str(caught.value)
    assert message.startswith("model='Strange': has operators of unknown cost: aten.lstm (1")
    assert "aten.fft_rfft (2 in all, first in the model itself)" in message
    assert "--host-fallback" in message and "\n" not in message


def test_unsupported_operators_run_on_the_host_if_asked() -> None:
    forward = capture(Strange(), torch.randn(5, 3, 4), host_fallback=True)
    assert forward.unsupported == ("aten.lstm", "aten.fft_rfft", "aten.linalg_inv")
    fallbacks = [node for node in operators(forward).values() if node.fallback]
    assert [node.name for node in fallbacks] == [
        "rnn.lstm", "fft_rfft", "fft_rfft#1", "linalg_inv"]
    assert "rnn.weight_ih_l0" in fallbacks[0].inputs
    assert only_product(forward).name == "layer"


@pytest.mark.parametrize("layer", [nn.Conv3d(2, 2, 1), nn.ConvTranspose2d(2, 2, 2)], ids=str)
def test_convolutions_without_a_gemm_of_their_own_are_unsupported(layer: nn.Module) -> None:
    with pytest.raises(UnsupportedOperators, match=r"aten\.conv"):
        capture(layer, torch.randn(1, 2, 4, 4, 4)[..., :4] if isinstance(layer, nn.Conv3d)
                else torch.randn(1, 2, 4, 4))


def test_a_size_that_depends_on_data_is_unsupported() -> None:
    class Select(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0].relu()

    with pytest.raises(UnsupportedOperators, match=r"aten\.index \(1 in all"):
        capture(Select(), torch.randn(3, 4))
    forward = capture(Select(), torch.randn(3, 4), host_fallback=True)
    assert forward.values["relu"].shape == (12,), "as large as it can be"


def test_a_model_that_branches_on_data_is_refused_in_one_line() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(ParameterError) as caught:
        capture(Branch(), torch.randn(3), name="branchy")
    message = str(caught.value)
    assert message.startswith("model='branchy': torch.export cannot trace it: Could not guard on")
    assert "\n" not in message


def test_tracing_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ParameterError):
        capture(nn.Linear(3, 4), torch.randn(2, 5))
    assert capfd.readouterr() == ("", "")


def test_a_model_without_data_is_captured() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(),
                              nn.Linear(8 * 36, 10))
    forward = capture(model, torch.randn(2, 3, 8, 8))
    assert [product.name for product in forward.products] == ["0", "3"]
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_llama_of_the_transformers_library_is_captured() -> None:
    import transformers
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=128, use_cache=False)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    forward = capture(model, torch.zeros(2, 16, dtype=torch.long))
    layer = "model.layers.1."
    assert [product.name for product in forward.products if product.name.startswith(layer)] == [
        layer + name for name in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.scores",
            "self_attn.values", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
            "mlp.down_proj")]
    sizes = {product.name: (product.p, product.q, product.k, product.batch)
             for product in forward.products}
    assert sizes[layer + "self_attn.k_proj"] == (32, 32, 64, 1)
    assert sizes[layer + "self_attn.scores"] == (16, 16, 16, 8)
    assert sizes["lm_head"] == (32, 128, 64, 1)
    assert {p.fused for p in forward.products if p.name.endswith(("o_proj", "down_proj"))} == {
        ("add",)}
