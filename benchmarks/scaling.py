"""What Dask itself costs in a run of a million images: `python benchmarks/scaling.py [CHUNKS] [WORKERS]`.

By default 15,625 tasks of one chunk each pass through a real LocalCluster, by the function that precompute uses. They
compute nothing; further tasks only sleep. Scheduler and driver share this process, so its memory is that of both. A
small real cache gives the seconds and bytes per image. From all of these follows what 10^9 images cost.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from common import CORES, integers, seconds
from distributed import LocalCluster
from rich.console import Console
from rich.table import Table

from pipeline.cache.category import CachedCategory
from pipeline.data.datasets import Dataset, load
from pipeline.data.samples import Category
from pipeline.precompute import precompute
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution
from pipeline.workers.schedule import run_tasks

CHUNK = CachedCategory.rows_per_chunk
SLEEP = 0.5
ROUNDS = 40


def nothing(job: tuple[object, ...], category: str, shard: int) -> tuple[str, int]:
    """Take and return what a task of precompute takes and returns."""
    return category, shard


def sleep(job: tuple[object, ...], category: str, shard: int) -> tuple[str, int]:
    time.sleep(SLEEP)
    return category, shard


def run(address: str, function: Callable[..., object], tasks: int, on_result: Callable[[object], None]) -> float:
    """Seconds of so many tasks on the cluster."""
    job = ("a job of about the size of precompute's", "x" * 500)
    arguments = [(job, "category", shard) for shard in range(tasks)]
    return seconds(lambda: run_tasks(function, arguments, Execution(address), on_result))


def real_cache(images: int) -> tuple[float, float]:
    """Core seconds and bytes per image of precompute with the default settings, on real images."""
    dataset = load("elpv", categories=["mono"])
    part = Dataset("elpv", dataset.image_root, (Category("mono", dataset.categories[0].train[:images], ()),))
    with tempfile.TemporaryDirectory() as folder:
        spent = seconds(lambda: precompute([(part, f"{folder}/cache.zarr")], PrecomputeSettings()))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return spent * CORES / images, size / images


def main(tasks: int, workers: int) -> None:
    process = psutil.Process()
    with LocalCluster(n_workers=workers, threads_per_worker=8, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        run(address, nothing, 200, lambda _: None)  # warm up
        memory = [process.memory_info().rss]
        done = 0

        def count(_: object) -> None:
            nonlocal done
            done += 1
            if done % 100 == 0:
                memory.append(process.memory_info().rss)

        empty = run(address, nothing, tasks, count)
        threads = 8 * workers
        slept = run(address, sleep, ROUNDS * threads, lambda _: None)
    share = 1 - ROUNDS * SLEEP / slept
    table = Table("metric", "value", title=f"{tasks:,} tasks, {CHUNK * tasks:,} images, {threads} threads")
    table.add_row("overhead per task, ms", f"{1000 * empty / tasks:.2f}")
    table.add_row("memory of scheduler and driver before, MB", f"{memory[0] / 2**20:.0f}")
    table.add_row("maximum memory during the run, MB", f"{max(memory) / 2**20:.0f}")
    table.add_row("growth of memory from first to last task, MB", f"{(memory[-1] - memory[0]) / 2**20:.1f}")
    table.add_row(f"share of time not spent in tasks of {SLEEP} s, percent", f"{100 * share:.1f}")
    real_cache(4)  # warm up
    spent, size = real_cache(384)
    serial = empty / tasks
    cost = Table("metric", "value", title="10^9 images at 256 px, from the metrics above and a cache of 384 images")
    cost.add_row("core seconds per image", f"{spent:.4f}")
    cost.add_row("core hours", f"{1e9 * spent / 3600:,.0f}")
    cost.add_row("bytes per image", f"{size:,.0f}")
    cost.add_row("terabytes", f"{1e9 * size / 1e12:,.0f}")
    for chunks in (1, 8):
        cost.add_row(f"objects, millions, {chunks} chunks per shard", f"{11 * 1e9 / (CHUNK * chunks) / 1e6:,.1f}")
        cost.add_row(f"scheduler hours, {chunks} chunks per task", f"{1e9 / (CHUNK * chunks) * serial / 3600:,.1f}")
        cost.add_row(
            f"cores that one scheduler feeds, {chunks} chunks per task", f"{CHUNK * chunks * spent / serial:,.0f}"
        )
    Console().print(table, cost)


if __name__ == "__main__":
    main(*integers(sys.argv[1:], 15_625, 2))
