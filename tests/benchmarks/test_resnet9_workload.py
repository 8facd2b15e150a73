"""The digits workload: data, training, MAC counts, one step for capture, registry, comparison."""

import re

import pytest
import torch
from torch import Tensor, nn

from algorithms import METHODS, sparse_layers, sparsify
from benchmarks import digits_accuracy
from benchmarks.macs import training_macs
from benchmarks.registry import NAMES, WORKLOADS, get_workload
from benchmarks.resnet9_digits import FOLDS, digits_fold
from benchmarks.training import Recipe, minimise
from benchmarks.workload import Batch, TrainResult
from rtl.errors import ParameterError

WORKLOAD = get_workload("resnet9")


def test_folds_partition_the_images_and_keep_class_balance() -> None:
    tested = 0
    for fold in range(FOLDS):
        train, test = digits_fold(fold)
        assert len(train.inputs) + len(test.inputs) == 1797
        assert train.inputs.shape[1:] == (1, 8, 8) and train.inputs.dtype == torch.float32
        assert abs(train.inputs.mean().item()) < 1e-5
        assert torch.bincount(test.targets, minlength=10).min() >= 34
        tested += len(test.inputs)
    assert tested == 1797


def test_training_is_deterministic_and_reports_the_contract_keys() -> None:
    seen: list[tuple[int, int, float]] = []
    first = WORKLOAD.fit("bdwp", "2:8", 3, 1, "tiny", lambda *args: seen.append(args))
    second = WORKLOAD.fit("bdwp", "2:8", 3, 1, "tiny")
    result = first.result
    assert list(result.model_dump()) == [
        "workload", "method", "pattern", "seed", "epochs", "metric", "train_mac_ratio", "seconds",
        "gradient"]
    assert set(result.model_dump()["metric"]) == {"name", "value", "higher_is_better"}
    assert (result.workload, result.method, result.pattern) == ("resnet9", "bdwp", "2:8")
    assert result.metric == second.result.metric and result.metric.value > 90
    states = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)
    assert [epoch for epoch, _, _ in seen] == [1, 2, 3] and seen[0][2] > seen[-1][2]
    assert TrainResult.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: str) -> None:
    result = WORKLOAD.train(method, "2:8", 1, 0, "tiny")
    assert result.metric.value > 50 and result.epochs == 1
    assert result.pattern == ("dense" if method == "dense" else "2:8")
    assert result.gradient == ("1:2" if method == "bdwp+wu" else "dense")
    low, high = {"dense": (1.0, 1.0), "bdwp+wu": (1 / 3, 0.34)}.get(method, (0.45, 0.8))
    assert low <= result.train_mac_ratio <= high


def ratio(method: str, size: str) -> float:
    model = WORKLOAD.model(size, 0)
    sparsify(model, method)
    return training_macs(model, WORKLOAD.batch(size, 1).inputs).ratio


def test_mac_ratio_is_the_closed_form_one() -> None:
    # 2:8 leaves a quarter of FF and of BP, and all of WU: (1 + 2 / 4) / 3 where all is sparse.
    assert ratio("dense", "small") == 1.0
    assert ratio("bdwp", "full") == pytest.approx(0.5, abs=0.01)
    # 1:2 leaves half of WU: (0.25 + 0.25 + 0.5) / 3.
    assert ratio("bdwp+wu", "full") == pytest.approx(1 / 3, abs=0.01)
    assert ratio("srste", "full") == ratio("sdwp", "full") == pytest.approx(0.75, abs=0.01)
    assert ratio("sdgp", "full") == ratio("sdwp", "full")


@pytest.mark.parametrize(("gradient", "kept"), [("1:2", 9), ("2:4", 10), ("dense", 17)])
def test_mac_count_of_a_sampled_weight_gradient(gradient: str, kept: int) -> None:
    """Groups lie along the pixels of the whole batch: 17 of them leave one to a last group."""
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(32, 10))
    sparsify(model, "bdwp+wu", "2:8", gradient=gradient)
    macs = training_macs(model, torch.zeros(17, 16))
    ends, inner = 17 * 16 * 16 * 2 + 17 * 32 * 10 * 3, 16 * 32
    assert macs.dense == ends + 3 * 17 * inner
    assert macs.executed == ends + 2 * 17 * inner // 4 + kept * inner


