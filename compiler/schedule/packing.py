"""Small groups share the array: grouped and depthwise convolutions as N:M sparse GEMMs.

A convolution of groups with few channels is a batch of GEMMs a few columns wide, which leave the
array empty. Groups that together have 16 channels make one GEMM instead, whose weight matrix has
blocks on its diagonal: of 16 channels at a kernel position, a column reads only those of its own
group. That is the pattern c:16, which the array runs at full speed; depthwise, it is 1:16. Sums
are the same bit for bit: zeros are skipped, what is left keeps its order.
"""

from __future__ import annotations

from dataclasses import replace

from compiler.ceiling import ceil_div
from compiler.schedule.problem import Problem
from rtl.architecture import MAX_M
from rtl.pattern import DENSE, NmPattern

__all__ = ["packed_groups"]


def packed_groups(problem: Problem) -> list[Problem]:
    """The packed form of a dense problem whose B is the weight of ``batch`` groups, if it has one.

    Groups have 1, 2, 4 or 8 channels; 16 of all channels make a GEMM, the last padded with zeros.
    """
    channels = ceil_div(problem.k, problem.taps)
    if problem.batch == 1 or problem.pattern != DENSE or channels not in (1, 2, 4, 8):
        return []
    groups = min(MAX_M // channels, problem.batch)
    return [replace(
        problem, q=problem.q * groups, k=problem.taps * MAX_M,
        batch=ceil_div(problem.batch, groups), pattern=NmPattern(channels, MAX_M),
    )]
