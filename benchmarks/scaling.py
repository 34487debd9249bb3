"""What Dask itself costs a run of a million images: `python benchmarks/scaling.py [BLOCKS] [WORKERS]`.

15,625 blocks go through a real LocalCluster by way of the function that stage 1 uses, with the computation replaced by
nothing, and some of them by a sleep. Scheduler and driver share this process, so its memory is that of both.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import psutil
from distributed import LocalCluster
from rich.console import Console
from rich.table import Table

from pipeline.schedule import run_blocks

SLEEP = 0.5
ROUNDS = 40


def nothing(job: tuple[object, ...], category: str, block: int) -> tuple[str, int]:
    """Take and give what a block of stage 1 takes and gives."""
    return category, block


def sleep(job: tuple[object, ...], category: str, block: int) -> tuple[str, int]:
    time.sleep(SLEEP)
    return category, block


def seconds(address: str, function: Callable[..., object], blocks: int, on_result: Callable[[object], None]) -> float:
    job = ("a job of about the size of stage 1's", "x" * 500)
    start = time.perf_counter()
    run_blocks(function, [(job, "category", block) for block in range(blocks)], address, None, on_result)
    return time.perf_counter() - start


def main(blocks: int, workers: int) -> None:
    process = psutil.Process()
    with LocalCluster(n_workers=workers, threads_per_worker=8, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        seconds(address, nothing, 200, lambda _: None)  # warm up
        memory = [process.memory_info().rss]
        done = 0

        def count(_: object) -> None:
            nonlocal done
            done += 1
            if done % 100 == 0:
                memory.append(process.memory_info().rss)

        empty = seconds(address, nothing, blocks, count)
        threads = 8 * workers
        slept = seconds(address, sleep, ROUNDS * threads, lambda _: None)
    share = 1 - ROUNDS * SLEEP / slept
    table = Table("figure", "value", title=f"{blocks:,} blocks, {64 * blocks:,} images, {threads} threads")
    table.add_row("overhead a block, ms", f"{1000 * empty / blocks:.2f}")
    table.add_row("memory of scheduler and driver before, MB", f"{memory[0] / 2**20:.0f}")
    table.add_row("the most during the run, MB", f"{max(memory) / 2**20:.0f}")
    table.add_row("the growth from first to last, MB", f"{(memory[-1] - memory[0]) / 2**20:.1f}")
    table.add_row(f"share not spent in blocks of {SLEEP} s, percent", f"{100 * share:.1f}")
    Console().print(table)


if __name__ == "__main__":
    given = [int(value) for value in sys.argv[1:]]
    main(*given, *(15_625, 2)[len(given) :])
