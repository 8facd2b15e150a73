"""Minimum-variance unbiased sampling: its statistics, its optimality and its behaviour at edges."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import algorithms.mvue as mvue_module
from algorithms.mvue import MinimumVarianceSampler
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
PATTERNS = [NmPattern(1, 2), NmPattern(2, 4), NmPattern(2, 8), NmPattern(1, 4), NmPattern(8, 16),
            NmPattern(3, 5), NmPattern(15, 16)]
DRAWS, SIGMAS = 10**6, 5.0
GROUPS = {
    "1:2": [3.0, -1.0],
    "2:4": [5.0, -0.5, 1.0, 2.0],  # the first is capped
    "2:8": [0.3, -0.7, 1.1, 0.01, -2.0, 0.0, 0.9, 0.4],
    "1:4": [-1.0, 2.0, 0.125, 1.0],
}


def sampler(text: str) -> MinimumVarianceSampler:
    return MinimumVarianceSampler(NmPattern.parse(text))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_groups(tensor: Tensor, m: int) -> Tensor:
    """(length, ...) -> (groups, m, ...), zero-padded."""
    padding = tensor.new_zeros(-tensor.shape[0] % m, *tensor.shape[1:])
    return torch.unflatten(torch.cat([tensor, padding]), 0, (-1, m))


def adversarial(dtype: torch.dtype, m: int) -> Tensor:
    """(m, columns): ties, subnormals, the largest numbers, every range between, sparse groups."""
    limits, generator = torch.finfo(dtype), torch.Generator().manual_seed(m)
    smallest, largest = limits.smallest_normal * limits.eps, limits.max
    levels = torch.tensor([0.0, smallest, 3 * smallest, limits.smallest_normal, limits.eps, 0.1,
                           1.0, 1.0 + limits.eps, largest / 4, largest], dtype=torch.float64)
    steps = torch.full((m, len(levels)), smallest, dtype=torch.float64)
    steps[0] = levels
    pick = torch.randint(len(levels), (m, 300), generator=generator)
    low = levels[torch.randint(4, (m, 100), generator=generator)]
    span = 2.0 ** -torch.rand(m, 400, generator=generator, dtype=torch.float64).mul(40)
    signs = torch.randint(2, (m, 800 + 2 * len(levels)), generator=generator) * 2 - 1
    return (torch.cat([levels.expand(m, -1), steps, levels[pick], low, span], 1) * signs).to(dtype)


@pytest.mark.parametrize("text", GROUPS)
def test_mean_variance_and_frequencies_of_a_million_draws(text: str) -> None:
    mvue, group = sampler(text), torch.tensor(GROUPS[text])
    n, m = mvue.pattern.n, mvue.pattern.m
    generator = torch.Generator().manual_seed(20220321)
    drawn = mvue.sample(group[:, None].expand(m, DRAWS), 0, generator=generator).double()
    assert drawn.ne(0).sum(0).eq(n).all()
    exact, p = group.double(), mvue.probabilities(group, 0).double()
    assert p.sum() == pytest.approx(n, rel=1e-6)
    variance = torch.where(p > 0, exact**2 / p - exact**2, 0.0)
    # Beyond chance: the frequencies resolve to 2**-24, magnitudes to float32.
    slack = 1e-6 * float(group.abs().sum())
    chance = SIGMAS * (variance / DRAWS).sqrt()
    assert (drawn.mean(1) - exact).abs().le(chance + slack).all()
    chance = SIGMAS * (p * (1 - p) / DRAWS).sqrt()
    assert (drawn.ne(0).double().mean(1) - p).abs().le(chance + 1e-6).all()
    error = (drawn - exact[:, None]).square().sum(0)
    closed = float(mvue.variance(group, 0))
    assert closed == pytest.approx(float(variance.sum()), rel=1e-5)
    chance_of_error = SIGMAS * float(error.std()) / math.sqrt(DRAWS)
    assert abs(float(error.mean()) - closed) <= chance_of_error + 1e-5 * closed


@settings(max_examples=25)
@given(st.sampled_from(PATTERNS), st.integers(0, 2**32 - 1), st.floats(0.0, 12.0))
def test_evenly_spread_numbers_select_each_element_as_often_as_its_probability(
    pattern: NmPattern, seed: int, spread: float
) -> None:
    mvue, count = MinimumVarianceSampler(pattern), 4096
    group = normal(pattern.m, seed=seed) * torch.exp2(spread * normal(pattern.m, seed=seed + 1))
    uniforms = ((torch.arange(count) + 0.5) / count).double()[None]
    drawn = mvue.sample(group[:, None].expand(-1, count), 0, uniforms)
    p = mvue.probabilities(group, 0)
    assert drawn.ne(0).sum(0).eq(pattern.n).all()
    assert (drawn.ne(0).double().mean(1) - p).abs().max() <= 2 / count


def bisected(magnitude: list[float], n: int) -> list[float]:
    """Probabilities from the water level found by halving an interval."""
    low, high = 0.0, sum(magnitude)
    for _ in range(200):
        middle = (low + high) / 2
        wanted = sum(min(1.0, x / middle) for x in magnitude) if middle else INF
        low, high = (middle, high) if wanted > n else (low, middle)
    return [min(1.0, x / high) for x in magnitude]


@settings(max_examples=60)
@given(st.sampled_from(PATTERNS), st.integers(0, 2**32 - 1), st.floats(0.0, 4.0), st.data())
def test_no_other_probabilities_have_less_variance(
    pattern: NmPattern, seed: int, spread: float, data: st.DataObject
) -> None:
    mvue, n = MinimumVarianceSampler(pattern), pattern.n
    group = normal(pattern.m, seed=seed) * torch.exp2(spread * normal(pattern.m, seed=seed + 1))
    least = float(mvue.variance(group, 0))
    filled = torch.tensor(bisected(group.abs().tolist(), n), dtype=torch.float64)
    torch.testing.assert_close(mvue.probabilities(group, 0), filled, rtol=1e-9, atol=0)
    tolerance = 1e-11 * float(group.square().sum() + least)  # what the differences cancel
    assert abs(least - float((group**2 / filled - group**2).sum())) <= tolerance
    # Any other: at random, or the best one disturbed, scaled down to at most n elements.
    weights = st.lists(st.floats(0.01, 1.0), min_size=pattern.m, max_size=pattern.m)
    other = torch.tensor(data.draw(weights), dtype=torch.float64)
    other = other * filled if data.draw(st.booleans()) else other
    other = (other * min(1.0, n / float(other.sum()))).clamp(min=1e-300)
    assert float((group**2 / other - group**2).sum()) >= least - tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_rounding_never_keeps_too_many_nor_loses_a_certain_element(
    pattern: NmPattern, dtype: torch.dtype
) -> None:
    mvue, operand = MinimumVarianceSampler(pattern), adversarial(dtype, pattern.m)
    columns = operand.shape[1]
    p = mvue.probabilities(operand, 0)
    assert p.isfinite().all() and p.ge(0).all() and p.le(1).all()
    wanted = operand.ne(0).sum(0).clamp(max=pattern.n)
    assert (p.sum(0) - wanted).abs().max() <= 16 * torch.finfo(p.dtype).eps * pattern.m
    edges = [0.0, torch.finfo(p.dtype).tiny, 2.0**-24, 0.5, 1 - 2**-24, math.nextafter(1, 0)]
    numbers = torch.tensor(edges, dtype=torch.float64)[:, None].expand(-1, columns)
    chance = torch.rand(2, columns, generator=torch.Generator().manual_seed(1)).double()
    for uniforms in torch.cat([numbers, chance]).unsqueeze(1):
        drawn = mvue.sample(operand, 0, uniforms)
        assert not drawn.isnan().any()
        assert drawn.ne(0).sum(0).equal(wanted)
        assert drawn[p == 1].equal(operand[p == 1]) and drawn[p == 0].eq(0).all()
        kept = drawn != 0
        assert drawn.signbit()[kept].equal(operand.signbit()[kept])
        assert drawn.abs()[kept].ge(operand.abs()[kept]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_pairs_equal_the_general_path_bit_for_bit(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    mvue, operand = sampler("1:2"), adversarial(dtype, 2)
    special = torch.tensor([INF, -INF, NAN, 0.0, -0.0, 1.0, torch.finfo(dtype).max], dtype=dtype)
    operand = torch.cat([operand, torch.cartesian_prod(special, special).T], 1)
    shape = mvue.uniform_shape(operand.shape, 0)
    uniforms = [torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
                torch.zeros(shape), torch.full(shape, 1 - 2.0**-24)]
    pairs = [mvue.sample(operand, 0, u) for u in uniforms]
    monkeypatch.setattr(mvue_module, "_pair", lambda groups, u: mvue_module._general(groups, 1, u))
    for pair, u in zip(pairs, uniforms, strict=True):
        integer = torch.int64 if dtype == torch.float64 else torch.int16
        assert pair.view(integer).equal(mvue.sample(operand, 0, u).view(integer))


def test_a_pair_is_what_the_source_says() -> None:
    operand = torch.tensor([3.0, -1.0]).repeat(4)
    drawn = sampler("1:2").sample(operand, 0, torch.tensor([0.0, 0.74, 0.75, 0.99]))
    assert drawn.tolist() == [4.0, 0.0, 4.0, 0.0, 0.0, -4.0, 0.0, -4.0]
    assert sampler("1:2").probabilities(operand, 0).tolist() == [0.75, 0.25] * 4
    assert sampler("1:2").variance(operand, 0).tolist() == [6.0] * 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_sparse_groups_come_back_bit_for_bit(pattern: NmPattern, dtype: torch.dtype) -> None:
    mvue, generator = MinimumVarianceSampler(pattern), torch.Generator().manual_seed(3)
    operand = adversarial(dtype, pattern.m)
    order = torch.rand(operand.shape, generator=generator).argsort(0)
    operand = operand * (order < pattern.n)  # what is masked keeps its sign: -0 as well
    for position, column, special in ((0, 0, INF), (0, 1, NAN), (-1, 2, -INF)):
        kept = order[position, column::7] < pattern.n
        operand[position, column::7].masked_fill_(kept, special)
    assert mvue.sample(operand, 0, generator=generator).view(torch.uint8).equal(
        operand.view(torch.uint8)
    )
    assert mvue.probabilities(operand, 0).equal(operand.ne(0).to(mvue.variance(operand, 0).dtype))
    assert mvue.variance(operand, 0).eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 10, 3), (5, 7), (13,), (4, 3, 2, 9)])
@pytest.mark.parametrize("text", ["1:2", "2:4", "2:8"])
def test_leftovers_and_axes(shape: tuple[int, ...], text: str, dtype: torch.dtype) -> None:
    mvue, operand = sampler(text), normal(*shape).to(dtype)
    n, m = mvue.pattern.n, mvue.pattern.m
    for dim in range(-len(shape), len(shape)):
        size = mvue.uniform_shape(shape, dim)
        generator = torch.Generator().manual_seed(dim % len(shape))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        drawn = mvue.sample(operand, dim, generator=generator)
        uniforms = torch.rand(
            size, generator=torch.Generator().manual_seed(dim % len(shape)), dtype=wide
        )
        assert mvue.sample(operand, dim, uniforms).equal(drawn)
        assert drawn.shape == shape and drawn.dtype == dtype and drawn.is_contiguous()
        kept = in_groups(drawn.movedim(dim, 0), m).ne(0).sum(1)
        assert kept.movedim(0, dim).shape == size
        assert kept.equal(in_groups(operand.movedim(dim, 0), m).ne(0).sum(1).clamp(max=n))
        first = mvue.sample(operand.movedim(dim, 0).contiguous(), 0, uniforms.movedim(dim, 0))
        assert drawn.equal(first.movedim(0, dim))
        p, variance = mvue.probabilities(operand, dim), mvue.variance(operand, dim)
        assert p.shape == shape and variance.shape == size and p.dtype == variance.dtype == wide
        spread = operand.to(wide).square() * (1 / p - 1)
        expected = in_groups(spread.movedim(dim, 0), m).sum(1).movedim(0, dim)
        torch.testing.assert_close(variance, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("text", "group", "kept"),
    [
        ("1:2", [1.0, NAN], [0.0, NAN]),
        ("1:2", [-INF, NAN], [-INF, 0.0]),
        ("1:2", [NAN, INF], [NAN, 0.0]),
        ("1:2", [0.0, -INF], [0.0, -INF]),
        ("2:4", [1.0, 2.0, NAN, INF], [0.0, 0.0, NAN, INF]),
        ("2:4", [NAN, -INF, INF, NAN], [NAN, -INF, 0.0, 0.0]),
        ("1:4", [0.0, 1.0, NAN, INF], [0.0, 0.0, NAN, 0.0]),
    ],
)
def test_what_is_not_finite_survives(
    text: str, group: list[float], kept: list[float], dtype: torch.dtype
) -> None:
    operand = torch.tensor(group, dtype=dtype)
    for number in (0.0, 0.5, 1 - 2.0**-24):
        drawn = sampler(text).sample(operand, 0, torch.tensor([number]))
        torch.testing.assert_close(drawn, torch.tensor(kept, dtype=dtype), equal_nan=True)
    p = sampler(text).probabilities(operand, 0)
    assert p.tolist() == [float(value != 0) for value in kept]


def test_finite_elements_share_the_slots_that_are_left() -> None:
    operand = torch.tensor([1.0, NAN, 3.0, 0.0])
    for number, kept in ((0.2, [4.0, NAN, 0.0, 0.0]), (0.3, [0.0, NAN, 4.0, 0.0])):
        drawn = sampler("2:4").sample(operand, 0, torch.tensor([number]))
        torch.testing.assert_close(drawn, torch.tensor(kept), equal_nan=True)
    assert sampler("2:4").variance(operand, 0).item() == 6.0
    assert not sampler("1:4").variance(torch.tensor([1.0, INF, 3.0, NAN]), 0).isfinite()


def test_a_threshold_beyond_the_operands_type_is_inf_and_keeps_the_odds() -> None:
    for dtype in DTYPES:
        operand = torch.tensor([1.0, -0.5], dtype=dtype) * torch.finfo(dtype).max
        drawn = sampler("1:2").sample(operand.repeat(2), 0, torch.tensor([0.6, 0.7]))
        assert drawn.tolist() == [INF, 0.0, 0.0, -INF]
        operand = torch.tensor([0.5, 0.5, 0.5, 0.0], dtype=dtype) * torch.finfo(dtype).max
        drawn = sampler("2:4").sample(operand, 0, torch.tensor([0.5]))  # their sum would overflow
        assert drawn.isfinite().all() and drawn[0] == drawn[2] > operand[0] and drawn[1] == 0


def test_dense_and_empty_operands_are_returned() -> None:
    operand = torch.tensor([[1.0, NAN, -0.0]])
    assert sampler("4:4").sample(operand, 1) is operand
    assert sampler("2:4").sample(torch.zeros(0, 5), 0).shape == (0, 5)
    assert sampler("2:4").probabilities(torch.zeros(3, 0), 1).shape == (3, 0)
    assert sampler("2:4").variance(torch.zeros(0, 5), 0).shape == (0, 5)


@pytest.mark.parametrize("text", ["1:2", "2:4"])
def test_nothing_reads_a_value_back_from_the_device(text: str) -> None:
    for dtype in DTYPES:
        operand = torch.empty(6, 9, dtype=dtype, device="meta", requires_grad=True)
        drawn = sampler(text).sample(operand, 1)  # a tensor without values: reading one would fail
        assert drawn.is_meta and drawn.shape == (6, 9) and not drawn.requires_grad
        assert sampler(text).probabilities(operand, 1).is_meta
        assert sampler(text).variance(operand, 1).is_meta


METHODS: list[Callable[[Tensor, int], Tensor]] = [
    sampler("2:4").sample, sampler("2:4").probabilities, sampler("2:4").variance,
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("operand", "dim", "message"),
    [
        (torch.zeros(4, dtype=torch.int32), 0,
         "operand='torch.int32': must be one of float16, bfloat16, float32, float64; "
         "nearest legal value: torch.float16"),
        (torch.zeros(4, 4), 2,
         "dim=2: must be an axis of an operand with 2 axes; nearest legal value: 1"),
        (torch.zeros(4, 4), -3,
         "dim=-3: must be an axis of an operand with 2 axes; nearest legal value: -2"),
    ],
)
def test_bad_operands_are_named(
    method: Callable[[Tensor, int], Tensor], operand: Tensor, dim: int, message: str
) -> None:
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        method(operand, dim)


def test_bad_uniforms_are_named() -> None:
    message = "uniforms=(9, 4): must have one number for each group; nearest legal value: (3, 4)"
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        sampler("2:4").sample(torch.zeros(9, 4), 0, torch.zeros(9, 4))
    with pytest.raises(ParameterError, match=r"^dim=2: must be an axis"):
        sampler("2:4").uniform_shape((3, 4), 2)
