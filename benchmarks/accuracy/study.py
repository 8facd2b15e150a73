"""Training runs of the study: one, or many on a pool of processes, each recorded as it ends."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from algorithms import LayerPlan, NmLayer, sparsify
from benchmarks.accuracy.catalogue import get_task
from benchmarks.accuracy.record import Outcome, Record, Spec, pack_bits
from benchmarks.accuracy.tasks import Task
from benchmarks.macs import LayerCost, layer_costs, step_macs
from benchmarks.progress import Reporter, Silent
from benchmarks.training import reproducible
from benchmarks.workload import Batch
from rtl.errors import ParameterError

__all__ = ["missing", "run_study", "train_run"]

_TEST_BATCH = 500


def train_run(spec: Spec, seed: int, data: Path | None = None, device: str = "cpu") -> Outcome:
    """Train ``spec`` from ``seed`` and test it; the same figures whichever process runs it.

    ``data`` is where CIFAR lies. Raises :class:`ParameterError` for what cannot be trained, a loss
    that is no longer finite included.
    """
    task, recipe = get_task(spec.task, data), spec.make_recipe()
    with reproducible(seed):
        model = task.model(spec.width, seed).to(device)
        handle = sparsify(model, spec.make_method(), spec.pattern,
                          gradient=spec.gradient, precision=spec.precision,
                          schedule=spec.make_schedule())
        optimiser = recipe.make_optimiser(model)
        handle.attach(optimiser)
        began = time.process_time()
        cost = _train(task, spec, seed, model, optimiser, device)
        seconds = time.process_time() - began
        hits = _test(model, task.test(seed), device)
    return Outcome(spec=spec, seed=seed, accuracy=100 * float(hits.mean()), cost=cost,
                   seconds=round(seconds, 2), examples=len(hits), correct=pack_bits(hits))


def _train(
    task: Task, spec: Spec, seed: int, model: nn.Module, optimiser: torch.optim.Optimizer,
    device: str,
) -> float:
    """Run all steps; returns the mean over them of executed over dense MACs."""
    recipe = spec.make_recipe()
    model.train()
    layers: list[NmLayer] = []
    costs: list[LayerCost] = []
    plans: list[LayerPlan] = []
    executed = ratio = 0.0
    loss = torch.zeros(())
    for step, drawn in enumerate(task.batches(seed, recipe.steps, recipe.batch)):
        inputs, targets = drawn.inputs.to(device), drawn.targets.to(device)
        if not layers:
            found = layer_costs(model, inputs)
            layers, costs = [layer for layer, _ in found], [cost for _, cost in found]
        present = [layer.nm_plan for layer in layers]
        if present != plans:  # a phase of the schedule has begun
            plans, ratio = present, step_macs(costs, present).ratio
        executed += ratio
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate_at(step)
        optimiser.zero_grad()
        loss = F.cross_entropy(model(inputs), targets, label_smoothing=recipe.smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    if not loss.isfinite():
        raise ParameterError("recipe", spec.recipe, f"training diverged ({spec.key}, seed {seed})")
    return executed / recipe.steps


def _test(model: nn.Module, test: Batch, device: str) -> npt.NDArray[np.bool_]:
    model.eval()
    with torch.no_grad():
        parts = [model(inputs.to(device)).argmax(1).cpu() == targets for inputs, targets in
                 zip(torch.split(test.inputs, _TEST_BATCH), torch.split(test.targets, _TEST_BATCH),
                     strict=True)]
    hits: npt.NDArray[np.bool_] = torch.cat(parts).numpy()
    return hits


def missing(specs: Iterable[Spec], seeds: Sequence[int], record: Record) -> list[tuple[Spec, int]]:
    """Runs that the record lacks, each once, those that share data next to each other."""
    runs = {(spec.key, seed): (spec, seed) for spec in specs for seed in seeds}
    left = [run for key, run in runs.items() if key not in record]
    return sorted(left, key=lambda run: (run[0].task, run[1], run[0].steps))


def run_study(
    specs: Iterable[Spec], seeds: Sequence[int], record: Record, *, jobs: int = 1,
    data: Path | None = None, device: str = "cpu", reporter: Reporter | None = None,
) -> int:
    """Train what the record lacks, ``jobs`` runs at a time; returns how many that were.

    Every run is in the file as soon as it ends: what interrupts the study loses those under way.
    """
    if jobs < 1:
        raise ParameterError("--jobs", jobs, "must be at least 1", 1)
    left = missing(specs, seeds, record)
    for name in {spec.task for spec, _ in left}:
        get_task(name, data)
    with (reporter or Silent()).task("training", len(left)) as advance:
        if min(jobs, len(left)) <= 1:
            for done, (spec, seed) in enumerate(left):
                advance(done, _words(spec, seed))
                record.add(train_run(spec, seed, data, device))
            return len(left)
        # Not forked: the parent may have PyTorch with its threads.
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _ignore_interrupts)
        try:
            futures = {pool.submit(train_run, *run, data, device): run for run in left}
            for done, future in enumerate(as_completed(futures), 1):
                record.add(future.result())
                advance(done, _words(*futures[future]))
        except BrokenProcessPool:
            rule = "a worker process ended too early, perhaps out of memory"
            raise ParameterError("--jobs", jobs, rule, 1) from None
        finally:
            pool.shutdown(cancel_futures=True)
    return len(left)


def _words(spec: Spec, seed: int) -> str:
    return f"{spec.task} {spec.method} {spec.pattern}, seed {seed}"


def _ignore_interrupts() -> None:
    """An interrupt is the parent's business: it cancels what has not begun."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
