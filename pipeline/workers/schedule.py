"""Run one function over many tasks on a Dask scheduler, in this process, in others, or on a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import parent_process
from threading import current_thread
from typing import Any, TypeVar

from pipeline.errors import RunError
from pipeline.workers.execution import LOCAL, Execution

Result = TypeVar("Result")


def worker_name() -> str:
    """Who runs this: the address of a Dask worker, or else a process or a thread of the driver."""
    if "distributed" in sys.modules:
        from distributed import get_worker

        with suppress(ValueError):  # no task of a Dask worker
            return str(get_worker().address)
    if parent_process() is not None:
        return f"process {os.getpid()}"
    return f"thread {current_thread().name.rpartition('_')[2]}"


def run_tasks(
    function: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    execution: Execution,
    on_result: Callable[[Result], None],
    torch_threads: int = 1,
) -> None:
    """Call ``function(*task)`` for every task; `on_result` gets each result in this process as it arrives.

    function must be importable by the workers, and tasks and results small: they travel. torch_threads: torch's in each
    worker; one by default, since the workers are the parallelism and more threads in each would fight over the cores.
    An exception in a task or in `on_result` ends the run; RunError says that workers or a scheduler were lost.
    """
    call = partial(_call, function, torch_threads)
    with _torch_threads_kept():
        if execution.scheduler in LOCAL:
            _run_local(call, tasks, execution, on_result)
        else:
            # Imported here, because a run in threads does not need distributed, which takes long to import.
            from pipeline.workers.cluster import run_on_cluster

            run_on_cluster(call, tasks, execution, on_result)


def _call(function: Callable[..., Result], torch_threads: int, *task: object) -> Result:
    """``function(*task)`` in a worker with that many torch threads; `run_tasks` puts the caller's number back.

    Set at every task, since that number belongs to a thread and the threads of a pool come and go.
    """
    import torch

    torch.set_num_threads(torch_threads)
    return function(*task)


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """Restore this process's number of torch threads, which tasks that ran in it have changed."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run_local(
    call: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    execution: Execution,
    on_result: Callable[[Result], None],
) -> None:
    from dask.base import compute
    from dask.callbacks import Callback
    from dask.delayed import delayed

    names = {f"task-{i}": task for i, task in enumerate(tasks)}
    delayed_call = delayed(call, pure=False)
    calls = [delayed_call(*task, dask_key_name=name) for name, task in names.items()]

    def finished(key: object, result: Result, *_: object) -> None:
        if key in names:
            on_result(result)

    workers = execution.workers or os.cpu_count() or 1
    try:
        with Callback(posttask=finished):
            # chunksize 1: a process takes one task at a time, not six.
            compute(*calls, scheduler=execution.scheduler, num_workers=workers, chunksize=1, optimize_graph=False)
    except BrokenProcessPool as error:
        raise RunError(
            "a worker process was killed, possibly out of memory: run the same command to continue,"
            " and needs less with fewer --workers"
        ) from error
