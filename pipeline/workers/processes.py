"""Processes of our own that compute: started so that Ctrl-C of a terminal leaves them out, ended with their parent."""

from __future__ import annotations

import ast
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from pipeline.errors import RunError, UserError, one_line
from pipeline.threads import sleep_while_waiting
from pipeline.workers.execution import OWN_PROCESSES

Result = TypeVar("Result")


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes; the block ends after they have ended, killed where it is broken off by no mere error."""
    others = set(multiprocessing.active_children())
    prepare_to_start()
    with _semaphores():
        pool = _Pool(workers, multiprocessing.get_context("spawn"), _begin)
    try:
        yield pool
    except Exception:
        raise
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _semaphores() -> Iterator[None]:
    """A block that makes what processes talk by; RunError where the system has no place for it."""
    try:
        yield
    except (OSError, ImportError, NotImplementedError) as error:
        raise RunError(
            f"worker processes cannot start ({one_line(error)}): they need a writable /dev/shm with free space;"
            " give --scheduler threads"
        ) from error


class _Pool(ProcessPoolExecutor):
    def submit(self, function: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:  # noqa: ANN401
        with no_interrupt():  # it starts processes
            return super().submit(function, *args, **kwargs)


def _begin() -> None:
    """Prepare a worker; torch is not imported yet."""
    sleep_while_waiting()
    # Also at a parent that died before: what the thread waits for is then there already.
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


@contextmanager
def no_interrupt() -> Iterator[None]:
    """A block whose threads and processes never get SIGINT: a terminal sends it to all, and the driver ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_to_start() -> None:
    """Check that processes can be started here, and start the one that frees what killed ones held, without a word."""
    name = "PYTHONWARNINGS"
    before = os.environ.get(name)
    os.environ[name] = ",".join(filter(None, (before, "ignore:resource_tracker")))
    try:
        resource_tracker.ensure_running()
        with _semaphores():
            multiprocessing.get_context("spawn").Lock()
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def refuse_unguarded_script(scheduler: str) -> None:
    """UserError where this is called by lines of a script that each worker process would run again as it starts."""
    if scheduler not in OWN_PROCESSES:
        return
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(1)  # such a process, by lines that were not recognised: it must change nothing
    if (frame := _main_frame()) is None:
        return
    file = Path(frame.f_code.co_filename)
    try:
        statements = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):  # no file of Python
        return
    called = [one for one in statements if one.lineno <= frame.f_lineno <= (one.end_lineno or one.lineno)]
    if any(isinstance(node, ast.Name) and node.id == "__name__" for one in called for node in ast.walk(one)):
        return
    raise UserError(
        f"{file}, line {frame.f_lineno}: worker processes run a script again as they start:"
        " put its calls below `if __name__ == '__main__':`, or take the scheduler threads"
    )


def _main_frame() -> FrameType | None:
    """The frame of the script that was started, if it is a file and on the stack."""
    main = sys.modules["__main__"]
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals is vars(main) and frame.f_code.co_name == "<module>":
            return frame if getattr(main, "__file__", None) else None
        frame = frame.f_back
    return None
