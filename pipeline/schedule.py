"""Run one function over many blocks on a Dask scheduler, in this process, in others, or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from pipeline.errors import RunError, UserError

Result = TypeVar("Result")
SCHEDULERS = ("threads", "processes", "cluster", "cuda")


def check_scheduler(scheduler: str) -> str:
    """The scheduler's name or tcp:// address as it is; anything else raises UserError."""
    if scheduler not in SCHEDULERS and not scheduler.startswith(("tcp://", "tls://")):
        raise UserError(f"unknown scheduler {scheduler!r}: give {', '.join(SCHEDULERS)} or tcp://HOST:PORT")
    return scheduler


def run_blocks(
    function: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    scheduler: str,
    workers: int | None,
    on_result: Callable[[Result], None],
) -> None:
    """Call ``function(*task)`` for every task; `on_result` gets each result in this process as it arrives.

    function must be importable by the workers, and tasks and results small: they travel. workers: None takes a
    worker a core. An exception in a task or in `on_result` ends the run.
    """
    if scheduler in ("threads", "processes"):
        _run_local(function, tasks, scheduler, workers or os.cpu_count() or 1, on_result)
    else:
        _run_distributed(function, tasks, scheduler, workers, on_result)


def _run_local(
    function: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    scheduler: str,
    workers: int,
    on_result: Callable[[Result], None],
) -> None:
    from dask.base import compute
    from dask.callbacks import Callback
    from dask.delayed import delayed

    names = {f"block-{i}": task for i, task in enumerate(tasks)}
    blocks = [delayed(function, pure=False)(*task, dask_key_name=name) for name, task in names.items()]

    def finished(key: object, result: Result, *_: object) -> None:
        if key in names:
            on_result(result)

    try:
        with Callback(posttask=finished):
            # chunksize 1: a process takes one block at a time, not six.
            compute(*blocks, scheduler=scheduler, num_workers=workers, chunksize=1, optimize_graph=False)
    except BrokenProcessPool as error:
        raise RunError(
            "a worker process was killed, perhaps for want of memory: the same command goes on where it ended,"
            " and needs less with fewer --workers"
        ) from error


def _run_distributed(
    function: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    scheduler: str,
    workers: int | None,
    on_result: Callable[[Result], None],
) -> None:
    from distributed import KilledWorker, as_completed

    with _client(scheduler, workers) as client:
        try:
            client.wait_for_workers(1, timeout=60)
        except TimeoutError as error:
            raise UserError(f"the cluster at {scheduler} has no worker: start one with `dask worker`") from error
        # A bounded window: the scheduler never holds more than it can soon hand out.
        window = 4 * max(1, sum(client.nthreads().values()))
        waiting = iter(tasks)

        def submit(count: int) -> list[Any]:
            return [client.submit(function, *task, pure=False) for task in islice(waiting, count)]

        try:
            running = as_completed(submit(window), loop=client.loop)
            for future in running:
                on_result(future.result())
                for new in submit(1):
                    running.add(new)
        except (OSError, CancelledError, KilledWorker) as error:  # CancelledError: the scheduler is gone
            reason = " ".join(str(error).split())
            raise RunError(f"the run on {scheduler} broke off ({reason}): the same command goes on there") from error


@contextmanager
def _client(scheduler: str, workers: int | None) -> Iterator[Any]:
    # Never the default client: one that found no scheduler would stay it, and Dask work of the caller would hang.
    from distributed import Client, LocalCluster

    if scheduler.startswith(("tcp://", "tls://")):
        try:
            client = Client(scheduler, timeout=10, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:  # ValueError: an address without a port
            raise UserError(f"no Dask scheduler answers at {scheduler}: start one with `dask scheduler`") from error
        with client:
            yield client
        return
    if scheduler == "cuda":
        try:
            from dask_cuda import LocalCUDACluster
        except ImportError as error:
            raise UserError("--scheduler cuda needs dask-cuda: pip install 'cutswap[cuda]'") from error
        cluster = LocalCUDACluster(dashboard_address=None)
    else:
        cluster = LocalCluster(n_workers=workers or os.cpu_count() or 1, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster, set_as_default=False) as client:
        yield client
