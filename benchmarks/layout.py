"""What a shard of 1, 4, 8 or 16 chunks costs: objects, seconds, memory: give a number of images, 20000 if none.

Tiny images of noise stand for real ones, so that only the handling of objects counts; nothing is computed. The memory
is that of writing one shard of 256 px noise, over what the process held before: a worker needs it beside its network.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.cache.cache import open_cache
from pipeline.cache.category import CachedCategory
from pipeline.cache.create import prepare_cache
from pipeline.cache.layout import Arrays, layout
from pipeline.data.datasets import Dataset
from pipeline.data.layouts import Category, Sample
from pipeline.settings import PrecomputeSettings

SHARDS = (1, 4, 8, 16)
STAGES = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")
TINY = PrecomputeSettings(image_size=32, pairs=4, stages=STAGES)
CHUNK = CachedCategory.rows_per_chunk
READ = 200


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def create(store: str, count: int, settings: PrecomputeSettings, chunks: int) -> None:
    samples = tuple(Sample(f"noise/train/good/{i:07}.png", 0, "good", None) for i in range(count))
    dataset = Dataset("folder", "none", (Category("noise", samples, ()),))
    prepare_cache(store, dataset, settings, "none", chunks_per_shard=chunks)


def noise(count: int, settings: PrecomputeSettings) -> Arrays:
    rng = np.random.default_rng(0)
    arrays: Arrays = {}
    for name, (shape, dtype, _) in layout(count, settings).items():
        if dtype == "str":
            arrays[name] = np.array([rng.bytes(32).hex() for _ in range(count)], dtype=object)
        else:
            arrays[name] = rng.integers(1, 127, shape, np.uint8).astype(dtype)
    del arrays["paths"]
    return arrays


def write(store: str, count: int, chunks: int, arrays: Arrays) -> None:
    category = open_cache(store, "r+")["noise"]
    for shard, first in enumerate(range(0, count, chunks * CHUNK)):
        category.write_shard(shard, {name: values[: count - first] for name, values in arrays.items()})


def read(store: str) -> None:
    category = open_cache(store)["noise"]
    for chunk in np.random.default_rng(0).permutation(category.done_chunks())[:READ]:
        category.read_chunk(int(chunk), ("images", "pairs"))


def memory(folder: str, chunks: int) -> float:
    """MiB that writing one shard at 256 px takes beyond what the process held before, its arrays included."""
    settings, store = PrecomputeSettings(stages=STAGES), f"{folder}/memory-{chunks}.zarr"
    create(store, chunks * CHUNK, settings, chunks)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write(store, chunks * CHUNK, chunks, noise(chunks * CHUNK, settings))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure(folder: str, count: int, chunks: int) -> tuple[int | float, ...]:
    """Objects, and objects of a million images; seconds to create, write, list, read `done`; chunks read per second."""
    store = f"{folder}/cache.zarr"
    created = seconds(lambda: create(store, count, TINY, chunks))
    arrays = noise(chunks * CHUNK, TINY)
    written = seconds(lambda: write(store, count, chunks, arrays))
    files: list[Path] = []
    listed = seconds(lambda: files.extend(path for path in Path(store).rglob("*") if path.is_file()))
    done = seconds(lambda: open_cache(store)["noise"].done)
    rate = min(READ, -(-count // CHUNK)) / seconds(lambda: read(store))
    objects = (len(layout(0, TINY)) + 1) * -(-(10**6) // (chunks * CHUNK))
    return len(files), objects, created, written, listed, done, rate


def main(count: int) -> None:
    title = f"{count} images: objects, seconds, chunks read per second, MiB per task"
    table = Table("chunks per shard", title=title)
    for heading in ("objects", "of 10^6", "create", "write", "list", "done", "read", "MiB"):
        table.add_column(heading, justify="right")
    for chunks in SHARDS:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(folder, count, chunks)
            # In a process of its own: what one shard took is not given back.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                figures += (round(pool.apply(memory, (folder, chunks))),)
        table.add_row(str(chunks), *(f"{one:.2f}" if isinstance(one, float) else str(one) for one in figures))
    Console().print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
