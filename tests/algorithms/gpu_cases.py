"""The Triton kernels against the reference masks; run by ``test_gpu.py`` in a process of its own.

With ``TRITON_INTERPRET=1`` in the environment they run on the CPU, under Triton's interpreter, else
on the GPU. That is decided when Triton is imported, hence the other process.
"""

import math
import os

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms.gpu import select
from algorithms.masks import nm_mask_eager
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

# NumPy, which the interpreter computes with, mentions each overflow to Inf.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
INTEGERS = {HALF: torch.int16, BRAIN: torch.int16, FULL: torch.int32}
PATTERNS = [NmPattern(*pair) for pair in ((1, 2), (2, 4), (1, 4), (2, 8), (1, 8), (2, 16))]
TYPES = [  # of the master, the rounding and the operand
    (FULL, HALF, FULL), (HALF, HALF, HALF), (BRAIN, BRAIN, BRAIN), (FULL, FULL, FULL),
    (FULL, BRAIN, BRAIN), (BRAIN, HALF, FULL), (HALF, BRAIN, FULL), (HALF, HALF, FULL),
    (BRAIN, FULL, HALF),
]
SHAPES = [  # and convolution groups
    ((32, 48), 1), ((19, 37), 1), ((3, 5), 1), ((12, 10, 3, 3), 1), ((22, 9, 3, 1), 2),
    ((10, 7, 5), 1), ((7, 6, 7, 7), 1),
]


