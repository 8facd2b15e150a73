"""One function over many jobs: here, on processes of this machine, or on a Dask cluster.

What all jobs share is sent to each worker once. Results come back in the order of the jobs,
whoever ran them.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from rtl.errors import ParameterError

__all__ = ["Progress", "available_cores", "fan_out", "require_workers"]

Shared = TypeVar("Shared")
Job = TypeVar("Job")
Made = TypeVar("Made")

Progress = Callable[[int, int], None]
"""``progress(done, total)``: jobs, after each that ends."""

_ANSWER_SECONDS = 10
"""How long a scheduler elsewhere may take to answer and to have a worker."""


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fan_out(
    function: Callable[[Shared, Job], Made], shared: Shared, jobs: Sequence[Job], *,
    workers: int | None = None, cluster: str | None = None, progress: Progress | None = None,
) -> list[Made]:
    """``function(shared, job)`` of every job.

    Parameters
    ----------
    function: of a module, so that workers can import it. Bad input is for the caller to refuse
        before: a :class:`ParameterError` does not travel between processes.
    workers: processes; by default one a core, with one nothing is started.
    cluster: None for processes of this machine, ``dask`` for a Dask cluster on this machine that
        lasts as long as the call, ``tcp://HOST:PORT`` for the scheduler of one that runs already,
        on machines that have nmsat too.
    progress: is told after each job.

    Raises :class:`ParameterError` for workers or a cluster that cannot be had.
    """
    require_workers(workers, cluster)
    told = progress or (lambda done, total: None)
    if cluster is not None:
        return _on_dask(function, shared, jobs, workers, cluster, told)
    count = min(workers or available_cores(), len(jobs))
    if count > 1:
        return _on_processes(function, shared, jobs, count, told)
    made = []
    for job in jobs:
        made.append(function(shared, job))
        told(len(made), len(jobs))
    return made


def require_workers(workers: int | None, cluster: str | None) -> None:
    """Raise :class:`ParameterError` for a choice of workers that makes no sense."""
    if workers is not None and workers < 1:
        raise ParameterError("workers", workers, "must be at least 1", 1)
    if cluster not in (None, "dask"):
        if not cluster.startswith("tcp://"):
            raise ParameterError("cluster", cluster, "must be dask or tcp://HOST:PORT", "dask")
        if workers is not None:
            raise ParameterError("workers", workers, f"cannot be chosen: {cluster} has its own")


# Processes.

_kept: tuple[Callable[[Any, Any], Any], Any]


def _keep(function: Callable[[Any, Any], Any], shared: object) -> None:
    """Run once in each worker."""
    global _kept
    _kept = function, shared
    # An interrupt is the parent's business: it cancels what has not begun.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(job: object) -> object:
    function, shared = _kept
    return function(shared, job)


def _on_processes(
    function: Callable[[Any, Any], Any], shared: object, jobs: Sequence[Any], count: int,
    told: Progress,
) -> list[Any]:
    # Not forked: the parent may have PyTorch with its threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, _keep, (function, shared))
    try:
        futures = [pool.submit(_run, job) for job in jobs]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()  # a failure ends the wait at once
            told(done, len(jobs))
        return [future.result() for future in futures]
    except BrokenProcessPool as failure:
        raise ParameterError(
            "workers", count, "a worker process ended too early: out of memory, or a script that "
            "calls this outside its `if __name__ == \"__main__\":`", 1) from failure
    finally:
        pool.shutdown(cancel_futures=True)


# Dask.


def _on_dask(
    function: Callable[[Any, Any], Any], shared: object, jobs: Sequence[Any],
    workers: int | None, cluster: str, told: Progress,
) -> list[Any]:
    try:
        distributed = importlib.import_module("distributed")
    except ImportError:
        raise ParameterError("cluster", cluster, "needs the package distributed; "
                             "pip install distributed") from None
    if cluster != "dask":
        with _client(distributed, cluster) as client:
            return _with_client(distributed, client, function, shared, jobs, told)
    with (
        TemporaryDirectory(prefix="nmsat-") as scratch,
        distributed.LocalCluster(
            n_workers=min(workers or available_cores(), len(jobs)), threads_per_worker=1,
            dashboard_address=":0", local_directory=scratch, memory_limit=0) as local,
        distributed.Client(local) as client,
    ):
        return _with_client(distributed, client, function, shared, jobs, told)


def _client(distributed: Any, address: str) -> Any:
    """A connection to a scheduler that has workers."""
    try:
        client = distributed.Client(address, timeout=_ANSWER_SECONDS)
    except (OSError, ValueError) as failure:
        raise ParameterError("cluster", address, f"no scheduler answers ({failure})",
                             "dask") from None
    try:
        client.wait_for_workers(1, timeout=_ANSWER_SECONDS)
    except TimeoutError:
        client.close()
        raise ParameterError("cluster", address, "its scheduler has no workers", "dask") from None
    return client


def _with_client(
    distributed: Any, client: Any, function: Callable[[Any, Any], Any], shared: object,
    jobs: Sequence[Any], told: Progress,
) -> list[Any]:
    sent = client.scatter([shared], broadcast=True)[0]  # a list, or Dask would scatter its parts
    # Not pure: Dask would hash what it is given to look for the same job.
    futures = [client.submit(function, sent, job, pure=False) for job in jobs]
    for done, future in enumerate(distributed.as_completed(futures), 1):
        future.result()
        told(done, len(jobs))
    return list(client.gather(futures))
