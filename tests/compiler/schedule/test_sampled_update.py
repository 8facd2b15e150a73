"""WU with a sampled dY: the pattern, the host's copy, its traffic, memory and plan words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from algorithms import plan_model
from compiler.frontend.backward import training_step
from compiler.frontend.export import capture
from compiler.ir import Gemm, HostTask, Step
from compiler.pipeline import Compiled, compile_model
from compiler.schedule.mapper import best_tiling, lower_bound
from compiler.schedule.memory_map import SAMPLES
from compiler.schedule.plan_words import GEMM, HOST, decode_plan, encode_plan, tiling_of
from compiler.schedule.problem import Problem
from compiler.schedule.pruning import prune
from compiler.schedule.scheduler import Options, problem_of, schedule
from compiler.schedule.target import PATHS, Target
from rtl.architecture import PRESETS
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern

SMALL = Target.of(PRESETS["small"])
HALF = NmPattern(1, 2)


def network() -> nn.Module:
    """Plain, strided, grouped and depthwise convolutions; the depthwise one stays dense."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
        nn.Conv2d(32, 32, 3, groups=2), nn.ReLU(), nn.Conv2d(32, 32, 1, groups=32), nn.Flatten(),
        nn.Linear(32, 24), nn.Linear(24, 10))


IMAGES = torch.zeros(3, 3, 9, 9)


def steps(gradient: str = "1:2") -> tuple[Step, Step]:
    """The step as it is, and pruned."""
    model = network()
    plain = training_step(capture(model, IMAGES))
    return plain, prune(plain, plan_model(model, "bdwp+wu", "2:8", None, gradient))


def compiled(gradient: str = "1:2") -> Compiled:
    """The network for the small array."""
    return compile_model(network(), IMAGES, arch="small", method="bdwp+wu", gradient=gradient)


@pytest.mark.parametrize("gradient", ["1:2", "2:4"])
def test_operand_b_of_wu_is_the_sampled_gradient(gradient: str) -> None:
    plain, pruned = steps(gradient)
    patterns = {}
    before = {task.name: task for task in plain.tasks}
    for _, gemm in pruned.gemms():
        old = before[gemm.name]
        assert isinstance(old, Gemm)
        assert (gemm.p, gemm.q, gemm.k, gemm.batch, gemm.a, gemm.b) == (
            old.p, old.q, old.k, old.batch, old.a, old.b)
        if gemm.stage == "WU":
            assert gemm.b.startswith("grad(") and gemm.k == 3 * {"0": 49, "2": 9}.get(gemm.layer, 1)
            patterns[gemm.layer] = str(gemm.pattern)
    assert patterns == {"0": "dense", "2": gradient, "4": gradient, "6": "dense", "8": gradient,
                        "9": "dense"}


def test_the_host_samples_as_soon_as_the_gradient_is_there() -> None:
    plain, pruned = steps()
    samples = [index for index, task in enumerate(pruned.tasks)
               if isinstance(task, HostTask) and task.operator == "sample 1:2"]
    assert [pruned.tasks[index].name for index in samples] == [
        f"{layer} WU sample" for layer in ("8", "4", "2")]
    for index in samples:
        backward, update = pruned.tasks[index + 1], None
        assert isinstance(backward, Gemm) and backward.stage == "BP"
        update = next(task for task in pruned.tasks if isinstance(task, Gemm)
                      and task.stage == "WU" and task.layer == backward.layer)
        assert update.needs[-1] == index and set(pruned.tasks[index].needs) < set(update.needs)
    # All else needs what it needed before, by name, and nothing that comes after it.
    known = {task.name: {plain.tasks[need].name for need in task.needs} for task in plain.tasks}
    for index, task in enumerate(pruned.tasks):
        assert all(need < index for need in task.needs)
        names = {pruned.tasks[need].name for need in task.needs} - {
            pruned.tasks[index].name for index in samples}
        if index not in samples:
            assert names == known[task.name]


