"""Run one function over many tasks on a Dask cluster: our own, or a running one at an address.

Every wait is bounded: a cluster without workers, a lost scheduler and a task that kills its workers end the run.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar
from uuid import uuid4

import cloudpickle
from distributed import Client, Future, KilledWorker, performance_report
from distributed.comm.core import CommClosedError
from distributed.utils import silence_logging_cmgr

from pipeline.errors import RunError, UserError, one_line
from pipeline.files import replacing
from pipeline.workers.clients import LOGGED, open_client
from pipeline.workers.execution import Execution

Result = TypeVar("Result")
# Futures per worker thread: so many that no worker waits for the driver, so few that the scheduler stays small.
WINDOW = 4
# Seconds that a cluster may be without workers, and a scheduler without an answer.
_PATIENCE = 60.0
_BETWEEN_COUNTS = 1.0


def run_on_cluster(
    function: Callable[..., Result],
    tasks: Sequence[tuple[Any, ...]],
    execution: Execution,
    on_result: Callable[[Result], None],
) -> None:
    """`pipeline.workers.schedule.run_tasks` for the schedulers "cluster", "cuda" and a tcp:// address."""
    scheduler = execution.scheduler

    def call(payload: bytes) -> Result:
        # Nested, so that it travels by value: the scheduler needs no package, and a worker without it can say so.
        called, task = pickle.loads(payload)
        result: Result = called(*task)
        return result

    try:
        with (
            silence_logging_cmgr(LOGGED),
            open_client(scheduler, execution.workers, _PATIENCE) as client,
            _performance_report(client, execution.dask_report),
        ):

            def submit(task: Sequence[object]) -> Future[Any]:
                payload = cloudpickle.dumps((function, task))
                return client.submit(call, payload, key=f"task-{uuid4().hex}", pure=False)

            for result in _results(client, submit, tasks):
                on_result(result)
    except ModuleNotFoundError as error:
        raise UserError(
            f"a worker of {scheduler} lacks the module {error.name}: start workers where cutswap is installed"
        ) from error
    except KilledWorker as error:
        lost = error.allowed_failures + 1
        raise _broken_off(scheduler, f"one task killed {lost} workers, possibly out of memory") from error
    except (CancelledError, CommClosedError) as error:
        raise _broken_off(scheduler, "the scheduler is gone") from error
    except OSError as error:
        raise _broken_off(scheduler, one_line(error)) from error


def _broken_off(scheduler: str, reason: str) -> RunError:
    return RunError(f"the run on {scheduler} stopped ({reason}): run the same command to continue, on any scheduler")


def _results(client: Client, submit: Callable[[Any], Future[Any]], tasks: Sequence[Any]) -> Iterator[Any]:
    """The result of every task as it arrives; the scheduler never knows more than a window of them."""
    waiting = iter(tasks)
    running: set[Future[Any]] = set()
    ended: SimpleQueue[Future[Any]] = SimpleQueue()
    window, counted = 0, float("-inf")
    while True:
        if time.monotonic() - counted > _BETWEEN_COUNTS:  # workers come and go
            window, counted = max(1, WINDOW * _threads(client)), time.monotonic()
        for task in islice(waiting, max(0, window - len(running))):
            future = submit(task)
            running.add(future)
            future.add_done_callback(ended.put)
        if not running:
            return
        future, result = _next_result(client, ended)
        running.discard(future)
        del future  # the last reference: the scheduler forgets the task
        yield result


def _next_result(client: Client, ended: SimpleQueue[Future[Any]]) -> tuple[Future[Any], Any]:
    while True:
        try:
            future = ended.get(timeout=_PATIENCE)
        except Empty:
            future = None
        if future is not None:
            try:
                return future, future.result(timeout=_PATIENCE)
            except TimeoutError:
                if future.status == "error":  # the task's own
                    raise
                ended.put(future)  # its result went with a worker and is computed again
            except UserError as error:
                raise UserError(f"a worker says: {error}") from error
        if not _threads(client):
            raise OSError(f"no worker was left for {_PATIENCE:.0f} s")


def _threads(client: Client) -> int:
    """Threads of all workers; CommClosedError where the scheduler does not answer."""
    try:
        if client.status == "running":  # else it would try for long to connect again
            return sum(client.nthreads(callback_timeout=_PATIENCE).values())
    except OSError as error:
        raise CommClosedError(str(error)) from error
    raise CommClosedError(client.status)


@contextmanager
def _performance_report(client: Client, file: Path | None) -> Iterator[None]:
    """Write Dask's performance report of what is done meanwhile to `file`, unless that fails or file is None."""
    if file is None:
        yield
        return

    def has_bokeh() -> bool:
        return find_spec("bokeh") is not None

    if not client.run_on_scheduler(has_bokeh):  # which draws the page
        raise UserError("--dask-report needs bokeh where the scheduler runs: pip install 'cutswap[report]'")
    with ExitStack() as stack:
        try:
            page = stack.enter_context(replacing(file))  # before hours of work, not after them
        except OSError as error:
            raise UserError(f"--dask-report {file} cannot be written ({error.strerror}): give another file") from error
        stack.enter_context(client.as_current())
        # "inline": the page can be read without a network.
        report = performance_report(filename=page.name, mode="inline")
        report.__enter__()
        yield
        report.__exit__(None, None, None)  # not after an exception: that page would say the run went well
