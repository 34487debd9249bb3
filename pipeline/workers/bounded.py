"""Calls into Dask that may hang, where a process dies at the wrong moment: they end in time, or the run does."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any, TypeVar

from pipeline.workers.processes import no_interrupt

T = TypeVar("T")
# Seconds in which Dask's clients and clusters close; what is left of them is killed.
_CLOSING = 10.0


def within(seconds: float, call: Callable[[], T], undo: Callable[[T], object] = lambda _: None) -> T:
    """What the call returns or raises, in a thread of its own; TimeoutError where it takes longer.

    undo: is called with what it returns after that. No process that it starts gets SIGINT.
    """
    future: Future[T] = Future()

    def work() -> None:
        with no_interrupt():
            try:
                result = call()
            except BaseException as error:
                with suppress(InvalidStateError):
                    future.set_exception(error)
                return
            try:
                future.set_result(result)
            except InvalidStateError:  # cancelled below
                undo(result)

    Thread(target=work, name="bounded", daemon=True).start()
    try:
        return future.result(timeout=seconds)
    finally:
        future.cancel()


@contextmanager
def closing(opened: Any) -> Iterator[None]:  # noqa: ANN401 - a client or a cluster of Dask
    """A block after which something of Dask is closed, also where it does not answer."""
    try:
        yield
    finally:
        with suppress(Exception):
            within(_CLOSING, opened.close)


@contextmanager
def children_ended() -> Iterator[None]:
    """A block after which no process is left that was started in it."""
    others = set(multiprocessing.active_children())
    try:
        yield
    finally:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
