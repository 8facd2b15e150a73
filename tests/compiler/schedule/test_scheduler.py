"""Schedules: order, overlap, updates and pruning of hand-made steps, counted by hand."""

from __future__ import annotations

import pytest

from compiler.chip.optimisers import AdamW, Sgd
from compiler.ir import Forward, Gemm, HostTask, Step, Task, Update, Value
from compiler.schedule.attribution import attribute, attribute_gemm
from compiler.schedule.scheduler import Options, Placed, Schedule, map_gemm, schedule
from compiler.schedule.target import Target
from rtl.architecture import PRESETS
from rtl.pattern import NmPattern

TARGET = Target.of(PRESETS["small"])
SPARSE = NmPattern(2, 8)


def a_step(layers: int = 3, pattern: NmPattern = SPARSE, frozen: bool = False) -> Step:
    """A chain of square linear layers with an operator of the host between: FF, BP, WU, updates."""
    tasks: list[Task] = []
    values: dict[str, Value] = {}
    forward: list[int] = []
    for layer in range(layers):
        name, weight = f"fc{layer}", f"fc{layer}.weight"
        values[weight] = Value(weight, (128, 128), 4, "parameter", not frozen)
        forward.append(len(tasks))
        before = (len(tasks) - 1,) if tasks else ()
        tasks.append(Gemm(name, "FF", 256, 128, 128, f"x{layer}", weight, f"y{layer}",
                          pattern=pattern, weight=weight, needs=before))
        tasks.append(HostTask(f"norm{layer}", "aten.batch_norm", False, 1000, False,
                              (len(tasks) - 1,)))
    gradients: dict[str, int] = {}
    last = len(tasks) - 1
    for layer in reversed(range(layers)):
        name, weight = f"fc{layer}", f"fc{layer}.weight"
        tasks.append(HostTask(f"norm{layer}", "aten.batch_norm", True, 1000, False, (last,)))
        grad = len(tasks) - 1
        if layer:
            tasks.append(Gemm(name, "BP", 256, 128, 128, f"grad(y{layer})", weight,
                              f"grad(x{layer})", pattern=pattern, weight=weight, needs=(grad,)))
            last = len(tasks) - 1
        if not frozen:
            gradients[weight] = len(tasks)
            tasks.append(Gemm(name, "WU", 128, 128, 256, f"x{layer}", f"grad(y{layer})",
                              f"grad({weight})", weight=weight, result_bytes=4, needs=(grad,)))
    tasks += [
        Update(weight, 128 * 128, (("BP", SPARSE), ("FF", SPARSE)) if pattern == SPARSE else (),
               pattern != SPARSE, (index,))
        for weight, index in sorted(gradients.items())
    ]
    return Step(Forward("Chain", values, (), ("x0",), (f"y{layers - 1}",), {}), tuple(tasks))


def fixed(**values: object) -> Options:
    """Everything decided."""
    return Options(**{"pruning": "pregenerated", "order": "bp-first", "updates": "end",
                      "overlap": False, **values})  # type: ignore[arg-type]


def test_gemms_take_the_array_one_after_the_other_and_cycles_add_up() -> None:
    made = schedule(TARGET, a_step(), fixed())
    time = 0
    for placed in made.gemms:
        assert placed.mapped is not None
        assert placed.start == time
        assert placed.cycles == placed.mapped.tiling.cost.cycles
        time += placed.cycles
    assert made.cycles == time + sum(p.cycles for p in made.placed if isinstance(p.task, Update))


def test_neighbours_overlap_only_where_the_second_does_not_need_the_first() -> None:
    step = a_step()
    made = schedule(TARGET, step, fixed(overlap=True))
    hidden = {placed.task.name: placed.hidden for placed in made.gemms}
    # FF depends on the FF before through the host; WU stands between BP and the next BP.
    assert hidden["fc0 FF"] == hidden["fc1 FF"] == 0
    assert hidden["fc2 WU"] > 0 and hidden["fc1 BP"] > 0
    alone = schedule(TARGET, step, fixed())
    assert made.cycles == alone.cycles - sum(hidden.values())
    for placed in made.gemms:
        assert placed.mapped is not None
        cost = placed.mapped.tiling.cost
        assert placed.hidden <= cost.before + cost.after


