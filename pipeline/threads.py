"""Work on images spread over the cores of this process: one image per thread, one torch thread in each.

The bits of a result then depend neither on the number of threads nor on the images computed at the same time: torch
splits a sum by its number of threads, and picks a convolution by the size of the batch.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Results that wait for their turn, per thread: enough that no thread waits for a slow neighbour.
_AHEAD = 4


def available_cores(root: Path = Path("/")) -> int:
    """How many cores this process may use: those it is bound to, and no more than its container's limit, rounded up.

    root: where the folders proc and sys lie.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *(math.ceil(limit) for limit in _container_limits(root))]))


def _container_limits(root: Path) -> Iterator[float]:
    """Cores that each control group of Linux above this process may use at most; both versions of groups."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    mounted = root / "sys/fs/cgroup"
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A container may see the groups of its host in the path, and have its own at the top: so all above count too.
        group = Path(*(part for part in path.split("/") if part not in ("", "..")))
        tops = ("cpu", controllers) if controllers else (".", "unified")
        for above in (group, *group.parents):
            for top in tops:
                yield from _limit(mounted / top / above)


def _limit(group: Path) -> Iterator[float]:
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # not there, or no limit: "max" and -1
            quota, period = map(int, " ".join((group / file).read_text() for file in files).split())
            if quota > 0 and period > 0:
                yield quota / period


class Cores:
    """The threads that compute in this process; as many as there are cores, unless `use` says otherwise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self.count = available_cores()

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
