"""The in-place swap: what survives it, what undoes it, what the report and the errors say."""

import copy
import pickle
import re

import pytest
import torch
from torch import Tensor, nn

from algorithms import (
    METHODS,
    NmConv2d,
    NmLayer,
    NmLinear,
    Size,
    decay_pruned,
    get_method,
    sparse_layers,
    sparsify,
    unsparsify,
)
from algorithms.gemms import Operands
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 20, 3), nn.ReLU(),
        nn.Conv2d(20, 20, 3, groups=20), nn.Flatten(), nn.Linear(320, 32), nn.Linear(32, 10))


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def step(model: nn.Module) -> None:
    loss = nn.functional.cross_entropy(model(IMAGES), torch.tensor([1, 2]))
    loss.backward()  # type: ignore[no-untyped-call]


def test_parameters_hooks_and_state_dict_survive_the_swap() -> None:
    model = network()
    calls: list[str] = []
    model[2].register_forward_hook(lambda *_: calls.append("forward"))
    model[2].register_full_backward_hook(lambda *_: calls.append("backward"))
    parameters, keys = [id(p) for p in model.parameters()], list(model.state_dict())
    sparsify(model)
    assert [id(p) for p in model.parameters()] == parameters
    assert list(model.state_dict()) == keys
    step(model)
    assert calls == ["forward", "backward"]
    assert isinstance(model[2], nn.Conv2d) and isinstance(model[6], nn.Linear)


