"""The schedule of a whole training step: tilings, order, overlap of neighbours, updates.

GEMMs take the array one after the other. What the scheduler decides for the network as a whole:

* **Order.** WU of a layer after its BP, before it, or after all BP. Neighbours that do not depend
  on each other overlap: the first loads of one run behind the other's computation, and so do its
  last results.
* **Updates.** At the end of the step, or *deferred*: behind the FF of the next step, each before
  the FF that reads its weights. A step that a non-finite gradient spoils is skipped either way:
  all gradients are known before the first update.
* **Pre-generation.** Updates prune what they write, and FF and BP read packed weights; or pruning
  is done *inline*, each time weights are read.

All combinations are costed and the best is kept. Work of the host takes no cycles here: it is
listed with its traffic.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from compiler.ir import Gemm, HostTask, Step, Task, Update
from compiler.mapper import Dataflow, Mapped, best_tiling
from compiler.optimisers import Optimiser, Sgd
from compiler.packing import packed_groups
from compiler.target import Target
from compiler.tiling import Problem, ceil_div
from rtl.chunk import LANES, ChunkFormat
from rtl.pattern import DENSE

__all__ = ["Options", "Placed", "Schedule", "map_gemm", "problem_of", "schedule"]

Order = Literal["bp-first", "wu-first", "wu-last"]
Updates = Literal["deferred", "end"]


@dataclass(frozen=True)
class Options:
    """What is left to the scheduler (``auto``) or fixed.

    Parameters
    ----------
    dataflow: of every GEMM.
    pregenerate: prune once, in the update; otherwise whenever weights are read.
    order, updates: see the module.
    overlap: neighbours overlap where they may.
    optimiser: what an update costs.
    """

    dataflow: Dataflow = "auto"
    pregenerate: bool = True
    order: Order | Literal["auto"] = "auto"
    updates: Updates | Literal["auto"] = "auto"
    overlap: bool = True
    optimiser: Optimiser = field(default_factory=lambda: Sgd(0.1, 0.9, 5e-4))


@dataclass(frozen=True)
class Placed:
    """A task in the schedule.

    ``start``, ``cycles``: when it has the array (a GEMM), the vector engine (an update), or nothing
    of the accelerator (the host: 0 cycles). ``hidden``: cycles of its loads and stores that run
    behind a neighbour. ``vector``, ``memory``: cycles of the vector engine and of device memory.
    """

    index: int
    task: Task
    start: int
    cycles: int
    mapped: Mapped | None = None
    hidden: int = 0
    vector: int = 0
    memory: int = 0
    dram_bytes: int = 0


@dataclass(frozen=True)
class Schedule:
    """A step on a target: what runs when. ``cycles`` of the whole step."""

    target: Target
    step: Step
    options: Options
    placed: tuple[Placed, ...]
    cycles: int

    @cached_property
    def gemms(self) -> tuple[Placed, ...]:
        """The GEMMs, in order."""
        return tuple(one for one in self.placed if isinstance(one.task, Gemm))

    @cached_property
    def dram_bytes(self) -> int:
        """Traffic of the accelerator with device memory."""
        return sum(one.dram_bytes for one in self.placed)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates that the array executes."""
        return sum(one.mapped.tiling.problem.macs for one in self.gemms if one.mapped)

    @property
    def utilisation(self) -> float:
        """MACs executed over those that all USPEs could, in the whole step."""
        return self.macs / (self.cycles * self.target.architecture.pes)


def problem_of(gemm: Gemm, pregenerate: bool = True) -> Problem:
    """What the mapper needs of a GEMM."""
    weights = gemm.b == gemm.weight and gemm.pattern != DENSE
    return Problem(
        gemm.p, gemm.q, gemm.k, gemm.batch, gemm.taps, gemm.pattern, gemm.vector_ops,
        gemm.epilogue_words, gemm.result_bytes, inline=weights and not pregenerate,
    )


def map_gemm(target: Target, gemm: Gemm, options: Options) -> Mapped:
    """The best tiling of a GEMM, or of the same with its groups packed, if that is better."""
    forms = [problem_of(gemm, options.pregenerate)]
    if gemm.b == gemm.weight:
        forms += packed_groups(forms[0])
    found = [best_tiling(target, form, options.dataflow) for form in forms]
    return min(found, key=lambda one: one.tiling.cost.cycles)


def schedule(target: Target, step: Step, options: Options | None = None) -> Schedule:
    """The best schedule of ``step`` within ``options``.

    Raises :class:`compiler.mapper.Infeasible` for a GEMM that no tiling fits.
    """
    options = options or Options()
    mapped = {index: map_gemm(target, gemm, options) for index, gemm in step.gemms()}
    orders: Sequence[Order] = (
        ("bp-first", "wu-first", "wu-last") if options.order == "auto" else (options.order,))
    modes: Sequence[Updates] = (
        ("deferred", "end") if options.updates == "auto" else (options.updates,))
    found = (
        _place(target, step, replace(options, order=order, updates=mode), mapped)
        for order in orders for mode in modes
    )
    return min(found, key=lambda one: one.cycles)