@pytest.mark.parametrize("order", ["bp-first", "wu-first", "wu-last"])
def test_every_order_runs_every_task_once_and_after_what_it_needs(order: str) -> None:
    step = a_step(4)
    made = schedule(TARGET, step, fixed(order=order))
    places = {placed.index: place for place, placed in enumerate(made.placed)}
    assert sorted(places) == list(range(len(step.tasks)))
    for index, task in enumerate(step.tasks):
        assert all(places[need] < places[index] for need in task.needs)


def test_deferred_updates_precede_the_forward_pass_that_reads_them() -> None:
    made = schedule(TARGET, a_step(), fixed(updates="deferred"))
    ends = {placed.task.parameter: placed.start + placed.cycles for placed in made.placed
            if isinstance(placed.task, Update)}
    for placed in made.gemms:
        if isinstance(placed.task, Gemm) and placed.task.stage == "FF":
            assert placed.start >= ends[str(placed.task.weight)]
    # The vector engine does both drains and updates: FF is at least as long.
    forward = [p for p in made.placed if isinstance(p.task, Update) or (
        isinstance(p.task, Gemm) and p.task.stage == "FF")]
    backward = min(p.start for p in made.gemms if p not in forward)
    assert backward >= sum(p.use.vector for p in forward)
    assert backward >= sum(p.use.memory for p in forward)


def test_the_choice_is_the_best_of_all_that_can_be_fixed() -> None:
    step = a_step(4)
    best = schedule(TARGET, step).cycles
    every = [schedule(TARGET, step, Options(order=order, updates=updates, pruning=pruning)).cycles
             for order in ("bp-first", "wu-first", "wu-last")
             for updates in ("deferred", "end") for pruning in ("pregenerated", "inline")]
    assert best == min(every)


def test_inline_pruning_packs_ahead_of_each_gemm_and_not_in_the_update() -> None:
    step = a_step()
    once, inline = (schedule(TARGET, step, fixed(pruning=pruning))
                    for pruning in ("pregenerated", "inline"))

    def of(made: Schedule, name: str) -> Placed:
        return next(p for p in made.placed if p.task.name == name)

    for name in ("fc1 FF", "fc1 BP"):
        assert of(inline, name).cycles > of(once, name).cycles
    assert of(inline, "fc1 WU").cycles == of(once, "fc1 WU").cycles
    update = "fc1.weight update"
    assert of(inline, update).use.vector < of(once, update).use.vector


def test_a_frozen_network_has_neither_weight_gradients_nor_updates() -> None:
    made = schedule(TARGET, a_step(frozen=True))
    assert {placed.task.stage for placed in made.gemms} == {"FF", "BP"}  # type: ignore[union-attr]
    assert attribute(made).updates == 0


def test_work_of_the_host_takes_no_cycles_but_is_there() -> None:
    made = schedule(TARGET, a_step())
    host = [placed for placed in made.placed if isinstance(placed.task, HostTask)]
    assert len(host) == 6 and all(placed.cycles == 0 for placed in host)


@pytest.mark.parametrize("optimiser", [Sgd(0.1, 0.0), Sgd(0.1, 0.9, 5e-4), AdamW(1e-3)])
def test_an_update_moves_what_the_optimiser_reads_and_writes(optimiser: Sgd | AdamW) -> None:
    step = a_step(1)
    made = schedule(TARGET, step, fixed(optimiser=optimiser))
    (update,) = [placed for placed in made.placed if isinstance(placed.task, Update)]
    elements, states = 128 * 128, optimiser.states
    # Gradient and weight and state in; weight and state out; two packed copies of 5/16 FP16.
    assert update.dram_bytes == elements * (4 * (2 + states) + 4 * (1 + states) + 2 * 2 * 5 / 16)
    assert update.use.vector == elements // 16 * (optimiser.vector_ops + 1)


def test_attribution_adds_up_to_the_cycles_of_the_schedule() -> None:
    for options in (Options(), fixed()):
        made = schedule(TARGET, a_step(), options)
        assert attribute(made).cycles == pytest.approx(made.cycles)
        for placed in made.gemms:
            assert attribute_gemm(placed).cycles == pytest.approx(placed.cycles)
        assert sum(attribute(made).shares().values()) == pytest.approx(1)


def test_gemms_with_equal_sizes_are_mapped_alike() -> None:
    first, second = (map_gemm(TARGET, gemm, fixed()) for _, gemm in list(a_step().gemms())[:2])
    assert first.tiling == second.tiling