def test_unsparsify_restores_classes_and_outputs() -> None:
    model, plain = network(), network()
    sparsify(model)
    assert not torch.equal(model(IMAGES), plain(IMAGES))
    unsparsify(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert [vars(m).keys() for m in model.modules()] == [vars(m).keys() for m in plain.modules()]
    assert torch.equal(model(IMAGES), plain(IMAGES))


def test_layers_whose_class_was_changed_since_are_named_and_nothing_is_undone() -> None:
    model = network()
    sparsify(model)
    model[6].__class__ = type("Wrapped", (NmLinear,), {})
    with pytest.raises(ParameterError, match=r"^6='Wrapped': its class was changed after spars"):
        unsparsify(model)
    assert type(model[2]) is NmConv2d


def test_unsparsify_with_prune_computes_what_the_sparse_model_did() -> None:
    model = network()
    sparsify(model)
    expected = model(IMAGES)
    unsparsify(model, prune=True)
    torch.testing.assert_close(model(IMAGES), expected, rtol=2e-2, atol=2e-3)
    assert model.get_parameter("6.weight").eq(0).float().mean() == 0.75


def test_state_dict_round_trip_between_sparse_and_plain_models() -> None:
    torch.manual_seed(1)
    source, target = network(), network()
    sparsify(source)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    target.load_state_dict(source.state_dict())
    sparsify(target)
    assert torch.equal(target(IMAGES), source(IMAGES))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_independent_and_carry_no_cache(how: str) -> None:
    model = network()
    sparsify(model)
    expected = model(IMAGES)
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert all(layer._nm_cached is None for _, layer in sparse_layers(twin))
    numbers = [layer._nm_number for each in (model, twin) for _, layer in sparse_layers(each)]
    assert len(numbers) == len(set(numbers))
    assert torch.equal(twin(IMAGES), expected)
    with torch.no_grad():
        twin.get_parameter("6.weight").zero_()
    assert torch.equal(model(IMAGES), expected)
    step(twin)
    assert model[6].weight.grad is None and twin[6].weight.grad is not None


def test_a_bare_layer_can_be_swapped() -> None:
    layer = nn.Linear(16, 16)
    report = sparsify(layer, rules={"*": "2:4"})
    assert type(layer) is NmLinear and "(model)" in str(report)
    assert layer.pass_patterns() == {"FF": NmPattern(2, 4), "BP": NmPattern(2, 4), "WU": DENSE}


def test_operands_follow_the_weight_and_are_computed_once_a_version(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    sparsify(model)
    layer = model[6]
    assert isinstance(layer, NmLayer)
    made: list[Tensor] = []
    derive = layer._derive

    def noting(master: Tensor, *rest: torch.dtype) -> Operands:
        made.append(master)
        return derive(master, *rest)

    monkeypatch.setattr(layer, "_derive", noting)
    first = layer.forward_weight()
    layer.forward_weight()
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):  # two micro-batches
        step(model)
    assert len(made) == 1
    optimiser.step()
    second = layer.forward_weight()
    assert len(made) == 2 and not torch.equal(second, first)
    layer.weight.data.mul_(-1)
    layer.refresh()
    assert torch.equal(layer.forward_weight(), -second)
    layer.weight = nn.Parameter(torch.zeros_like(layer.weight))
    assert layer.forward_weight().eq(0).all()


def test_evaluation_in_inference_mode_does_not_poison_training() -> None:
    model = network()
    sparsify(model)
    with torch.inference_mode():
        expected = model(IMAGES)
    assert torch.equal(model(IMAGES), expected)
    step(model)
    with torch.inference_mode():
        frozen = network()
        sparsify(frozen)
        assert torch.equal(frozen(IMAGES), expected)


def test_operands_are_float16_with_n_of_m_along_the_reduction_of_each_pass() -> None:
    model = network()
    sparsify(model, "bdwp", "2:8")
    layer = model[6]
    assert isinstance(layer, NmLayer)
    forward, backward = layer.forward_weight(), layer.backward_weight()
    assert forward.dtype == backward.dtype == torch.float16
    assert (forward != 0).view(32, 40, 8).sum(-1).eq(2).all()
    assert (backward != 0).view(4, 8, 320).sum(1).eq(2).all()
    assert torch.equal(layer.forward_mask(), forward != 0)
    assert torch.equal(layer.backward_mask(), backward != 0)


REPORT = """\
layer  class   weight     FF         BP         WU         note
0      Conv2d  16x3x3x3   dense      dense      dense      first convolution
2      Conv2d  20x16x3x3  2:8 25.0%  2:8 30.0%  1:2 50.0%  BP: 20 output channels padded to 24
4      Conv2d  20x1x3x3   dense      dense      dense      \
FF: 1 input channels a group, fewer than M=8; BP: 1 output channels a group, fewer than M=8; \
WU: FF and BP are dense
6      Linear  32x320     2:8 25.0%  2:8 25.0%  1:2 50.0%
7      Linear  10x32      dense      dense      dense      last linear layer
method bdwp+wu (weights pruned in FF and BP, gradients sampled in WU): 2 of 5 layers sparse"""


def test_report_is_a_table_with_a_reason_for_everything_unusual() -> None:
    assert str(sparsify(network(), "bdwp+wu")) == REPORT


def test_report_of_a_method_with_decay_says_how_to_apply_it() -> None:
    assert "decay 0.0002: attach(optimiser) of the handle" in str(sparsify(network(), "srste"))


def test_without_a_convolution_the_first_linear_layer_stays_dense() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    notes = [row.note for row in sparsify(model).layers]
    assert notes == ["first linear layer", "", "last linear layer"]


def test_rules_override_the_defaults_and_the_last_match_wins() -> None:
    model = network()
    report = sparsify(model, rules={nn.Linear: "1:4", "7": "dense", "2": NmPattern(4, 8)})
    patterns = [row.plan.forward.pattern for row in report.layers if row.plan]
    assert [str(p) for p in patterns] == ["dense", "4:8", "dense", "1:4", "dense"]
    assert report.layers[-1].note == "rule: dense"
    unsparsify(model)
    again = sparsify(model, "dense")
    assert again.sparse_layers == () and type(model[2]) is NmConv2d


def test_rules_select_by_size() -> None:
    report = sparsify(network(), rules={Size(below=4096): "dense", Size(at_least=10_000): "1:4"})
    assert [str(row.plan.forward.pattern) for row in report.layers if row.plan] == [
        "dense", "dense", "dense", "1:4", "dense"]
    with pytest.raises(ParameterError, match=r"^below=4: must be above at_least=4; nearest .*: 5$"):
        Size(4, 4)


def test_layers_that_cannot_be_swapped_are_reported_and_left() -> None:
    class Custom(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), Custom(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].forward = model[2].forward
    report = sparsify(model)
    assert type(model[1]) is Custom and type(model[2]) is nn.Linear
    assert report.layers[1].note == "left as is: a subclass may compute something else"
    assert report.layers[2].note == "left as is: its forward is replaced on the instance"
    assert "1      Custom  8x8     -" in str(report)


def test_representation_shows_method_and_patterns() -> None:
    model = network()
    sparsify(model)
    assert repr(model[6]) == ("NmLinear(in_features=320, out_features=32, bias=True, method=bdwp, "
                              "FF=2:8, BP=2:8, WU=dense)")


def test_decay_pulls_only_pruned_weights_and_only_where_the_method_has_one() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(16, 8), nn.Linear(8, 8))
    model.append(model[1])
    sparsify(model, "srste", "2:8", rules={"1": "2:8"})
    layer = model[1]
    assert isinstance(layer, NmLayer)
    decay_pruned(model)
    assert layer.weight.grad is None
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    decay_pruned(model)
    weight: Tensor = layer.weight.detach()
    torch.testing.assert_close(layer.weight.grad, 2e-4 * weight * ~layer.forward_mask())
    untouched = model.get_parameter("0.weight").grad
    assert untouched is not None and untouched.eq(0).all()
    decay_pruned(model, gradient_scale=3.0)
    torch.testing.assert_close(layer.weight.grad, 8e-4 * weight * ~layer.forward_mask())
    unsparsify(model)
    sparsify(model, "bdwp", rules={"1": "2:8"})
    layer.weight.grad = torch.zeros_like(layer.weight)
    decay_pruned(model)
    assert layer.weight.grad.eq(0).all()