def _place(
    target: Target, step: Step, options: Options, mapped: dict[int, Mapped]
) -> Schedule:
    """One order and one way to update, on a time axis."""
    updates = [(index, task) for index, task in enumerate(step.tasks) if isinstance(task, Update)]
    order = _ordered(step, options.order)
    placed: list[Placed] = []
    time, ready = 0, {}
    deferred = options.updates == "deferred"
    if deferred:
        for one in _updates(target, updates, options, 0):
            placed.append(one)
            ready[one.task.parameter] = one.start + one.cycles  # type: ignore[union-attr]
    hidden = _hidden(step, order, mapped) if options.overlap else {}
    forward_done = not deferred
    busy = [sum(one.vector for one in placed), sum(one.memory for one in placed)]
    for index in order:
        task = step.tasks[index]
        if isinstance(task, Update):
            continue
        backward = (isinstance(task, Gemm) and task.stage != "FF") or (
            isinstance(task, HostTask) and task.backward)
        if backward and not forward_done:
            # All updates run behind FF, which is as long as the busiest of its resources.
            time, forward_done = max(time, *busy), True
        if isinstance(task, HostTask):
            placed.append(Placed(index, task, time, 0))
            continue
        if task.weight is not None and task.stage == "FF":
            time = max(time, ready.get(task.weight, 0))
        cost = mapped[index].tiling.cost
        behind = hidden.get(index, 0)
        cycles = cost.cycles - behind
        placed.append(Placed(index, task, time, cycles, mapped[index], behind, cost.vector,
                             cost.memory, cost.dram_bytes))
        time += cycles
        busy = [busy[0] + cost.vector, busy[1] + cost.memory]
    if not forward_done:
        time = max(time, *busy)
    if not deferred:
        placed += _updates(target, updates, options, time)
        time = max([time, *(one.start + one.cycles for one in placed[-len(updates):])])
    return Schedule(target, step, options, tuple(placed), time)


def _updates(
    target: Target, updates: Sequence[tuple[int, Update]], options: Options, start: int
) -> Iterator[Placed]:
    """The optimiser on one parameter after the other."""
    optimiser, time = options.optimiser, start
    for index, update in updates:
        lines = ceil_div(update.elements, target.vector_lanes)
        packed = {pattern for _, pattern in update.packed} if options.pregenerate else set()
        vector = lines * (optimiser.vector_ops + len(packed))
        read = update.elements * 4 * (2 + optimiser.states)  # gradient, weight, state
        written = update.elements * (4 * (1 + optimiser.states)
                                     + 2 * (update.half or not options.pregenerate))
        if options.pregenerate:
            written += sum(round(update.elements * 2 * ChunkFormat(pattern).words / LANES)
                           for _, pattern in update.packed)
        memory = round((read + written) / target.dram_bytes)
        cycles = max(vector, memory, round(read / target.load_bytes),
                     round(written / target.store_bytes))
        yield Placed(index, update, time, cycles, None, 0, vector, memory, read + written)
        time += cycles


def _ordered(step: Step, order: str) -> list[int]:
    """Indices of the tasks in the order of execution."""
    indices = list(range(len(step.tasks)))
    if order == "wu-last":
        return sorted(indices, key=lambda index: _is_weight_update(step.tasks[index]))
    if order == "wu-first":
        ordered: list[int] = []
        for index in indices:
            place = len(ordered)
            if _is_weight_update(step.tasks[index]):
                layer = step.tasks[index].layer  # type: ignore[union-attr]
                while place and isinstance(before := step.tasks[ordered[place - 1]], Gemm) and (
                        before.stage == "BP" and before.layer == layer):
                    place -= 1
            ordered.insert(place, index)
        return ordered
    return indices


def _is_weight_update(task: Task) -> bool:
    return isinstance(task, Gemm) and task.stage == "WU"


def _hidden(step: Step, order: Sequence[int], mapped: dict[int, Mapped]) -> dict[int, int]:
    """Cycles of each GEMM that run behind its neighbours: first loads and last stores."""
    hidden: dict[int, int] = {}
    gemms = [index for index in order if index in mapped]
    for first, second in itertools.pairwise(gemms):
        if _depends(step, second, first):
            continue
        earlier, later = mapped[first].tiling.cost, mapped[second].tiling.cost
        hidden[second] = hidden.get(second, 0) + min(later.before, earlier.busy)
        hidden[first] = hidden.get(first, 0) + min(earlier.after, later.busy)
    return hidden


def _depends(step: Step, task: int, on: int) -> bool:
    """Whether ``task`` reads what ``on`` makes, directly or through work of the host."""
    seen, open_ = set(), list(step.tasks[task].needs)
    while open_:
        index = open_.pop()
        if index == on:
            return True
        if index not in seen and isinstance(step.tasks[index], HostTask):
            seen.add(index)
            open_ += step.tasks[index].needs
    return False
