"""Run one function over many tasks on a Dask scheduler, in this process, in others, or on a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import parent_process
from typing import Any, TypeVar

from pipeline.errors import RunError, UserError, one_line
from pipeline.memory import keep_memory
from pipeline.threads import CORES, torch_threads
from pipeline.workers.execution import LOCAL, OWN_PROCESSES, Execution
from pipeline.workers.processes import process_pool, refuse_unguarded_script

Result = TypeVar("Result")
T = TypeVar("T")


def worker_name() -> str:
    """Who runs this: the address of a Dask worker, or else a process, or the threads of the driver."""
    if (address := _dask_worker(lambda worker: worker.address)) is not None:
        return str(address)
    return "threads" if parent_process() is None else f"process {os.getpid()}"


def run_tasks(
    function: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    execution: Execution,
    on_result: Callable[[Result], None],
    threads: int | None = None,
) -> None:
    """Call ``function(*task)`` for every task; `on_result` gets each result in this process as it arrives.

    function must be importable by the workers, and tasks and results small: they travel. Torch gets one thread in a
    task, and `CORES` of the worker's process so many: `threads`, if one task at a time is to run on each worker, or by
    default its share of all (docs/architecture.md). An exception in a task or in `on_result` ends the run; RunError
    says that workers or a scheduler were lost.
    """
    refuse_unguarded_script(execution.scheduler)
    scheduler, workers = execution.scheduler, execution.workers or CORES.count
    at_once = workers
    if scheduler in ("processes", "cluster"):
        # Processes do not share their images: with fewer tasks than workers each gets threads for several workers.
        at_once = min(workers, max(1, len(tasks)))
        threads = threads or -(-workers // at_once)
    elif scheduler == "threads" and threads is None:
        # One task more than threads that compute: while one writes, the threads have the images of others.
        at_once, threads = workers + 1, workers
    call = partial(_call, function, threads, scheduler in OWN_PROCESSES)
    # Tasks that run in this process change both numbers.
    with ExitStack() as kept:
        kept.enter_context(torch_threads())
        kept.callback(CORES.use, CORES.count)
        if scheduler in LOCAL:
            _run_local(call, tasks, replace(execution, workers=at_once), on_result)
        else:
            # Imported here, because a run in threads does not need distributed, which takes long to import.
            with _dask_settings():
                from pipeline.workers.cluster import run_on_cluster

            own = replace(execution, workers=at_once) if scheduler == "cluster" else execution
            run_on_cluster(call, tasks, own, on_result)


def _call(function: Callable[..., Result], threads: int | None, started: bool, *task: object) -> Result:
    """``function(*task)`` in a worker whose process computes in so many threads; None: as many as Dask runs tasks in.

    started: whether the process is one that we started. The number of torch's threads is set at every task, since it
    belongs to a thread, and the threads of a pool come and go; `run_tasks` puts the caller's back.
    """
    import torch

    if started:
        keep_memory()
    torch.set_num_threads(1)
    CORES.use(threads or _dask_worker(lambda worker: worker.state.nthreads) or CORES.count)
    return function(*task)


def _dask_worker(ask: Callable[[Any], T]) -> T | None:
    """What the Dask worker answers that runs this, or None if none does."""
    if "distributed" in sys.modules:
        from distributed import get_worker

        with suppress(ValueError):  # no task of a Dask worker
            return ask(get_worker())
    return None


@contextmanager
def _dask_settings() -> Iterator[None]:
    """A block that imports Dask, which reads its settings then; UserError where it cannot use them."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # whatever its parsers raise
        raise UserError(f"Dask cannot use its settings ({one_line(error)}): correct that file or variable") from error


def _run_local(
    call: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    execution: Execution,
    on_result: Callable[[Result], None],
) -> None:
    with _dask_settings():
        from dask.base import compute
        from dask.callbacks import Callback
        from dask.delayed import delayed

    names = {f"task-{i}": task for i, task in enumerate(tasks)}
    delayed_call = delayed(call, pure=False)
    calls = [delayed_call(*task, dask_key_name=name) for name, task in names.items()]

    def finished(key: object, result: Result, *_: object) -> None:
        if key in names:
            on_result(result)

    options: dict[str, Any] = {
        "scheduler": execution.scheduler,
        "num_workers": execution.workers,
        "optimize_graph": False,
    }
    try:
        with Callback(posttask=finished), ExitStack() as stack:
            if execution.scheduler == "processes":
                # chunksize 1: a process takes one task at a time, not six.
                options |= {"chunksize": 1, "pool": stack.enter_context(process_pool(execution.workers or CORES.count))}
            compute(*calls, **options)
    except BrokenProcessPool as error:
        raise RunError(
            "a worker process was killed, possibly out of memory: run the same command to continue,"
            " and needs less with fewer --workers"
        ) from error