def test_the_traffic_of_sampling_is_listed_and_takes_memory_time() -> None:
    """Dense read, packed written by the host; the array reads packed dY, ten words for sixteen."""
    _, pruned = steps()
    (update,) = (gemm for _, gemm in pruned.gemms() if gemm.name == "2 WU")
    (sample,) = (task for task in pruned.tasks if task.name == "2 WU sample")
    assert isinstance(sample, HostTask)
    groups, q = -(-27 // 2), 32
    dense = groups * 2 * q * 2
    assert sample.bytes == dense + dense * 10 // 16
    problem = problem_of(update)
    assert problem.sampled and problem.macs == groups * q * update.p
    assert problem.b_bytes == dense * 10 / 16 and problem.sampling_bytes == sample.bytes
    tiling = best_tiling(SMALL, problem).tiling
    free = replace(tiling, problem=replace(problem, sampled=False))
    more = round(sample.bytes / SMALL.dram_bytes)
    assert tiling.cost.memory - free.cost.memory in (more - 1, more, more + 1)
    assert (tiling.cost.read_bytes, tiling.cost.written_bytes, tiling.cost.before) == (
        free.cost.read_bytes, free.cost.written_bytes, free.cost.before)
    assert not tiling.swapped and lower_bound(SMALL, problem) <= tiling.cost.cycles


def test_a_memory_bound_update_is_slower_for_its_sample() -> None:
    slow = replace(SMALL, dram_bytes=1.0)
    problem = Problem(16, 16, 4096, pattern=HALF, result_bytes=4)
    free, sampled = (best_tiling(slow, one).tiling.cost
                     for one in (problem, replace(problem, sampled=True)))
    moved = replace(problem, sampled=True).sampling_bytes
    assert moved == 4096 * 16 * 2 * (1 + 10 / 16)
    assert sampled.cycles - free.cycles == pytest.approx(moved / slow.dram_bytes, rel=0.01)
    assert sampled.bound == "memory"


@pytest.mark.parametrize("gradient", ["1:2", "2:4"])
def test_the_program_says_which_operand_is_a_sample_and_where_it_lies(gradient: str) -> None:
    made = compiled(gradient)
    words = decode_plan(encode_plan(made.sparse, made.memory))
    gemms = [word for word in words if word.kind is GEMM]
    place = made.memory.start_of(SAMPLES) // 32
    for word, placed in zip(gemms, made.sparse.gemms, strict=True):
        assert isinstance(placed.task, Gemm) and placed.mapped is not None
        assert tiling_of(word, made.sparse.target) == placed.mapped.tiling
        assert word["sampled"] == placed.task.samples
        assert (word["b"] == place) == placed.task.samples
    assert sum(word["sampled"] for word in gemms) == 3
    moved = [word["bytes"] for word in words if word.kind is HOST]
    assert sorted(moved) == sorted(row.bytes for row in made.result.host)
    sizes = sorted(round(problem_of(gemm).b_bytes) for _, gemm in made.step.gemms()
                   if gemm.samples)
    region = next(one for one in made.memory.regions if one.name == SAMPLES)
    assert (region.kind, region.bytes) == ("gradients", sum(sizes[-2:]))


@pytest.mark.parametrize("paths", PATHS)
@pytest.mark.parametrize("order", ["bp-first", "wu-first", "wu-last"])
def test_every_order_is_legal_and_the_sum_of_its_causes(order: str, paths: str) -> None:
    _, pruned = steps()
    target = Target.of(PRESETS["small"], paths)
    made = schedule(target, pruned, Options(order=order))  # type: ignore[arg-type]
    place = {placed.index: number for number, placed in enumerate(made.placed)}
    for placed in made.placed:
        if not placed.task.name.endswith("update"):
            assert all(place[need] < place[placed.index] for need in placed.task.needs)
    assert sum(isinstance(one.task, HostTask) for one in made.placed) == sum(
        isinstance(task, HostTask) for task in pruned.tasks)


def test_macs_of_a_layer_are_a_quarter_a_quarter_and_a_half() -> None:
    """(0.25 + 0.25 + 0.5) / 3 where M and 2 divide all sizes."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    result = compile_model(model, torch.zeros(64, 64), arch="small", method="bdwp+wu").result
    macs = {(row.name, row.stage): row.macs / row.dense_macs for row in result.layers}
    assert [macs["1", stage] for stage in ("FF", "BP", "WU")] == [0.25, 0.25, 0.5]
    assert {macs[name, "WU"] for name in "02"} == {1.0}
    assert (result.gradient, result.label) == ("1:2", "bdwp+wu 2:8, dY 1:2")


def test_dense_gradients_give_bdwp() -> None:
    dense, bdwp = compiled("dense"), compile_model(network(), IMAGES, arch="small")
    assert dense.step == bdwp.step and dense.sparse.cycles == bdwp.sparse.cycles
    assert (dense.gradient, bdwp.gradient) == ("dense", "dense")
    assert all(gemm.pattern == DENSE for _, gemm in dense.step.gemms() if gemm.stage == "WU")


@pytest.mark.parametrize(("gradient", "message"), [
    ("3:4", r"^gradient='3:4': the array runs dense, or N:M with M in"),
    ("1:3", r"^gradient='1:3': the array runs"),
    ("half", r"^gradient='half': must be 'dense' or 'N:M'"),
])
def test_a_gradient_that_the_array_cannot_run_is_named(gradient: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        compiled(gradient)
