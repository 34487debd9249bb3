"""What stages and clusters do for the detector: `python benchmarks/ablations.py STORE CATEGORY [SEEDS]`.

The cache is copied, its pairs are drawn again from the cached saliency maps with the choice in question, and the
default `train` runs on the copy: each stage's pairs alone, all of them, other numbers of clusters, and patches of the
same sizes drawn anywhere. Test figures, percent, mean over seeds; nothing is chosen by them here.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline.cache.cache import open_cache
from pipeline.clusters import cluster_maps
from pipeline.pairs import draw_pairs, map_keys
from pipeline.settings import PrecomputeSettings
from train.evaluation.metrics import METRICS
from train.evaluation.results import over_seeds, percent
from train.run import open_run, train
from train.settings import TrainSettings

Pairs = NDArray[np.int16]


def drawn(store: str, category: str, clusters: int) -> Pairs:
    """(N,L,P,6) pairs of the cached maps with another number of clusters; 1 draws them anywhere."""
    cached = open_cache(store)[category]
    settings, maps = cached.settings, torch.from_numpy(cached.read("saliency"))
    flat = maps.flatten(0, 1)
    labels = torch.zeros_like(flat) if clusters == 1 else cluster_maps(flat, clusters)[0]
    keys = map_keys(settings.seed, cached.paths, settings.stages)
    pairs, _ = draw_pairs(
        labels,
        keys,
        pairs=settings.pairs,
        image_size=settings.image_size,
        area=settings.patch_area,
        aspect=settings.patch_aspect,
    )
    found: Pairs = pairs.unflatten(0, maps.shape[:2]).numpy()
    return found


def variants(store: str, category: str, settings: PrecomputeSettings) -> Iterator[tuple[str, Pairs]]:
    """Name and pairs (N,L,P,6) of each choice."""
    cached = open_cache(store)[category].read("pairs")
    yield f"all stages, {settings.clusters} clusters (default)", cached
    for number, stage in enumerate(settings.stages):
        yield f"{stage} alone", np.repeat(cached[:, [number]], cached.shape[1], 1)
    for clusters in (2, 3, 6, 8):
        yield f"{clusters} clusters", drawn(store, category, clusters)
    yield "anywhere", drawn(store, category, 1)


def main(store: str, category: str, seeds: int) -> None:
    settings = open_cache(store)[category].settings
    table = Table("pairs", *(metric.title for metric in METRICS), title=f"{category}, {seeds} seeds, percent")
    with tempfile.TemporaryDirectory() as name:
        for label, pairs in variants(store, category, settings):
            copy, out = Path(name) / "cache.zarr", Path(name) / "run"
            shutil.copytree(store, copy)
            open_cache(str(copy), "r+")[category].array("pairs")[:] = pairs
            cells = train(open_run(str(copy), out, TrainSettings(), categories=[category]), range(seeds))
            figures = [over_seeds([cell.metrics.get(metric.name) for cell in cells])[0] for metric in METRICS]
            table.add_row(label, *(percent(figure, None) for figure in figures))
            Console(stderr=True).print(f"{label}: {percent(figures[0], None)}")
            for folder in (copy, out):
                shutil.rmtree(folder)
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1)