def test_mac_count_includes_padding_convolution_groups_and_skips_the_first_input_gradient() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 40, 3, padding=1), nn.Conv2d(40, 20, 3, stride=2, groups=2), nn.Flatten(),
        nn.Linear(180, 10))
    sparsify(model, "bdwp", "2:8")
    macs = training_macs(model, torch.zeros(2, 3, 8, 8))
    stem, middle, head = 2 * 64 * 9 * 3 * 40, 2 * 9 * 9 * 2 * 20 * 10, 2 * 180 * 10
    # The middle layer reduces over 20 inputs (padded to 24, 6 kept) and 10 outputs (16, 4 kept).
    sparse = 2 * 9 * 9 * 2 * (6 * 10 + 20 * 4) + middle
    assert macs == (2 * stem + 3 * middle + 3 * head, 2 * stem + sparse + 3 * head)
    assert all(not layer._forward_hooks for _, layer in sparse_layers(model))


def test_one_training_step_leaves_scaled_gradients_and_the_parameters_as_they_were() -> None:
    model = WORKLOAD.model("tiny", 0)
    sparsify(model)
    model.eval()
    before = [p.detach().clone() for p in model.parameters()]
    batch = WORKLOAD.batch("tiny", 16)
    patterns = {name: layer.pass_patterns() for name, layer in sparse_layers(model)}
    assert str(patterns["narrow.0"]["BP"]) == "2:8" and patterns["stem.0"]["FF"].is_dense
    loss = WORKLOAD.training_step(model, batch, 1024.0)
    large = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert WORKLOAD.training_step(model, batch, 512.0) == loss
    for grad, parameter in zip(large, model.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(grad, 2 * parameter.grad, rtol=1e-2, atol=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not model.training


def test_batches_are_drawn_by_seed_and_full_has_the_published_shape() -> None:
    small = WORKLOAD.batch("small", 8, seed=1)
    assert small.inputs.shape == (8, 1, 8, 8) and small.targets.shape == (8,)
    assert torch.equal(small.inputs, WORKLOAD.batch("tiny", 8, seed=1).inputs)
    assert not torch.equal(small.inputs, WORKLOAD.batch("small", 8, seed=2).inputs)
    full = WORKLOAD.batch("full", 2)
    assert full.inputs.shape == (2, 3, 32, 32) and full.targets.max() < 10


def test_an_overflowing_step_is_skipped_and_halves_the_loss_scale() -> None:
    model = WORKLOAD.model("tiny", 0)
    sparsify(model)
    before = model.get_parameter("classifier.weight").detach().clone()
    recipe = Recipe(epochs=1, batch=8, rate=0.1, loss_scale=2.0**60)
    scale = minimise(model, WORKLOAD.loss, WORKLOAD.batch("tiny", 8), recipe, 1, 0)
    assert scale == 2.0**59
    assert torch.equal(model.get_parameter("classifier.weight"), before)


def test_the_global_generator_is_left_alone_and_seeded_inside() -> None:
    drawn: list[float] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        drawn.append(torch.rand(()).item())
        return WORKLOAD.loss(model, batch)

    for outer in (1, 2):
        torch.manual_seed(outer)
        state = torch.get_rng_state()
        model = sparsified = WORKLOAD.model("tiny", 0)
        sparsify(sparsified)
        minimise(model, loss, WORKLOAD.batch("tiny", 4), Recipe(1, 4, 0.1), 1, 7)
        assert torch.equal(torch.get_rng_state(), state)
    assert drawn[0] == drawn[1]


def test_training_runs_on_one_thread_and_gives_the_others_back() -> None:
    before, inside = torch.get_num_threads(), []
    torch.set_num_threads(3)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inside.append(torch.get_num_threads())
        return WORKLOAD.loss(model, batch)

    def fail(model: nn.Module, batch: Batch) -> Tensor:
        raise RuntimeError("in the middle")

    try:
        arguments = WORKLOAD.batch("tiny", 4), Recipe(1, 4, 0.1), 1, 0
        minimise(WORKLOAD.model("tiny", 0), loss, *arguments)
        assert (inside, torch.get_num_threads()) == ([1], 3)
        with pytest.raises(RuntimeError, match="in the middle"):
            minimise(WORKLOAD.model("tiny", 0), fail, *arguments)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_rate_rises_and_falls_linearly_to_almost_nothing() -> None:
    recipe = Recipe(epochs=1, batch=1, rate=0.8)
    rates = [recipe.rate_at(step, 8) for step in range(8)]
    assert rates[:2] == pytest.approx([0.4, 0.8]) and max(rates) == pytest.approx(0.8)
    assert rates[2:] == sorted(rates[2:], reverse=True) and 0 < rates[-1] < 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "full"}, "size='full': is compiled and costed, not trained; "
                           "nearest legal value: small"),
        ({"size": "tny"}, "size='tny': must be one of tiny, small; nearest legal value: tiny"),
        ({"epochs": 0, "size": "tiny"},
         "epochs=0: must be at least 1; nearest legal value: 1"),
        ({"seed": -1, "size": "tiny"}, "seed=-1: must be at least 0; nearest legal value: 0"),
        ({"method": "dens", "size": "tiny"},
         "method='dens': must be one of dense, srste, sdgp, sdwp, bdwp, bdwp+wu; "
         "nearest legal value: dense"),
        ({"pattern": "9:8", "size": "tiny"},
         "pattern='9:8': N:M needs 1 <= N <= M; nearest legal value: 8:8"),
    ],
)
def test_bad_training_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        WORKLOAD.train(**arguments)  # type: ignore[arg-type]


