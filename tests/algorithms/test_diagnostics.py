"""Diagnostics: counts against masks compared by hand, gradients against plain PyTorch's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms import NmLayer, Schedule, SparseHandle, get_method, sparse_layers, sparsify
from algorithms.diagnostics.churn import MaskChurn
from algorithms.diagnostics.gradient_error import gradient_errors
from algorithms.diagnostics.loss_scale import LossScaleHistory
from algorithms.diagnostics.monitor import Monitor, pruned_shares
from algorithms.diagnostics.table import aligned
from rtl.errors import ParameterError

IMAGES = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([1, 2, 3, 0])


def network() -> nn.Sequential:
    """Batch statistics, random numbers and three sparse layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.Dropout(0.2), nn.Conv2d(16, 16, 3), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(256, 24), nn.ReLU(), nn.Linear(24, 5))


def loss(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(IMAGES), LABELS)


def train(model: nn.Module, rate: float = 0.5) -> None:
    loss(model).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=rate)
            parameter.grad = None


def layer_of(model: nn.Sequential, index: int) -> NmLayer:
    layer = model[index]
    assert isinstance(layer, NmLayer)
    return layer


def test_one_exchanged_weight_is_two_changed_positions() -> None:
    layer = nn.Linear(8, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(1, 17).view(2, 8))
    churn = MaskChurn(sparsify(layer, "srste", "2:8", rules={"*": "2:8"}))
    assert [(row.size, row.changed, row.diverged) for row in churn.update().rows] == [(16, 0, 0)]
    with torch.no_grad():
        layer.weight[0, 0] = 100
    moved = churn.update()
    assert [(row.layer, row.stage, row.changed, row.diverged) for row in moved.rows] == [
        ("", "FF", 2, 2)]
    assert moved.churn("FF") == 2 / 16 and moved.sad("FF") == 2 and moved.churn("BP") == 0
    assert str(moved) == ("layer    pass  weights  changed  SAD\n"
                          "(model)  FF    16       12.50%   2")
    assert [(row.changed, row.diverged) for row in churn.update().rows] == [(0, 2)]
    churn.set_reference()
    with torch.no_grad():
        layer.weight[0, 0] = 1
    assert [(row.changed, row.diverged) for row in churn.update().rows] == [(2, 2)]


@pytest.mark.parametrize("method", ["bdwp", "srste", "sdwp"])
def test_churn_counts_what_differs_between_the_masks(method: str) -> None:
    model = network()
    sparsify(model, method, "2:8")
    churn = MaskChurn(model)

    def masks() -> dict[tuple[str, str], Tensor]:
        return {(name, stage): mask for name, layer in sparse_layers(model)
                for stage, mask in (("FF", layer.forward_mask()), ("BP", layer.backward_mask()))
                if not layer.pass_patterns()[stage].is_dense}

    seen = [masks()]
    for _ in range(2):
        train(model)
        seen.append(masks())
        rows = churn.update().rows
        assert {(row.layer, row.stage) for row in rows} == set(seen[0])
        for row in rows:
            key = row.layer, row.stage
            assert row.changed == (seen[-1][key] ^ seen[-2][key]).sum()
            assert row.diverged == (seen[-1][key] ^ seen[0][key]).sum()
    assert sum(row.changed for row in rows) > 0


def test_a_dense_phase_keeps_every_weight() -> None:
    model = network()
    handle = sparsify(model, "bdwp", "2:8", schedule=Schedule(4, warmup=0.5))
    churn = MaskChurn(handle)
    assert churn.update().rows == () and pruned_shares(handle) == {"FF": 0, "BP": 0, "WU": 0}
    handle.step(2)
    report = churn.update()
    assert len(report.rows) == 4 and report.churn("FF") == 0.75
    assert churn.update().churn("FF") == 0 and churn.update().sad("FF") == report.sad("FF") > 0


def test_shares_are_weighted_by_the_size_of_the_weights() -> None:
    handle = sparsify(network(), "bdwp+wu", "2:8", rules={"0": "2:8", "4": "1:4"}, gradient="2:4")
    sizes = {"0": 16 * 8 * 9, "4": 16 * 16 * 9, "7": 256 * 24, "9": 24 * 5}
    pruned = {"0": 0.75, "4": 0.75, "7": 0.75, "9": 0}
    expected = sum(sizes[name] * pruned[name] for name in sizes) / sum(sizes.values())
    assert pruned_shares(handle)["FF"] == pytest.approx(expected)
    assert pruned_shares(handle)["WU"] == pytest.approx(expected * 2 / 3)


def test_a_model_without_sparse_layers_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"^model='Sequential': has no sparse layers; call"):
        MaskChurn(network())
    with pytest.raises(ParameterError, match=r"^model='Sequential': has no sparse layers; call"):
        gradient_errors(network(), loss)