def weights(shape: tuple[int, ...], dtype: torch.dtype, content: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if content == "ties":
        return torch.randint(-2, 3, shape, generator=generator).to(dtype).to(DEVICE)
    normal = torch.randn(shape, generator=generator).to(dtype)
    if content == "normal":
        return normal.to(DEVICE)
    bits = INTEGERS[dtype]
    limits = torch.iinfo(bits)
    anything = torch.randint(limits.min, limits.max, shape, generator=generator).to(bits)
    special = torch.tensor(
        [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1.0, -1.0, 65504.0, 65519.9, 65520.0,
         6e-8, -3e-8, 2.98e-8, 5.96e-8, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8,
         3.4e38, 1e-40]).to(dtype)
    chosen = special[torch.randint(len(special), shape, generator=generator)]
    kind = torch.randint(3, shape, generator=generator)
    mixed = torch.where(kind == 0, anything.view(dtype), torch.where(kind == 1, chosen, normal))
    return mixed.to(DEVICE)


def rounded(weight: Tensor, rounding: torch.dtype, dtype: torch.dtype) -> Tensor:
    """As an operand is; what NaN became on the way is the canonical one with its sign."""
    operand = weight.to(rounding).to(dtype)
    if weight.dtype == rounding == dtype:
        return operand
    sign = torch.signbit(weight)
    quiet = torch.full_like(operand, math.nan).view(INTEGERS[dtype])
    quiet = torch.where(sign, quiet | torch.iinfo(INTEGERS[dtype]).min, quiet).view(dtype)
    return torch.where(weight.isnan(), quiet, operand)


def expected(
    weight: Tensor, pattern: NmPattern, groups: int, rounding: torch.dtype, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    operand = rounded(weight.cpu(), rounding, dtype)
    blocks = torch.unflatten(weight.cpu(), 0, (groups, -1))
    forward = nm_mask_eager(weight.cpu(), pattern, 1, rounding=rounding)
    backward = nm_mask_eager(blocks, pattern, 1, rounding=rounding).flatten(0, 1)
    zero = torch.zeros((), dtype=dtype)
    return torch.where(forward, operand, zero), torch.where(backward, operand, zero)


def same(actual: Tensor, wanted: Tensor) -> None:
    """Equal in every bit."""
    assert actual.dtype == wanted.dtype and actual.shape == wanted.shape
    assert actual.is_contiguous()
    bits = INTEGERS.get(wanted.dtype, wanted.dtype)
    torch.testing.assert_close(actual.cpu().view(bits), wanted.contiguous().view(bits),
                               rtol=0, atol=0)


def check_operands(
    weight: Tensor, pattern: NmPattern, groups: int, rounding: torch.dtype, dtype: torch.dtype
) -> None:
    """Alone and both at once."""
    wanted = expected(weight, pattern, groups, rounding, dtype)
    before = weight.clone()
    both = select.prune_both(weight, pattern, groups, rounding, dtype)
    views = select.both_views(weight.shape, groups)
    for fused, view, right in zip(both, views, wanted, strict=True):
        same(fused, right)
        same(select.prune(weight, pattern, view, rounding, dtype), right)
    same(weight, before.cpu())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_operands_of_every_pattern(pattern: NmPattern) -> None:
    parts = weights((27, 35), FULL, "special"), weights((27, 18), FULL, "ties")
    check_operands(torch.cat(parts, 1), pattern, 1, HALF, FULL)


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_operands_of_every_type(types: tuple[torch.dtype, torch.dtype, torch.dtype]) -> None:
    source, rounding, dtype = types
    check_operands(weights((40, 36), source, "special", 1), NmPattern(2, 8), 1, rounding, dtype)


@pytest.mark.parametrize("types", TYPES[:2], ids=str)
def test_groups_of_nothing_but_nan_inf_and_zero(
    types: tuple[torch.dtype, torch.dtype, torch.dtype]
) -> None:
    source, rounding, dtype = types
    bits = torch.tensor([0x7C01, 0x7FFF, 0xFE00, 0x7C00, 0x8000], dtype=torch.int32)
    halves = bits.to(torch.int16).repeat_interleave(8).repeat(10, 1).view(HALF)
    halves[:, ::3] = -1.0
    for weight in (halves, halves.T.contiguous()):
        check_operands(weight.to(source).to(DEVICE), NmPattern(1, 4), 1, rounding, dtype)


@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_operands_of_every_shape(shape: tuple[int, ...], groups: int) -> None:
    check_operands(weights(shape, FULL, "special", 2), NmPattern(2, 16), groups, HALF, FULL)


def test_larger_weights_take_several_programs() -> None:
    check_operands(weights((20, 300), FULL, "special", 2), NmPattern(2, 4), 1, HALF, FULL)


@pytest.mark.parametrize("pattern", [NmPattern(3, 4), NmPattern(7, 8), NmPattern(8, 16)], ids=str)
def test_patterns_that_keep_half_or_more(pattern: NmPattern) -> None:
    check_operands(weights((21, 35), FULL, "ties"), pattern, 1, HALF, FULL)
    check_operands(weights((21, 35), FULL, "special"), pattern, 1, FULL, FULL)


@pytest.mark.parametrize(("shape", "groups", "pattern"), [
    *(((19, 37), 1, pattern) for pattern in PATTERNS), ((12, 10, 3, 3), 1, NmPattern(2, 8)),
    ((22, 9, 3, 1), 2, NmPattern(2, 4)), ((5, 4, 7, 7), 1, NmPattern(1, 16)),
], ids=str)
def test_packed_form_equals_the_shared_patterns_own(
    shape: tuple[int, ...], groups: int, pattern: NmPattern
) -> None:
    weight = weights(shape, HALF, "special", 3)
    views = select.both_views(shape, groups)
    both = select.pack_both(weight, pattern, groups, HALF)
    for fused, view in zip(both, views, strict=True):
        alone = select.pack(weight, pattern, view, HALF)
        operand = weight.cpu().view(view).numpy()
        for outer in range(view.outer):
            values, indices = pattern.pack(operand[outer])
            for packed in (fused, alone):
                np.testing.assert_array_equal(
                    packed.values[outer].cpu().view(torch.int16),
                    values.transpose(2, 0, 1).view(np.int16))
                np.testing.assert_array_equal(packed.indices[outer].cpu(),
                                              indices.transpose(2, 0, 1))


def test_packed_values_are_rounded_first() -> None:
    weight = weights((24, 20), FULL, "special", 4)
    for rounding in (HALF, BRAIN, FULL):
        operand = rounded(weight.cpu(), rounding, rounding)
        for packed, view in zip(select.pack_both(weight, NmPattern(2, 4), 1, rounding),
                                select.both_views((24, 20), 1), strict=True):
            rows = torch.unflatten(operand.view(view).transpose(1, 2), 2, (-1, 4))
            bits = INTEGERS[rounding]  # a gathered NaN need not keep its bits
            chosen = rows.contiguous().view(bits).gather(3, packed.indices.cpu().long())
            same(packed.values.view(bits), chosen)


def test_empty_weights() -> None:
    for operand in select.prune_both(torch.zeros(0, 8, device=DEVICE), NmPattern(2, 4), 1, HALF,
                                     FULL):
        assert operand.shape == (0, 8)


@pytest.mark.parametrize(("source", "pattern", "view", "name"), [
    (torch.zeros(4, 4, dtype=torch.float64), NmPattern(2, 4), (4, 4, 1), "source.dtype"),
    (torch.zeros(4, 8)[:, ::2], NmPattern(2, 4), (4, 4, 1), "source"),
    (torch.zeros(4, 6), NmPattern(2, 3), (4, 6, 1), "pattern"),
    (torch.zeros(4, 4), NmPattern(4, 4), (4, 4, 1), "pattern"),
    (torch.zeros(4, 4), NmPattern(2, 4), (4, 5, 1), "sizes"),
])
def test_what_the_kernels_do_not_take(
    source: Tensor, pattern: NmPattern, view: tuple[int, int, int], name: str
) -> None:
    with pytest.raises(ParameterError, match=f"^{name}="):
        select.prune(source.to(DEVICE), pattern, select.View(*view), HALF, FULL)
    with pytest.raises(ParameterError, match=r"^rounding="):
        select.prune(torch.zeros(4, 4, device=DEVICE), NmPattern(2, 4), select.View(4, 4, 1),
                     torch.float64, FULL)
