"""Run one function over many blocks on a Dask scheduler, in this process, in others, or on a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import parent_process
from pathlib import Path
from threading import current_thread
from typing import Any, TypeVar

from pipeline.errors import RunError, UserError

Result = TypeVar("Result")
SCHEDULERS = ("threads", "processes", "cluster", "cuda")
_LOCAL = ("threads", "processes")


def check_scheduler(scheduler: str, report: Path | None = None) -> str:
    """The scheduler's name or tcp:// address as it is; UserError for another, or for one that makes no `report`."""
    if scheduler not in SCHEDULERS and not scheduler.startswith(("tcp://", "tls://")):
        raise UserError(f"unknown scheduler {scheduler!r}: give {', '.join(SCHEDULERS)} or tcp://HOST:PORT")
    if report is not None and scheduler in _LOCAL:
        others = ", ".join(name for name in SCHEDULERS if name not in _LOCAL)
        raise UserError(f"--report: --scheduler {scheduler} makes none; give {others} or tcp://HOST:PORT")
    return scheduler


def worker_name() -> str:
    """Who runs this: the address of a Dask worker, or else a process or a thread of the driver."""
    if "distributed" in sys.modules:
        from distributed import get_worker

        with suppress(ValueError):  # no task of a Dask worker
            return str(get_worker().address)
    if parent_process() is not None:
        return f"process {os.getpid()}"
    return f"thread {current_thread().name.rpartition('_')[2]}"


def run_blocks(
    function: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    scheduler: str,
    workers: int | None,
    on_result: Callable[[Result], None],
    report: Path | None = None,
) -> None:
    """Call ``function(*task)`` for every task; `on_result` gets each result in this process as it arrives.

    function must be importable by the workers, and tasks and results small: they travel. workers: None takes a
    worker a core; an address has its own. report: the file for Dask's performance report, of a cluster alone. An
    exception in a task or in `on_result` ends the run; RunError says that workers or a scheduler were lost.
    """
    if scheduler in _LOCAL:
        _run_local(function, tasks, scheduler, workers or os.cpu_count() or 1, on_result)
    else:
        # Imported here: a run in threads does without the time that importing distributed takes.
        from pipeline.dask_cluster import run_on_cluster

        run_on_cluster(function, tasks, scheduler, workers, on_result, report)


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
