"""What precompute and train cost per image of a larger data set: `python benchmarks/growth.py [FEW] [MANY] [REPEATS]`.

The images are real solar cells, linked under new names where there are too few. At 32 px and one deep stage the network
takes the smallest share of the time, so that other costs per image show. Every run is the command itself in a process
of its own. The script measures its wall time, its peak memory, a second run over the finished cache, and `train` with
few steps on it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import CLI, Cost, add_spread, integers, run_command, solar_cells, spread_table
from rich.console import Console

COMMAND = [*CLI, "precompute", "--dataset", "folder"]


@dataclass(frozen=True)
class Runs:
    """A first run, a second one over its cache, and `train` on it."""

    first: Cost
    again: Cost
    train: Cost


def link_images(folder: Path, count: int) -> None:
    sources = solar_cells()
    (folder / "train" / "good").mkdir(parents=True)
    for i in range(count):
        (folder / "train" / "good" / f"{i:06}.png").symlink_to(sources[i % len(sources)])


def measure(images: Path, store: Path) -> Runs:
    arguments = [*COMMAND, "--root", images, "--store", store, "--image-size", 32, "--stages", "blocks.6"]
    first, again = (run_command(arguments, store.parent) for _ in range(2))
    out = store.parent / "run"
    trained = run_command([*CLI, "train", store, "--steps", 20, "--out", out], store.parent)
    for folder in (store, out):
        shutil.rmtree(folder)
    return Runs(first, again, trained)


def main(few: int, many: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in (few, many):
            link_images(folder / str(count), count)
        costs = [[measure(folder / str(count), folder / "cache.zarr") for count in (few, many)] for _ in range(repeats)]
    table = spread_table("metric", f"{many:,} images against {few:,}, {repeats} repeats")
    rows = {
        "peak memory, ratio": [large.first.peak / small.first.peak for small, large in costs],
        "seconds per image, ratio": [
            (large.first.seconds / many) / (small.first.seconds / few) for small, large in costs
        ],
        f"peak memory at {many:,} images, MB": [large.first.peak for _, large in costs],
        f"second run over {many:,} images, s": [large.again.seconds for _, large in costs],
        "train: seconds per image, ratio": [
            (large.train.seconds / many) / (small.train.seconds / few) for small, large in costs
        ],
        f"train: peak memory at {few:,} images, MB": [small.train.peak for small, _ in costs],
        f"train: peak memory at {many:,} images, MB": [large.train.peak for _, large in costs],
    }
    for label, values in rows.items():
        add_spread(table, label, values)
    Console().print(table)


if __name__ == "__main__":
    main(*integers(sys.argv[1:], 1000, 16000, 5))
