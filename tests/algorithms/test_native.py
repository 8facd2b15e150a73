"""The compiled kernel against eager PyTorch, bit for bit, and both against the numpy pattern."""

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from algorithms.masks import nm_mask, nm_mask_eager
from algorithms.native import kernels
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern

native = pytest.mark.skipif(not kernels.available(), reason="the kernel was not built here")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PATTERNS = [
    NmPattern(n, m)
    for n, m in [(2, 4), (1, 4), (2, 8), (1, 8), (4, 8), (3, 8), (2, 16), (8, 16), (11, 16), (1, 2),
                 (1, 3), (3, 5), (7, 7), (2, 12), (9, 17), (1, 1), (3, 255)]
]
SPECIAL = torch.tensor(
    [0.0, -0.0, 2.0**-24, -(2.0**-25), 2.0**-14, 6e-8, 1.0, -1.0, 1.0 + 2.0**-11, 65504.0, 65519.9,
     -65520.0, 1e9, 3.4e38, 1e-40, -1e-45, float("inf"), -float("inf"), float("nan")]
)
"""Zeros, subnormals of three formats, ties of rounding, overflows, infinities and a NaN."""


def canonical(values: Tensor, rounding: torch.dtype) -> Tensor:
    """int32 bits of ``values`` rounded and widened to float32, each NaN a made one by its sign."""
    bits = values.to(rounding).float().view(torch.int32)
    made = torch.where(values.signbit(), -0x400000, 0x7FC00000).to(torch.int32)
    return torch.where(values.isnan(), made, bits)


@pytest.mark.skipif(sys.platform != "linux", reason="other compilers may have no OpenMP")
def test_the_kernel_was_built() -> None:
    """Or else every test of it would be skipped, and masks made slowly, without a word."""
    assert kernels.available()


class Case(NamedTuple):
    """A source viewed as (outer, length, inner), and what to do with it."""

    source: Tensor
    pattern: NmPattern
    rounding: torch.dtype

    def axes(self) -> tuple[int, int, int]:
        outer, length, inner = self.source.shape
        return outer, length, inner

    def expected(self) -> Tensor:
        return nm_mask_eager(self.source, self.pattern, 1, rounding=self.rounding)

    def mask(self) -> Tensor:
        mask = torch.ones(self.source.shape, dtype=torch.bool)
        kernels.mask_into(self.source, mask, self.pattern, *self.axes(), self.rounding)
        return mask

    def pruned(self) -> Tensor:
        out = torch.full(self.source.shape, 7.0)
        kernels.prune_into(self.source, out, self.pattern, *self.axes(), self.rounding)
        return out


