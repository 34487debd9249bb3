"""What precompute costs per image of a larger data set: `python benchmarks/growth.py [FEW] [MANY] [REPEATS]`.

The images are real solar cells, linked under new names where there are too few. At 32 px and one deep stage the network
takes the smallest share of the time, so that other costs per image show. Every run is the command itself in a process
of its own. The script measures its wall time, its peak memory, and a second run over the finished cache.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common import add_spread, integers, solar_cells, spread_table
from rich.console import Console

COMMAND = [sys.executable, str(Path(__file__).parents[1] / "cli.py"), "precompute", "--dataset", "folder"]


@dataclass(frozen=True)
class Cost:
    """Seconds of a first run and of a second one over its cache, and peak MB of the first."""

    first: float
    again: float
    peak: float


def link_images(folder: Path, count: int) -> None:
    sources = solar_cells()
    (folder / "train" / "good").mkdir(parents=True)
    for i in range(count):
        (folder / "train" / "good" / f"{i:06}.png").symlink_to(sources[i % len(sources)])


def run(arguments: list[str]) -> tuple[float, float]:
    """Wall seconds and peak MB of one command."""
    start = time.perf_counter()
    process = os.posix_spawn(sys.executable, arguments, os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit(f"{' '.join(arguments)} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def measure(images: Path, store: Path) -> Cost:
    arguments = [*COMMAND, "--root", str(images), "--store", str(store), "--image-size", "32", "--stages", "blocks.6"]
    (first, peak), (again, _) = run(arguments), run(arguments)
    shutil.rmtree(store)
    return Cost(first, again, peak)


def main(few: int, many: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in (few, many):
            link_images(folder / str(count), count)
        costs = [[measure(folder / str(count), folder / "cache.zarr") for count in (few, many)] for _ in range(repeats)]
    table = spread_table("metric", f"{many:,} images against {few:,}, {repeats} repeats")
    rows = {
        "peak memory, ratio": [large.peak / small.peak for small, large in costs],
        "seconds per image, ratio": [(large.first / many) / (small.first / few) for small, large in costs],
        f"peak memory at {many:,} images, MB": [large.peak for _, large in costs],
        f"second run over {many:,} images, s": [large.again for _, large in costs],
    }
    for label, values in rows.items():
        add_spread(table, label, values)
    Console().print(table)


if __name__ == "__main__":
    main(*integers(sys.argv[1:], 1000, 16000, 5))