class Residual(nn.Module):
    """Its input has two readers, of which only one is a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) * x
        return out


def test_errors_equal_those_of_two_plain_layers() -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(3, 16, requires_grad=True)
    sparsify(model, "bdwp", "2:8", rules={"*": "2:8"}, precision="native")
    layer = model.layer
    assert isinstance(layer, NmLayer)

    def reference(forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor]:
        out = (F.linear(x, forward) * x).detach()
        grad = 2 * out * x.detach()  # of the squares, at the layer's output
        return grad @ backward, grad.T @ x.detach()

    weight = layer.weight.detach()
    sparse = reference(weight * layer.forward_mask(), weight * layer.backward_mask())
    dense = reference(weight, weight)
    errors = gradient_errors(model, lambda model: model(x).square().sum())
    (row,) = errors.rows
    for found, g, d in zip((row.dx, row.dw), sparse, dense, strict=True):
        assert found is not None
        assert found.error == pytest.approx(((g - d).norm() / d.norm()).item(), rel=1e-5)
        assert found.cosine == pytest.approx(
            F.cosine_similarity(g.flatten(), d.flatten(), 0).item(), rel=1e-5)


def test_dense_training_has_no_error_and_data_no_gradient() -> None:
    model = network()
    sparsify(model, "dense")
    model[7].weight.requires_grad_(False)
    errors = gradient_errors(model, loss)
    assert [(row.layer, row.dx is None, row.dw is None) for row in errors.rows] == [
        ("0", True, False), ("4", False, False), ("7", False, True), ("9", False, False)]
    for row in errors.rows:
        for found in (row.dx, row.dw):
            assert found is None or (found.error == 0 and found.cosine == pytest.approx(1))
    assert errors.loss == errors.dense_loss
    assert str(errors).splitlines()[:2] == [
        "layer  dX error  dX cosine  dW error  dW cosine",
        "0      -         -          0         1.0000"]
    assert str(errors).splitlines()[-1] == f"loss {errors.loss:g}, dense {errors.loss:g}"


def test_everything_is_afterwards_as_it_was() -> None:
    model = network()
    handle = sparsify(model, get_method("bdwp", refresh=3), "2:8")
    train(model)
    loss(model).backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in model.parameters()]
    values = [None if gradient is None else gradient.clone() for gradient in gradients]
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    plans, random = handle.plans(), torch.get_rng_state()
    masks = [layer.forward_mask() for _, layer in sparse_layers(model)]

    errors = gradient_errors(handle, loss)
    assert errors.loss != errors.dense_loss
    assert all(0 < row.dw.error < 2 for row in errors.rows if row.dw)
    assert all(parameter.grad is gradient for parameter, gradient
               in zip(model.parameters(), gradients, strict=True))
    for gradient, value in zip(gradients, values, strict=True):
        assert gradient is not None and value is not None and torch.equal(gradient, value)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert handle.plans() == plans and torch.equal(torch.get_rng_state(), random)

    # Masks that the method holds for three versions of the weights go on being held.
    with torch.no_grad():
        for _, layer in sparse_layers(model):
            layer.weight.copy_(layer.weight.flip(1))
    assert all(torch.equal(layer.forward_mask(), mask) for (_, layer), mask
               in zip(sparse_layers(model), masks, strict=True))


def test_a_loss_that_is_no_scalar_leaves_everything_as_it_was() -> None:
    model = network()
    handle = sparsify(model)
    plans, state = handle.plans(), {key: t.clone() for key, t in model.state_dict().items()}
    with pytest.raises(ParameterError, match=r"^closure\(model\)=\(4, 5\): must be a scalar loss"):
        gradient_errors(handle, lambda model: model(IMAGES))
    assert handle.plans() == plans
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert not any(layer._forward_pre_hooks for _, layer in sparse_layers(model))


def scaled_step(model: nn.Module, scaler: torch.amp.GradScaler, factor: float) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    optimiser.zero_grad()
    scaler.scale(loss(model) * factor).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimiser)
    scaler.update()


def test_skipped_steps_are_those_that_lowered_the_scale() -> None:
    model = network()
    sparsify(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    history = LossScaleHistory(scaler)
    made = []
    for factor in (1.0, math.inf, 1.0, 1.0, math.nan):
        scaled_step(model, scaler, factor)
        made.append(history.update())
    assert made == [True, False, True, True, False] and history.skipped == [1, 4]
    assert history.scales == [4, 4, 2, 2, 4, 2]
    assert str(history) == "loss scale 2 after 5 steps, 2 of them skipped"


def monitored(writer: object, steps: int) -> tuple[SparseHandle, list[dict[str, float]]]:
    model = network()
    handle = sparsify(model, "bdwp", "2:8")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    monitor = Monitor(handle, writer, every=2, scaler=scaler)  # type: ignore[arg-type]
    written = []
    for step in range(steps):
        scaled_step(model, scaler, math.inf if step == 1 else 1.0)
        written.append(monitor.step())
    monitor.gradient_errors(loss)
    written.append(monitor.scalars)
    return handle, written


def test_monitor_writes_event_files_that_tensorboard_reads(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    handle, written = monitored(writer, 4)
    writer.close()
    assert [bool(scalars) for scalars in written] == [False, True, False, True, True]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    names = set(events.Tags()["scalars"])
    assert names == written[1].keys() | written[4].keys()
    assert {"sparsity/FF", "mask_churn/BP", "mask_sad/FF/4", "loss_scale/skipped",
            "gradient_error/dX/7", "gradient_cosine/dW/0"} <= names
    for name in written[1]:
        read = [(event.step, event.value) for event in events.Scalars(name)]
        assert read == [(2, pytest.approx(written[1][name])), (4, pytest.approx(written[3][name]))]
    assert written[1]["loss_scale/scale"] == 2 and written[3]["loss_scale/skipped"] == 1
    assert written[3]["sparsity/FF"] == pruned_shares(handle)["FF"] > 0.5
    assert written[3]["mask_churn/FF"] > 0


def test_monitor_needs_no_writer_and_refuses_a_period_of_nothing() -> None:
    handle, written = monitored(None, 2)
    assert written[1]["mask_sad/FF"] >= 0
    with pytest.raises(ParameterError, match=r"^every=0: must be at least 1"):
        Monitor(handle, every=0)


def test_tables_have_aligned_columns() -> None:
    assert aligned([("a", "bb", "c"), ("aaa", "b", "")]) == "a    bb  c\naaa  b"
