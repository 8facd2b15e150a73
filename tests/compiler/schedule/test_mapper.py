"""The mapper: nothing in its space is better, nothing is below its bound, errors say what helps."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tiling import MACHINES, PATTERNS, variants

from compiler.schedule.mapper import CLOSE, Infeasible, best_tiling, lower_bound, tilings
from compiler.schedule.packing import packed_groups
from compiler.schedule.problem import Problem
from compiler.schedule.target import Target
from rtl.architecture import PRESETS, Architecture
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern

machines = st.sampled_from(MACHINES)
problems = st.builds(
    Problem, p=st.integers(1, 5000), q=st.integers(1, 600), k=st.integers(1, 5000),
    batch=st.sampled_from((1, 1, 3)), taps=st.sampled_from((1, 1, 9)),
    pattern=st.sampled_from(PATTERNS), vector_ops=st.integers(1, 3),
    epilogue_words=st.integers(0, 1), result_bytes=st.sampled_from((2, 4)),
)
PAPER = Target.of(PRESETS["paper"])
@given(machines, problems)
def test_no_tiling_of_the_space_is_better_than_the_one_found(
    machine: Architecture, problem: Problem
) -> None:
    target = Target.of(machine)
    mapped = best_tiling(target, problem)
    cycles = mapped.tiling.cost.cycles
    assert cycles >= mapped.bound
    others = [tiling.cost.cycles for variant in variants(target, problem)
              for tiling in tilings(variant)]
    assert others
    assert cycles <= min(others) * (1 + CLOSE) ** 2
@given(machines, problems)
def test_one_dataflow_is_never_better_than_the_choice(
    machine: Architecture, problem: Problem
) -> None:
    target = Target.of(machine)
    best = best_tiling(target, problem).tiling.cost.cycles
    for dataflow in ("ws", "os"):
        only = best_tiling(target, problem, dataflow)
        assert only.tiling.dataflow == dataflow
        assert only.tiling.cost.cycles >= best / (1 + CLOSE) ** 2
@given(problems)
def test_the_bound_does_not_exceed_what_the_resources_need(problem: Problem) -> None:
    bound = lower_bound(PAPER, problem)
    assert bound <= best_tiling(PAPER, problem).tiling.cost.cycles
    assert bound >= problem.macs // PAPER.architecture.pes


def test_large_layers_keep_the_array_busy() -> None:
    """The layers that make up most of the paper's networks, dense and 2:8."""
    sizes = {"3x3, 64": (512 * 3136, 64, 576, 9), "3x3, 512": (512 * 49, 512, 4608, 9),
             "1x1, 1024": (256 * 196, 256, 1024, 1)}
    for p, q, k, taps in sizes.values():
        for pattern in (DENSE, NmPattern(2, 8)):
            mapped = best_tiling(PAPER, Problem(p, q, k, taps=taps, pattern=pattern))
            assert mapped.gap < 0.005
            assert mapped.tiling.overlaps


def test_many_small_products_share_tiles_in_pairs() -> None:
    """Attention: 65 x 65 x 64 a head takes nine units of the array, not twelve."""
    heads = Problem(65, 65, 64, batch=4096)
    mapped = best_tiling(PAPER, heads)
    assert mapped.tiling.paired
    assert mapped.tiling.tiles == 4096 * 9 // 4


def test_a_depthwise_convolution_runs_as_one_of_sixteen() -> None:
    depthwise = Problem(100_352, 1, 9, batch=256, taps=9)
    (packed,) = packed_groups(depthwise)
    assert packed.pattern == NmPattern(1, 16)
    assert packed.macs == depthwise.macs
    plain, better = (best_tiling(PAPER, one).tiling.cost.cycles for one in (depthwise, packed))
    assert better < plain / 5


@pytest.mark.parametrize(("channels", "groups"), [(3, 8), (16, 4), (4, 1)])
def test_groups_that_do_not_fill_sixteen_channels_evenly_stay_as_they_are(
    channels: int, groups: int
) -> None:
    assert packed_groups(Problem(64, channels, 9 * channels, batch=groups, taps=9)) == []


def test_a_leftover_group_is_padded() -> None:
    (packed,) = packed_groups(Problem(64, 4, 36, batch=6, taps=9))
    assert (packed.batch, packed.q, packed.k) == (2, 16, 144)


def test_infeasible_names_resource_demand_bound_and_what_would_help() -> None:
    small = PRESETS["tiny"].model_copy(update={"n2s_words": 8})
    with pytest.raises(Infeasible, match=(
        r"buffer n2s_words and there are 8\.0; would fix it: n2s_words=\d+ in the architecture "
        r"or dataflow auto"
    )) as caught:
        best_tiling(Target.of(small), Problem(64, 64, 64, pattern=NmPattern(4, 8)), "ws")
    assert caught.value.demand > caught.value.bound == 8
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.levers) == (str(caught.value), caught.value.levers)


def test_an_unknown_dataflow_is_refused() -> None:
    with pytest.raises(ParameterError, match="dataflow='is': must be auto, ws or os"):
        best_tiling(PAPER, Problem(1, 1, 1), "is")


def test_unknown_paths_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"paths='bult': must be one of wide, built; .*"
                                             "built"):
        Target.of(PRESETS["paper"], "bult")
