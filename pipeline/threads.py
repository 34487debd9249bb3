"""Work on images spread over the cores of this process: one image per thread, one torch thread in each.

The bits of a result then depend neither on the number of threads nor on the images computed at the same time: torch
splits a sum by its number of threads, and picks a convolution by the size of the batch.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Results that wait for their turn, per thread: enough that no thread waits for a slow neighbour.
_AHEAD = 4


class Cores:
    """The threads that compute in this process; as many as there are cores, unless `use` says otherwise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self.count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def use(self, count: int) -> None:
        """Compute in so many threads from now on; work that is already submitted keeps its own."""
        with self._lock:
            if count != self.count:
                self.count, self._pool = count, None

    def submit(self, function: Callable[[Item], Result], item: Item) -> Future[Result]:
        """Compute ``function(item)`` in one of the threads."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.count, "compute", initializer=_one_torch_thread)
            return self._pool.submit(function, item)

    def spread(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """``function(item)`` of every item, in their order, a bounded number of them ahead of the caller.

        The function must not call `spread` itself. An exception of it is raised here, in place of the result.
        """
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self.submit(function, item))
                if len(waiting) >= _AHEAD * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


CORES = Cores()


def sleep_while_waiting() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user says otherwise; only before torch is imported.

    By default they spin, and where other programs keep the cores busy they take the time of the one that computes.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def torch_threads(count: int | None = None) -> Iterator[None]:
    """Let torch compute in so many threads inside the block, None: in as many as before; then put the number back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one_torch_thread() -> None:
    import torch  # here: reading ahead needs no torch

    torch.set_num_threads(1)
