"""What several benchmarks share: arguments, images, commands, seconds, ratios measured side by side and their table.

Nothing here imports torch at the top: `growth.py` and `scaling.py` measure memory that it would add to.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from pipeline.cache.category import CachedCategory
from pipeline.data.datasets import load
from pipeline.data.images import Decoding, decode_rgb
from pipeline.precompute import PrecomputeReport, precompute
from pipeline.progress import hide_progress
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution

if TYPE_CHECKING:
    from torch import Tensor

CORES = os.cpu_count() or 1
ROOT = Path(__file__).parents[1]
CLI = (sys.executable, str(ROOT / "cli.py"))


@dataclass(frozen=True)
class Cost:
    """Wall seconds of a command, start of the process included, and the peak MB of its process."""

    seconds: float
    peak: float


def integers(given: Sequence[str], *defaults: int) -> list[int]:
    """The arguments that were given, then the defaults of the others."""
    return [*map(int, given), *defaults[len(given) :]]


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def run_command(arguments: Sequence[object], folder: Path, environment: Mapping[str, str] = os.environ) -> Cost:
    """The cost of one command in a working directory; its output is shown only if it fails, which ends this process."""
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*map(str, arguments)], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        spent = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            output.seek(0)
            shown = output.read().decode(errors="replace")[-2000:]
            sys.exit(f"{' '.join(map(str, arguments))} failed:\n{shown}")
    return Cost(spent, usage.ru_maxrss / 1024)


def time_ratios(
    above: Callable[[], object], below: Callable[[], object], repeats: int, scale: float = 1.0
) -> list[float]:
    """Seconds of one action, times `scale`, over those of another, measured in turn."""
    return [scale * seconds(above) / seconds(below) for _ in range(repeats)]


def spread_table(heading: str, title: str) -> Table:
    """A table for the rows of `add_spread`."""
    return Table(heading, "median", "least", "most", title=title)


def add_spread(table: Table, name: str, values: Sequence[float], digits: int = 2) -> None:
    table.add_row(name, *(f"{value:.{digits}f}" for value in (median(values), min(values), max(values))))


def solar_cells() -> list[Path]:
    """The normal images of ELPV."""
    dataset = load("elpv")
    return [Path(dataset.image_root, sample.path) for category in dataset.categories for sample in category.train]


def write_images(root: Path, count: int) -> list[Path]:
    """512 px PNG files of solar cells below `root`, repeated at another brightness where there are too few."""
    sources = solar_cells()
    target = normals_folder(root)
    for i in range(count):
        image = Image.open(sources[i % len(sources)]).convert("L").resize((512, 512), Image.Resampling.BICUBIC)
        image.point(lambda value, i=i: value * (100 - i // len(sources)) // 100).save(target / f"{i:05}.png")
    return sorted(target.iterdir())


def normals_folder(root: Path) -> Path:
    """The new folder of the normals of a category "cells" below `root`, in the layout of MVTec AD."""
    folder = root / "cells" / "train" / "good"
    folder.mkdir(parents=True)
    return folder


def decode(paths: Sequence[Path], size: int) -> list[NDArray[np.uint8]]:
    """Images (size,size,3) of files, decoded as precompute decodes them, on all cores."""
    with ThreadPoolExecutor(CORES) as pool:
        decoding = Decoding(size, "stretch", None)
        return list(pool.map(lambda path: decode_rgb(path.read_bytes(), decoding, path.name), paths))


def precompute_folder(root: Path, settings: PrecomputeSettings, execution: Execution | None = None) -> PrecomputeReport:
    """The report of precompute from the images below `root` to a cache that is removed; it prints nothing."""
    with tempfile.TemporaryDirectory() as out, hide_progress():
        return precompute([(load("folder", str(root)), f"{out}/cache.zarr")], settings, execution).caches[0]


def draw_again(category: CachedCategory, clusters: Tensor, area: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Pairs (N*L,P,6) and whether each is relaxed (N*L,P), drawn from clusters (N*L,h,w) of a category's maps."""
    from pipeline.pairs import draw_pairs, map_keys  # here, since it imports torch

    settings = category.settings
    return draw_pairs(
        clusters,
        map_keys(settings.seed, category.paths, settings.stages),
        pairs=settings.pairs,
        image_size=settings.image_size,
        area=area,
        aspect=settings.patch_aspect,
    )