def test_bad_batch_and_model_arguments_are_named() -> None:
    message = "batch=5000: must lie between 1 and the 1437 training images; " \
              "nearest legal value: 1437"
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        WORKLOAD.batch("small", 5000)
    with pytest.raises(ParameterError, match=r"^size='huge': must be one of tiny, small, full"):
        WORKLOAD.model("huge", 0)


def test_registry_tells_unknown_from_not_yet_available() -> None:
    assert set(WORKLOADS) <= set(NAMES)
    for name in WORKLOADS:
        assert get_workload(name).name == name and get_workload(name) is get_workload(name)
    have = "resnet9, llama-adapter, llama-adapter-v2, mathcoder, csv"
    message = f"WORKLOAD='vgg19': is not available in this version, which has: {have}; " \
              "nearest legal value: resnet9"
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        get_workload("vgg19", "WORKLOAD")
    message = f"workload='resnet': must be one of {have}; nearest legal value: resnet9"
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        get_workload("resnet")


def test_comparison_prints_spread_and_paired_difference() -> None:
    table = digits_accuracy.Comparison((99.0, 98.0), (98.5, 98.5)).table("bdwp")
    assert "dense: 98.50 +- 0.71 %" in table and "bdwp: 98.50 +- 0.00 %" in table
    assert "bdwp - dense, paired: +0.00 +- 0.50 points" in table and table.endswith(": holds")
    assert digits_accuracy.Comparison((99.0, 99.0), (98.0, 98.2)).table("x").endswith("not hold")


def test_comparison_runs_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert digits_accuracy.main(["--size", "tiny", "--seeds", "2", "--epochs", "1"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("ResNet-9 tiny, digits, bdwp 2:8, 2 seeds") and not shown.err
    for arguments in (["--seeds", "1"], ["--method", "dense"], ["--method", "x"]):
        assert digits_accuracy.main(arguments) == 2
        assert capsys.readouterr().err.startswith(f"{arguments[0]}=")