def test_gradient_scaler_finds_the_overflow_of_fp16_gradients() -> None:
    model = network()
    sparsify(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**40)
    weight = model.get_parameter("6.weight")
    before = weight.detach().clone()
    scaler.scale(model(IMAGES).square().sum()).backward()
    scaler.step(optimiser)
    scaler.update()
    assert torch.equal(weight, before) and scaler.get_scale() == 2.0**39


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "bwdp"}, "method='bwdp': must be one of dense, srste, sdgp, sdwp, bdwp, "
                             "bdwp+wu; nearest legal value: bdwp"),
        ({"pattern": "8:2"}, "pattern='8:2': N:M needs 1 <= N <= M; nearest legal value: 2:2"),
        ({"pattern": "two"}, "pattern='two': must be 'dense' or 'N:M', two integers; "
                             "nearest legal value: 2:8"),
        ({"gradient": "3:2"}, "gradient='3:2': N:M needs 1 <= N <= M; nearest legal value: 2:2"),
        ({"precision": "fp32"}, "precision='fp32': must be one of fp16, native; "
                                "nearest legal value: fp16"),
        ({"rules": {"6": "0:4"}}, "rules['6']='0:4': N:M needs 1 <= N <= M; "
                                  "nearest legal value: 1:4"),
        ({"rules": {"66": "2:4"}}, "rules='66': must select a layer, by glob on its dotted name, "
                                   "by class or by size; nearest legal value: 6"),
        ({"rules": {nn.LSTM: "2:4"}}, "rules='LSTM': must select a layer, by glob on its dotted "
                                      "name, by class or by size; nearest legal value: 0"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(
    arguments: dict[str, object], message: str
) -> None:
    model = network()
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        sparsify(model, **arguments)  # type: ignore[arg-type]
    assert not list(sparse_layers(model))


def test_models_without_weight_layers_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"^model='ReLU': has no nn\.Linear or nn\.Conv2d"):
        sparsify(nn.ReLU())
    with pytest.raises(ParameterError, match=r"^model='int': must be a torch\.nn\.Module$"):
        sparsify(3)  # type: ignore[arg-type]


def test_a_sparse_model_is_not_sparsified_twice() -> None:
    model = network()
    sparsify(model)
    message = r"^model='Sequential': is sparse already \(bdwp\); call unsparsify\(model\) first$"
    with pytest.raises(ParameterError, match=message):
        sparsify(model, "srste")
    assert all(layer.nm_plan.method.name == "bdwp" for _, layer in sparse_layers(model))


def test_weights_without_magnitudes_are_refused() -> None:
    model = network()
    model[6].weight = nn.Parameter(torch.zeros(32, 320, dtype=torch.complex64))
    message = (r"^6\.weight\.dtype='torch\.complex64': must be one of torch\.float32, .*; "
               r"nearest legal value: torch\.float32$")
    with pytest.raises(ParameterError, match=message):
        sparsify(model)
    assert not list(sparse_layers(model))


def test_every_method_is_found_by_its_name() -> None:
    assert [get_method(name).name for name in METHODS] == list(METHODS)
