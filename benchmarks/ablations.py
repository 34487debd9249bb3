"""How stages and clusters affect the detector: `python benchmarks/ablations.py STORE CATEGORY [SEEDS]`.

Each variant takes a copy of the cache, replaces its pairs, and runs the default `train` on the copy. The variants: the
cached pairs of all stages, the cached pairs of only one stage, pairs drawn again from the cached saliency maps with
another number of clusters, and patches of the same sizes drawn anywhere. The table holds test metrics in percent, means
over seeds. The script chooses nothing by them.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import draw_again, integers
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline.cache.cache import open_cache
from pipeline.clusters import cluster_maps
from pipeline.settings import PrecomputeSettings
from train.evaluation.metrics import METRICS
from train.evaluation.results import over_seeds, percent
from train.run import open_run
from train.settings import TrainSettings
from train.training import train

Pairs = NDArray[np.int16]


def drawn(store: str, category: str, clusters: int) -> Pairs:
    """Pairs (N,L,P,6) of the cached maps with another number of clusters; with 1 they may lie anywhere."""
    cached = open_cache(store)[category]
    maps = torch.from_numpy(cached.read("saliency"))
    flat = maps.flatten(0, 1)
    labels = torch.zeros_like(flat) if clusters == 1 else cluster_maps(flat, clusters)[0]
    pairs, _ = draw_again(cached, labels, cached.settings.patch_area)
    found: Pairs = pairs.unflatten(0, maps.shape[:2]).numpy()
    return found


def variants(store: str, category: str, settings: PrecomputeSettings) -> Iterator[tuple[str, Pairs]]:
    """Name and pairs (N,L,P,6) of each variant."""
    cached = open_cache(store)[category].read("pairs")
    yield f"all stages, {settings.clusters} clusters (default)", cached
    for number, stage in enumerate(settings.stages):
        yield f"only {stage}", np.repeat(cached[:, [number]], cached.shape[1], 1)
    for clusters in (2, 3, 6, 8):
        yield f"{clusters} clusters", drawn(store, category, clusters)
    yield "anywhere", drawn(store, category, 1)


def main(store: str, category: str, seeds: int) -> None:
    settings = open_cache(store)[category].settings
    shown = [metric for metric in METRICS if metric.shown]
    table = Table("pairs", *(metric.title for metric in shown), title=f"{category}, {seeds} seeds, percent")
    with tempfile.TemporaryDirectory() as name:
        for label, pairs in variants(store, category, settings):
            copy, out = Path(name) / "cache.zarr", Path(name) / "run"
            shutil.copytree(store, copy)
            open_cache(str(copy), "r+")[category].array("pairs")[:] = pairs
            cells = train(open_run(str(copy), out, TrainSettings(), categories=[category]), range(seeds)).cells
            means = [over_seeds([cell.metrics.get(metric.name) for cell in cells])[0] for metric in shown]
            table.add_row(label, *(percent(mean, None) for mean in means))
            Console(stderr=True).print(f"{label}: {percent(means[0], None)}")
            for folder in (copy, out):
                shutil.rmtree(folder)
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *integers(sys.argv[3:], 1))
