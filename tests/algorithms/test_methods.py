"""Options of the methods: which masks they make, which values they keep, what they refuse."""

import itertools
import re

import pytest
import torch
from torch import Tensor, nn

from algorithms import NmLayer, get_method, nm_mask, sparsify
from algorithms.methods.base import Method
from algorithms.transposable import transposable_mask
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

PATTERN = NmPattern(2, 8)


def layer_of(module: nn.Module, method: Method, precision: str = "fp16") -> NmLayer:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    sparsify(module, method, PATTERN, rules={type(module): PATTERN}, precision=precision)
    assert isinstance(module, NmLayer)
    return module


def counts(mask: Tensor, dim: int) -> Tensor:
    """Kept elements of each group along ``dim``, whose size 8 divides."""
    return torch.unflatten(mask.movedim(dim, 0), 0, (-1, 8)).sum(1)


@pytest.mark.parametrize("module", [nn.Linear(32, 24), nn.Conv2d(32, 48, 3, groups=2)],
                         ids=["linear", "grouped"])
def test_double_pruned_weights_of_bp_are_a_subset_of_those_of_ff(module: nn.Module) -> None:
    layer = layer_of(module, get_method("bdwp", backward_mask="double"))
    forward, backward = layer.forward_weight(), layer.backward_weight()
    assert torch.equal(forward != 0, nm_mask(layer.weight, PATTERN, 1))
    assert not ((backward != 0) & (forward == 0)).any()
    assert torch.equal(backward[backward != 0], forward[backward != 0])
    assert counts(backward != 0, 0).max() <= 2
    # Nothing that FF left and BP has room for is dropped.
    left = counts(forward != 0, 0).clamp(max=2)
    assert torch.equal(counts(backward != 0, 0), left)


@pytest.mark.parametrize("module", [nn.Linear(32, 24), nn.Conv2d(32, 48, 3, groups=2)],
                         ids=["linear", "grouped"])
def test_transposable_masks_are_n_of_m_along_both_axes_and_shared(module: nn.Module) -> None:
    layer = layer_of(module, get_method("bdwp", backward_mask="transposable"))
    forward = layer.forward_weight()
    assert torch.equal(forward, layer.backward_weight())
    for dim in (0, 1):
        assert counts(forward != 0, dim).max() == 2
    assert 0.22 < (forward != 0).float().mean() <= 0.25


def test_layers_with_one_dense_pass_fall_back_from_a_transposable_mask() -> None:
    layer = layer_of(nn.Linear(32, 4), get_method("bdwp", backward_mask="transposable"))
    assert torch.equal(layer.forward_weight() != 0, nm_mask(layer.weight, PATTERN, 1))


def brute_force_transposable(block: Tensor, n: int) -> float:
    """The largest magnitude that any mask with ``n`` a row and a column can carry."""
    rows, size = block.abs(), len(block)
    choices = [picked for kept in range(n + 1)
               for picked in itertools.combinations(range(size), kept)]
    best = 0.0
    for picked in itertools.product(choices, repeat=size):
        used = [column for row in picked for column in row]
        if all(used.count(column) <= n for column in range(size)):
            best = max(best, sum(float(rows[r, c]) for r, row in enumerate(picked) for c in row))
    return best


@pytest.mark.parametrize("n", [1, 2])
def test_transposable_masks_carry_at_least_half_of_the_best_magnitude(n: int) -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(10):
        block = torch.randn(4, 4, generator=generator)
        mask = transposable_mask(block, NmPattern(n, 4), torch.float32)
        assert max(mask.sum(0).max(), mask.sum(1).max()) <= n
        best = brute_force_transposable(block, n)
        assert best / 2 <= float(block.abs()[mask].sum()) <= best + 1e-5


