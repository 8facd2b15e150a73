"""How fast the N:M masks are next to the stock PyTorch ways of making the same ones.

``python -m benchmarks.mask_speed`` prints, for each weight, pattern and group axis, the CPU time of
:func:`algorithms.nm_mask` and the ratio of the others to it. All of them are first checked to give
the same mask.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from algorithms import nm_mask
from rtl.pattern import NmPattern

__all__ = ["main"]

Implementation = Callable[[Tensor, NmPattern, int], Tensor]

SHAPES = ((512, 512, 3, 3), (1024, 1024), (128, 64, 3, 3))
PATTERNS = (NmPattern(2, 4), NmPattern(2, 8), NmPattern(2, 16))


def _magnitude(weight: Tensor, pattern: NmPattern, dim: int) -> Tensor:
    """int32 magnitude bits with the groups as an axis of their own at ``dim + 1``."""
    bits = weight.to(torch.float16).view(torch.int16) & 0x7FFF
    return torch.unflatten(bits.to(torch.int32), dim, (-1, pattern.m))


def _scatter(indices: Tensor, like: Tensor, dim: int) -> Tensor:
    kept = torch.zeros(like.shape, dtype=torch.bool).scatter_(dim + 1, indices, True)
    return kept.flatten(dim, dim + 1)


def _keys(weight: Tensor, pattern: NmPattern, dim: int) -> Tensor:
    magnitude = _magnitude(weight, pattern, dim)
    index = torch.arange(pattern.m - 1, -1, -1, dtype=torch.int32)
    return magnitude * pattern.m + index.view(-1, *[1] * (weight.dim() - dim - 1))


def by_sort(weight: Tensor, pattern: NmPattern, dim: int) -> Tensor:
    """Stable descending sort of the magnitudes."""
    magnitude = _magnitude(weight, pattern, dim)
    order = magnitude.sort(dim=dim + 1, descending=True, stable=True).indices
    return _scatter(order.narrow(dim + 1, 0, pattern.n), magnitude, dim)


def by_topk(weight: Tensor, pattern: NmPattern, dim: int) -> Tensor:
    """``topk`` on keys that no two elements of a group share."""
    keys = _keys(weight, pattern, dim)
    return _scatter(keys.topk(pattern.n, dim=dim + 1, sorted=False).indices, keys, dim)


def by_amax(weight: Tensor, pattern: NmPattern, dim: int) -> Tensor:
    """N passes, each of which takes the largest remaining key."""
    keys = _keys(weight, pattern, dim)
    for _ in range(pattern.n):
        keys = torch.where(keys == keys.amax(dim + 1, keepdim=True), -1, keys)
    return (keys < 0).flatten(dim, dim + 1)


def by_pairs(weight: Tensor, pattern: NmPattern, dim: int) -> Tensor:
    """Rank of every element by comparing all pairs of positions, on int16 planes."""
    bits = weight.to(torch.float16).view(torch.int16) & 0x7FFF
    planes = torch.unflatten(bits.movedim(dim, 0), 0, (-1, pattern.m)).transpose(0, 1).contiguous()
    rank = torch.zeros(planes.shape, dtype=torch.uint8)
    for early in range(pattern.m):
        for late in range(early + 1, pattern.m):
            behind = planes[late] > planes[early]
            rank[early] += behind
            rank[late] += ~behind
    return (rank < pattern.n).transpose(0, 1).flatten(0, 1).movedim(0, dim).contiguous()


OTHERS: tuple[Implementation, ...] = (by_pairs, by_amax, by_topk, by_sort)


def _seconds(run: Implementation, weight: Tensor, pattern: NmPattern, dim: int) -> float:
    """Least CPU time of five calls."""
    times = []
    for _ in range(5):
        start = time.process_time()
        run(weight, pattern, dim)
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    names = "".join(f"{run.__name__:>10}" for run in OTHERS)
    print(f"{'weight':<14}{'pattern':>8}{'axis':>5}{'nm_mask ms':>12}{names}   (times nm_mask)")
    for shape in SHAPES:
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for pattern in PATTERNS:
            for stage, dim in (("FF", 1), ("BP", 0)):
                expected = nm_mask(weight, pattern, dim)
                for run in OTHERS:
                    if not torch.equal(run(weight, pattern, dim), expected):
                        raise AssertionError(f"{run.__name__} disagrees at {shape} {pattern}")
                own = _seconds(nm_mask, weight, pattern, dim)
                ratios = "".join(f"{_seconds(run, weight, pattern, dim) / own:>9.1f}x"
                                 for run in OTHERS)
                size = "x".join(map(str, shape))
                print(f"{size:<14}{pattern!s:>8}{stage:>5}{own * 1e3:>12.2f}{ratios}")


if __name__ == "__main__":
    main()
