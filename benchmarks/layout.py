"""What shards of 1, 4, 8 or 16 chunks cost in objects, seconds and memory: `python benchmarks/layout.py [IMAGES]`.

Tiny images of noise replace real ones and nothing is computed, so that only the handling of objects counts. The memory
is what writing one shard of 256 px noise adds to the process: a worker needs it in addition to its network.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import integers, seconds
from rich.console import Console
from rich.table import Table

from pipeline.cache.cache import open_cache
from pipeline.cache.category import CachedCategory
from pipeline.cache.create import prepare_cache
from pipeline.cache.layout import Arrays, layout
from pipeline.data.datasets import Dataset
from pipeline.data.samples import Category, Sample
from pipeline.settings import PrecomputeSettings

SHARDS = (1, 4, 8, 16)
STAGES = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")
TINY = PrecomputeSettings(image_size=32, pairs=4, stages=STAGES)
CHUNK = CachedCategory.rows_per_chunk
READ = 200


def create(store: str, count: int, settings: PrecomputeSettings, chunks: int) -> None:
    samples = tuple(Sample(f"noise/train/good/{i:07}.png", 0, "good", ()) for i in range(count))
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
    """MiB that writing one shard at 256 px adds to the process, the shard's arrays included."""
    settings, store = PrecomputeSettings(stages=STAGES), f"{folder}/memory-{chunks}.zarr"
    create(store, chunks * CHUNK, settings, chunks)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write(store, chunks * CHUNK, chunks, noise(chunks * CHUNK, settings))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure(folder: str, count: int, chunks: int) -> tuple[int | float, ...]:
    """Objects, and objects per 10^6 images; seconds to create, write, list, read `done`; chunks read per second."""
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
    for heading in ("objects", "per 10^6", "create", "write", "list", "done", "read", "MiB"):
        table.add_column(heading, justify="right")
    for chunks in SHARDS:
        with tempfile.TemporaryDirectory() as folder:
            metrics = measure(folder, count, chunks)
            # In a process of its own, since the peak memory of a process never falls.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                metrics += (round(pool.apply(memory, (folder, chunks))),)
        table.add_row(str(chunks), *(f"{one:.2f}" if isinstance(one, float) else str(one) for one in metrics))
    Console().print(table)


if __name__ == "__main__":
    main(*integers(sys.argv[1:], 20_000))
