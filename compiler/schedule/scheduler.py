"""The schedule of a whole training step: tilings, order, overlap of neighbours, updates.

GEMMs take the array one after the other. What the scheduler decides for the network as a whole:

* **Order.** WU of a layer after its BP, before it, or after all BP. Neighbours that do not depend
  on each other overlap: the first loads of one run behind the other's computation, and so do its
  last results.
* **Updates.** At the end of the step, or *deferred*: behind the FF of the next step, each before
  the FF that reads its weights. A step that a non-finite gradient spoils is skipped either way:
  all gradients are known before the first update.
* **Pruning.** *Pre-generated*: updates prune what they write, and FF and BP read packed weights; or
  *inline*: SORE packs the weights ahead of each GEMM that reads them.

All combinations are costed and the best is kept. Work of the host takes no cycles here: it is
listed with its traffic. That of sampling also counts in the memory time of the WU that follows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple

from compiler.ceiling import ceil_div
from compiler.chip.optimisers import Optimiser, Sgd
from compiler.ir import Gemm, HostTask, Step, Task, Update
from compiler.schedule.mapper import Dataflow, Mapped, best_tiling
from compiler.schedule.packing import packed_groups
from compiler.schedule.problem import Problem
from compiler.schedule.target import Target
from rtl.chunk import LANES, ChunkFormat
from rtl.pattern import DENSE

__all__ = ["Options", "Placed", "Schedule", "map_gemm", "problem_of", "schedule"]

Order = Literal["bp-first", "wu-first", "wu-last"]
Updates = Literal["deferred", "end"]
Pruning = Literal["pregenerated", "inline"]
_ORDERS: tuple[Order, ...] = ("bp-first", "wu-first", "wu-last")
_UPDATES: tuple[Updates, ...] = ("deferred", "end")
_PRUNINGS: tuple[Pruning, ...] = ("pregenerated", "inline")


@dataclass(frozen=True)
class Options:
    """What is left to the scheduler (``auto``) or fixed.

    Parameters
    ----------
    dataflow: of every GEMM.
    pruning: once, in the update (``pregenerated``), or ahead of each GEMM (``inline``).
    order, updates: see the module.
    overlap: neighbours overlap where they may.
    optimiser: what an update costs.
    """

    dataflow: Dataflow = "auto"
    pruning: Pruning | Literal["auto"] = "auto"
    order: Order | Literal["auto"] = "auto"
    updates: Updates | Literal["auto"] = "auto"
    overlap: bool = True
    optimiser: Optimiser = field(default_factory=lambda: Sgd(0.1, 0.9, 5e-4))


class Use(NamedTuple):
    """Cycles that a task keeps the units beside the array busy."""

    vector: int = 0
    memory: int = 0
    load: int = 0
    store: int = 0


IDLE = Use()


@dataclass(frozen=True)
class Placed:
    """A task in the schedule.

    ``start``, ``cycles``: when it has the array (a GEMM), the vector engine (an update), or nothing
    of the accelerator (the host: 0 cycles). ``hidden``: cycles of its loads and stores that run
    behind a neighbour. ``use``: cycles of each of the other units.
    """

    index: int
    task: Task
    start: int
    cycles: int
    mapped: Mapped | None = None
    hidden: int = 0
    use: Use = IDLE
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


def problem_of(gemm: Gemm, pruning: str = "pregenerated") -> Problem:
    """What the mapper needs of a GEMM."""
    weights = gemm.b == gemm.weight and gemm.pattern != DENSE
    return Problem(
        gemm.p, gemm.q, gemm.k, gemm.batch, gemm.taps, gemm.pattern, gemm.vector_ops,
        gemm.epilogue_words, gemm.result_bytes, inline=weights and pruning == "inline",
        sampled=gemm.samples,
    )


def map_gemm(target: Target, gemm: Gemm, options: Options) -> Mapped:
    """The best tiling of a GEMM, or of the same with its groups packed, if that is better."""
    forms = [problem_of(gemm, options.pruning)]
    if gemm.b == gemm.weight:
        forms += packed_groups(forms[0])
    found = [best_tiling(target, form, options.dataflow) for form in forms]
    return min(found, key=lambda one: one.tiling.cost.cycles)


def schedule(target: Target, step: Step, options: Options | None = None) -> Schedule:
    """The best schedule of ``step`` within ``options``.

    Raises :class:`compiler.schedule.mapper.Infeasible` for a GEMM that no tiling fits.
    """
    options = options or Options()
    found = []
    for pruning in _PRUNINGS if options.pruning == "auto" else (options.pruning,):
        fixed = replace(options, pruning=pruning)
        mapped = {index: map_gemm(target, gemm, fixed) for index, gemm in step.gemms()}
        for order in _ORDERS if options.order == "auto" else (options.order,):
            for updates in _UPDATES if options.updates == "auto" else (options.updates,):
                found.append(_place(target, step, replace(fixed, order=order, updates=updates),
                                    mapped))
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
    busy = _total(one.use for one in placed)
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
        use = Use(cost.vector, cost.memory, cost.load, cost.store)
        placed.append(Placed(index, task, time, cycles, mapped[index], behind, use,
                             cost.dram_bytes))
        time += cycles
        busy = _total((busy, use))
    if not forward_done:
        time = max(time, *busy)
    if updates and not deferred:
        placed += _updates(target, updates, options, time)
        time = max(time, placed[-1].start + placed[-1].cycles)
    return Schedule(target, step, options, tuple(placed), time)


def _updates(
    target: Target, updates: Sequence[tuple[int, Update]], options: Options, start: int
) -> Iterator[Placed]:
    """The optimiser on one parameter after the other."""
    optimiser, time = options.optimiser, start
    pregenerated = options.pruning != "inline"
    for index, update in updates:
        lines = ceil_div(update.elements, target.vector_lanes)
        packed = {pattern for _, pattern in update.packed} if pregenerated else set()
        vector = lines * (optimiser.vector_ops + len(packed))
        read = update.elements * 4 * (2 + optimiser.states)  # gradient, weight, state
        half = update.half or (update.packed and not pregenerated)
        written = update.elements * (4 * (1 + optimiser.states) + (2 if half else 0))
        if pregenerated:
            written += sum(round(update.elements * 2 * ChunkFormat(pattern).words / LANES)
                           for _, pattern in update.packed)
        memory = round((read + written) / target.dram_bytes)
        use = Use(vector, memory, round(read / target.load_bytes),
                  round(written / target.store_bytes))
        yield Placed(index, update, time, max(use), None, 0, use, read + written)
        time += max(use)


def _total(uses: Iterable[Use]) -> Use:
    return Use(*map(sum, zip(*uses, strict=True)))


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