def test_transposable_masks_of_leftovers_ignore_the_padding() -> None:
    operand = torch.randn(11, 13, 3, generator=torch.Generator().manual_seed(0))
    mask = transposable_mask(operand, NmPattern(2, 4))
    assert mask.shape == operand.shape
    assert mask[8:, 12:].sum((0, 1)).tolist() == [2, 2, 2]  # one column, three rows: N of it
    ties = transposable_mask(torch.ones(4, 4), NmPattern(1, 4))
    assert torch.equal(ties, torch.eye(4, dtype=torch.bool))
    assert transposable_mask(operand, NmPattern(1, 1)).all()


def test_soft_magnitudes_leave_the_mask_at_zero_and_fit_the_weights() -> None:
    layer = layer_of(nn.Linear(64, 16, bias=False), get_method("bdwp", magnitudes="soft"),
                     "native")
    weight = layer.weight.detach()
    groups = weight.view(16, 8, 8).abs().sort(-1, descending=True).values
    threshold = groups[..., 2].repeat_interleave(8, 1)
    shrunk = weight.sign() * (weight.abs() - threshold).clamp(min=0)
    scale = (weight * shrunk).sum() / shrunk.square().sum()
    assert scale > 1
    torch.testing.assert_close(layer._present().forward, shrunk * scale)
    assert counts(layer.backward_mask(), 0).eq(2).all()


def test_rescaled_magnitudes_keep_the_norm() -> None:
    layer = layer_of(nn.Conv2d(32, 32, 3), get_method("sdwp", magnitudes="rescaled"), "native")
    kept = layer._present().backward
    torch.testing.assert_close(kept.norm(), layer.weight.detach().norm())
    mask = nm_mask(layer.weight, PATTERN, 0, rounding=torch.float32)
    assert torch.equal(kept != 0, mask)
    ratio = kept[mask] / layer.weight.detach()[mask]
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))


@pytest.mark.parametrize("magnitudes", ["soft", "rescaled"])
def test_weights_of_zero_stay_zero(magnitudes: str) -> None:
    layer = layer_of(nn.Linear(16, 16), get_method("bdwp", magnitudes=magnitudes))
    with torch.no_grad():
        layer.weight.zero_()
    assert layer.forward_weight().eq(0).all() and layer.backward_weight().eq(0).all()


def test_masks_are_held_for_the_refresh_interval_and_values_follow() -> None:
    layer = layer_of(nn.Linear(32, 16), get_method("bdwp", refresh=3))
    masks = []
    for step in range(7):
        masks.append(layer.forward_mask())
        torch.testing.assert_close(layer.forward_weight(), (layer.weight * masks[-1]).half())
        with torch.no_grad():
            layer.weight.copy_(torch.randn(16, 32, generator=torch.Generator().manual_seed(step)))
    same = [torch.equal(a, b) for a, b in itertools.pairwise(masks)]
    assert same == [True, True, False, True, True, False]


def test_only_plain_options_can_be_selected_by_the_hardware() -> None:
    assert all(get_method(name).selects_in_hardware for name in ("dense", "sdgp", "bdwp", "srste"))
    options: list[dict[str, object]] = [
        {"refresh": 2}, {"magnitudes": "soft"}, {"backward_mask": "double"}]
    assert not any(get_method("bdwp", **each).selects_in_hardware for each in options)
    assert get_method("bdwp", decay=1e-4).selects_in_hardware


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bdwp", {"decay": -1.0}, "decay=-1.0: must be finite and not negative; "
                                  "nearest legal value: 0.0"),
        ("bdwp", {"magnitudes": "sotf"}, "magnitudes='sotf': must be one of hard, soft, rescaled; "
                                         "nearest legal value: soft"),
        ("srste", {"refresh": 0}, "refresh=0: must be at least 1; nearest legal value: 1"),
        ("bdwp", {"backward_mask": "dbl"}, "backward_mask='dbl': must be one of independent, "
                                           "double, transposable; nearest legal value: double"),
        ("bdwp", {"deacy": 0.1}, "option='deacy': must be an option of bdwp: decay, magnitudes, "
                                 "refresh, backward_mask; nearest legal value: decay"),
        ("sdgp", {"decay": 0.1}, "option='decay': sdgp has no options"),
    ],
)
def test_illegal_options_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        get_method(name, **options)