def values(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    if kind == "normal":
        return torch.randn(shape, generator=rng)
    if kind == "ties":
        return torch.randint(-2, 3, shape, generator=rng).float()
    if kind == "special":
        return SPECIAL[torch.randint(len(SPECIAL), shape, generator=rng)]
    if kind == "zeros":
        return torch.zeros(shape)
    bits = torch.randint(-(2**31), 2**31, shape, generator=rng)
    return bits.to(torch.int32).view(torch.float32)


KINDS = ("normal", "ties", "special", "zeros", "bits")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    pattern = draw(st.sampled_from(PATTERNS))
    inner = draw(st.sampled_from([1, 1, 2, 3, 9, 31, 63, 64, 200, 1100]))
    room = max(1, 6000 // inner)  # for at least one row, at most some 6000 elements
    length = draw(st.integers(1, min(room, 3 * pattern.m)))
    if draw(st.booleans()):
        length = max(1, length // pattern.m) * pattern.m  # no short group, so that runs merge
    outer = draw(st.integers(1, min(5, max(1, room // length))))
    source = values(draw(st.sampled_from(KINDS)), (outer, length, inner), draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from(DTYPES))
    if draw(st.booleans()) and dtype != torch.float32:  # every NaN that the type has
        source = source.view(torch.int32).to(torch.int16).view(dtype)
    return Case(source.to(dtype), pattern, draw(st.sampled_from(DTYPES)))


@native
@settings(max_examples=200)
@given(cases())
def test_masks_and_pruned_weights_equal_eager_bit_for_bit(case: Case) -> None:
    expected = case.expected()
    assert torch.equal(case.mask(), expected)
    assert torch.equal(nm_mask(case.source, case.pattern, 1, rounding=case.rounding), expected)
    pruned = case.pruned().view(torch.int32)
    assert not pruned[~expected].any(), "a pruned element is not +0"
    kept = case.source[expected]
    assert torch.equal(canonical(pruned[expected].view(torch.float32), torch.float32),
                       canonical(kept, case.rounding))


@settings(max_examples=80)
@given(cases(), st.sampled_from([*DTYPES, torch.float64]), st.integers(0, 2))
def test_eager_equals_the_rank_rule_for_every_rounding(
    case: Case, rounding: torch.dtype, dim: int
) -> None:
    source = case.source[:2, :20, :2].movedim(1, dim)
    mask = nm_mask_eager(source, case.pattern, dim, rounding=rounding).movedim(dim, -1)
    rounded = source.movedim(dim, -1).to(rounding)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[rounding.itemsize]
    bits = rounded.view(integer).to(torch.int64) & torch.iinfo(integer).max
    if source.dtype != rounding:
        bits[rounded.isnan()] = torch.iinfo(integer).max
    m = case.pattern.m
    for row, kept in zip(bits.flatten(0, -2).tolist(), mask.flatten(0, -2).tolist(), strict=True):
        for i, mine in enumerate(row):
            start = i - i % m
            ahead = sum(b > mine or (b == mine and start + j < i)
                        for j, b in enumerate(row[start : start + m]))
            assert kept[i] == (ahead < case.pattern.n)


@pytest.mark.parametrize("pattern", [NmPattern(2, 8), NmPattern(1, 4), NmPattern(3, 5)])
@pytest.mark.parametrize("mask_of", [nm_mask, nm_mask_eager])
def test_every_fp16_value_ranks_as_in_the_numpy_pattern(mask_of: Any, pattern: NmPattern) -> None:
    bits = np.random.default_rng(5).permutation(np.arange(2**16, dtype=np.uint16))
    operand = bits.view(np.float16).reshape(1024, 64)
    expected = pattern.mask(operand)
    source = torch.from_numpy(operand)
    np.testing.assert_array_equal(mask_of(source, pattern, 0).numpy(), expected)
    np.testing.assert_array_equal(mask_of(source.T, pattern, 1).numpy(), expected.T)
    finite = source.nan_to_num(float("inf"))
    np.testing.assert_array_equal(
        mask_of(finite.float(), pattern, 0).numpy(), pattern.mask(finite.numpy())
    )


def boundaries(rounding: torch.dtype) -> Tensor:
    """Every value of a 16-bit type, and the float32 around it and around each middle of two."""
    every = torch.arange(2**16).to(torch.int32).to(torch.int16).view(rounding).float()
    below = torch.arange(0x7C00 if rounding is torch.float16 else 0x7F80, dtype=torch.int32)
    low = below.to(torch.int16).view(rounding).double()
    high = (below + 1).to(torch.int16).view(rounding).double()
    # The middle towards Inf lies where the next finite value would be.
    high[-1] = 2 * low[-1] - low[-2]
    centres = torch.cat([every, ((low + high) / 2).float()]).view(torch.int32)
    near = torch.cat([centres + step for step in (-2, -1, 0, 1, 2)]).view(torch.float32)
    return torch.cat([near, -near])


def round_into(source: Tensor, out: Tensor, rounding: torch.dtype) -> None:
    """Rounding alone: the dense pattern."""
    kernels.prune_into(source, out, DENSE, 1, source.numel(), 1, rounding)


@native
@pytest.mark.parametrize("rounding", [torch.float16, torch.bfloat16])
def test_rounding_is_exact_at_every_value_and_around_every_boundary(rounding: torch.dtype) -> None:
    source = boundaries(rounding)
    out = torch.empty_like(source)
    round_into(source, out, rounding)
    assert torch.equal(out.view(torch.int32), canonical(source, rounding))
    round_into(source, source, rounding)
    assert torch.equal(source.view(torch.int32), out.view(torch.int32))


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounding", DTYPES)
def test_rounding_of_every_source_type(dtype: torch.dtype, rounding: torch.dtype) -> None:
    source = torch.arange(2**16).to(torch.int32).to(torch.int16)
    typed = source.view(dtype) if dtype != torch.float32 else boundaries(torch.bfloat16)
    out = torch.empty(typed.shape)
    round_into(typed, out, rounding)
    if dtype != rounding:
        assert torch.equal(out.view(torch.int32), canonical(typed, rounding))
    else:
        assert torch.equal(canonical(out, torch.float32), canonical(typed, rounding))


@native
def test_flushing_subnormals_to_zero_changes_nothing() -> None:
    source = values("special", (3, 16, 70), 3)
    case = Case(source, NmPattern(2, 8), torch.float16)
    expected = case.pruned().view(torch.int32)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        assert torch.equal(case.pruned().view(torch.int32), expected)
    finally:
        torch.set_flush_denormal(False)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kernels, "_PER_THREAD", 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@native
@pytest.mark.parametrize("shape", [(7, 24, 1), (5, 19, 9), (1, 64, 130), (3, 9, 2)])
@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_does_not_change_a_bit(shape: tuple[int, int, int]) -> None:
    case = Case(values("special", shape, 1), NmPattern(2, 8), torch.float16)
    seen, rounded = [], []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        seen.append(case.pruned().view(torch.int32))
        assert torch.equal(case.mask(), case.expected())
        out = torch.empty(shape)
        round_into(case.source, out, torch.bfloat16)
        rounded.append(out.view(torch.int32))
    assert all(torch.equal(bits, seen[0]) for bits in seen)
    assert all(torch.equal(bits, rounded[0]) for bits in rounded)


@native
@pytest.mark.usefixtures("threads")
def test_calls_from_several_threads_at_once_do_not_disturb_each_other() -> None:
    torch.set_num_threads(2)
    work = [Case(values("normal", (4, 64, 9), k), NmPattern(2, 8), torch.float16) for k in range(8)]
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(Case.mask, work))
    assert all(torch.equal(mask, case.expected()) for mask, case in zip(masks, work, strict=True))


@native
@pytest.mark.parametrize(("inner", "offset"), [(1, 0), (27, 1), (3300, 3)])
def test_an_output_larger_than_the_caches_is_written_past_them(inner: int, offset: int) -> None:
    outer, length = 64, 132000 // inner // 8 * 8
    case = Case(values("normal", (outer, length, inner), 2), NmPattern(2, 8), torch.float16)
    around = torch.full((case.source.numel() + 32,), 7.0)
    inside = around[8 + offset : 8 + offset + case.source.numel()].view_as(case.source)
    kernels.prune_into(case.source, inside, case.pattern, *case.axes(), torch.float16)
    assert around.nbytes > 2**25, "too small to be written past the caches"
    for source, pruned in zip(case.source, inside, strict=True):  # each small enough for them
        small = case._replace(source=source.unsqueeze(0))
        assert torch.equal(small.pruned()[0], pruned)
    assert around[: 8 + offset].eq(7).all() and around[8 + offset + inside.numel() :].eq(7).all()


@native
def test_convolution_weights_prune_per_group_and_kernel_position() -> None:
    weight = values("ties", (16, 12, 3, 3), 4)
    blocks = weight.view(2, 8, 12, 3, 3)
    pattern = NmPattern(2, 4)
    forward, backward = torch.empty_like(weight), torch.empty_like(weight)
    kernels.prune_into(weight, forward, pattern, 16, 12, 9, torch.float16)
    kernels.prune_into(weight, backward, pattern, 2, 8, 12 * 9, torch.float16)
    assert torch.equal(forward, weight * nm_mask_eager(weight, pattern, 1))
    assert torch.equal(backward, (blocks * nm_mask_eager(blocks, pattern, 1)).view_as(weight))


@native
def test_a_weight_may_be_pruned_in_place_and_autograd_hears_of_it() -> None:
    case = Case(values("normal", (2, 24, 70), 6), NmPattern(2, 8), torch.float16)
    expected, before = case.pruned(), case.source._version
    kernels.prune_into(case.source, case.source, case.pattern, 2, 24, 70, torch.float16)
    assert torch.equal(case.source, expected) and case.source._version == before + 1


@native
def test_empty_tensors_and_dense_patterns() -> None:
    for shape in ((0, 8, 1), (2, 0, 3), (2, 8, 0)):
        assert Case(torch.empty(shape), NmPattern(2, 8), torch.float16).pruned().shape == shape
    round_into(torch.empty(0), torch.empty(0), torch.float16)
    dense = Case(values("bits", (2, 300, 3), 7), NmPattern(300, 300), torch.float16)
    assert torch.equal(dense.pruned().view(torch.int32), canonical(dense.source, torch.float16))


def test_what_the_kernel_does_not_support_is_ranked_by_pytorch() -> None:
    weight = values("ties", (3, 600), 8)
    for operand, pattern, rounding in (
        (weight, NmPattern(3, 300), torch.float16),
        (weight.double(), NmPattern(2, 8), torch.float16),
        (weight, NmPattern(2, 8), torch.float64),
    ):
        assert not kernels.supports(operand, pattern, rounding)
        mask = nm_mask(operand, pattern, 1, rounding=rounding)
        assert torch.equal(mask, nm_mask_eager(operand, pattern, 1, rounding=rounding))
        assert mask.sum() == 3 * 600 // pattern.m * pattern.n


def test_without_a_library_pytorch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_library", lambda: None)
    assert not kernels.available()
    weight = values("ties", (4, 24), 9)
    expected = nm_mask_eager(weight, NmPattern(2, 8), 1)
    assert torch.equal(nm_mask(weight, NmPattern(2, 8), 1), expected)
    with pytest.raises(RuntimeError, match="needs a C\\+\\+ compiler"):
        round_into(weight, weight, torch.float16)


def test_wide_roundings_see_what_fp16_rounds_away() -> None:
    weight = torch.tensor([1.0, 1.0 + 2.0**-20, 1.0, 1.0])
    kept = {
        rounding: nm_mask(weight, NmPattern(1, 4), 0, rounding=rounding).tolist().index(True)
        for rounding in (*DTYPES, torch.float64)
    }
    assert kept == {
        torch.float16: 0, torch.bfloat16: 0, torch.float32: 1, torch.float64: 1,
    }
    wide = torch.tensor([1.0, 1.0 + 2.0**-40], dtype=torch.float64)
    assert nm_mask(wide, NmPattern(1, 2), 0, rounding=torch.float64).tolist() == [False, True]


F32 = torch.zeros(4, 8)


@pytest.mark.parametrize(
    ("source", "out", "changes", "message"),
    [
        (F32.double(), F32, {}, "source.dtype='torch.float64': must have a dtype of torch.float16, "
         "torch.bfloat16, torch.float32; nearest legal value: torch.float32"),
        (F32, F32.half(), {}, "out.dtype='torch.float16': must have a dtype of torch.float32; "
         "nearest legal value: torch.float32"),
        (torch.zeros(8, 4).T, F32, {}, "source.stride()=(1, 4): must be contiguous"),
        (F32, torch.zeros(4, 9)[:, :8], {}, "out.stride()=(9, 1): must be contiguous"),
        (F32, torch.zeros(31), {}, "out.numel()=31: must have as many elements as the source; "
         "nearest legal value: 32"),
        (F32, torch.empty(4, 8, device="meta"), {},
         "out='meta, torch.strided': must be a strided tensor in CPU memory"),
        (F32, F32.clone(), {"inner": 2},
         "shape=(4, 8, 2): (outer, length, inner) must hold the source's 32 elements"),
        (F32, F32.clone(), {"outer": -4, "inner": -1},
         "shape=(-4, 8, -1): (outer, length, inner) must hold the source's 32 elements"),
        (F32, F32.clone(), {"pattern": NmPattern(2, 256)},
         "pattern='2:256': the kernel ranks groups of at most 255; nearest legal value: 2:255"),
        (F32, F32.clone(), {"rounding": torch.float64},
         "rounding='torch.float64': must be one of torch.float16, torch.bfloat16, torch.float32; "
         "nearest legal value: torch.float32"),
    ],
)
def test_bad_arguments_are_named(
    source: Tensor, out: Tensor, changes: dict[str, Any], message: str
) -> None:
    arguments = {"pattern": NmPattern(2, 8), "outer": 4, "length": 8, "inner": 1,
                 "rounding": torch.float16, **changes}
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        kernels.prune_into(source, out, **arguments)


def test_other_bad_arguments_are_named() -> None:
    memory = torch.zeros(40)
    with pytest.raises(ParameterError, match=r"^out='0x\w+': must not overlap the source"):
        round_into(memory[:32], memory[8:], torch.float16)
    with pytest.raises(TypeError, match=r"^source must be a torch\.Tensor, not list$"):
        kernels.prune_into([1.0], memory, DENSE, 1, 1, 1, torch.float16)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"^mask\.dtype='torch.float32': must have a dtype of"):
        kernels.mask_into(F32, F32.clone(), NmPattern(2, 8), 4, 8, 1, torch.float16)
    message = "rounding='torch.int32': must be one of torch.float16, torch.bfloat16, torch.float32"
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}, torch.float64; nearest"):
        nm_mask(F32, NmPattern(2, 8), 1, rounding=torch.int32)
