"""What a write unit of 1, 4, 8 or 16 blocks costs: objects, seconds, memory: give a number of images, 20000 if none.

Tiny images of noise stand for real ones, so that only the handling of objects counts; nothing is computed. The memory
is that of writing one unit of 256 px noise, over what the process held before: a worker needs it beside its network.
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

from pipeline.creation import prepare_cache
from pipeline.settings import PrecomputeSettings
from pipeline.store import BLOCK, Arrays, done_blocks, layout, open_cache, open_category, read_block, write_unit

UNITS = (1, 4, 8, 16)
STAGES = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")
TINY = PrecomputeSettings(image_size=32, pairs=4, stages=STAGES)
READ = 200


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def create(store: str, count: int, settings: PrecomputeSettings, unit: int) -> None:
    names = [f"noise/train/good/{i:07}.png" for i in range(count)]
    prepare_cache(
        store,
        dataset="folder",
        image_root="none",
        categories={"noise": names},
        settings=settings,
        weights="none",
        overwrite=False,
        unit=unit,
    )


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


def write(store: str, count: int, unit: int, arrays: Arrays) -> None:
    category = open_category(open_cache(store, "r+"), "noise")
    rows = unit * BLOCK
    for number, first in enumerate(range(0, count, rows)):
        write_unit(category, number, {name: values[: count - first] for name, values in arrays.items()})


def read(store: str) -> None:
    category = open_category(open_cache(store), "noise")
    blocks = np.random.default_rng(0).permutation(np.flatnonzero(done_blocks(category)))
    for block in blocks[:READ]:
        read_block(category, int(block), ("images", "pairs"))


def memory(folder: str, unit: int) -> float:
    """MiB that writing one unit at 256 px takes beyond what the process held before, its arrays included."""
    settings, store = PrecomputeSettings(stages=STAGES), f"{folder}/memory-{unit}.zarr"
    create(store, unit * BLOCK, settings, unit)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write(store, unit * BLOCK, unit, noise(unit * BLOCK, settings))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure(folder: str, count: int, unit: int) -> tuple[int | float, ...]:
    """Objects, and objects of a million images; seconds to create, write, list, read `done`; blocks read a second."""
    store = f"{folder}/cache.zarr"
    created = seconds(lambda: create(store, count, TINY, unit))
    arrays = noise(unit * BLOCK, TINY)
    written = seconds(lambda: write(store, count, unit, arrays))
    files: list[Path] = []
    listed = seconds(lambda: files.extend(path for path in Path(store).rglob("*") if path.is_file()))
    done = seconds(lambda: done_blocks(open_category(open_cache(store), "noise")))
    rate = min(READ, -(-count // BLOCK)) / seconds(lambda: read(store))
    objects = (len(layout(0, TINY)) + 1) * -(-(10**6) // (unit * BLOCK))
    return len(files), objects, created, written, listed, done, rate


def main(count: int) -> None:
    title = f"{count} images: objects, seconds, blocks read a second, MiB a task"
    table = Table("blocks", title=title)
    for heading in ("objects", "of 10^6", "create", "write", "list", "done", "read", "MiB"):
        table.add_column(heading, justify="right")
    for unit in UNITS:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(folder, count, unit)
            # In a process of its own: what one unit took is not given back.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                figures += (round(pool.apply(memory, (folder, unit))),)
        table.add_row(str(unit), *(f"{one:.2f}" if isinstance(one, float) else str(one) for one in figures))
    Console().print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
