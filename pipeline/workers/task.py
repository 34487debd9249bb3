"""One task of precompute: the images of a shard to saliency maps, clusters and patch pairs in the cache."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.category import CachedCategory, PendingRows
from pipeline.cache.layout import Arrays, layout
from pipeline.clusters import cluster_maps
from pipeline.device import choose_device
from pipeline.pairs import draw_pairs, map_keys
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution
from pipeline.workers.explain import Explained, Source, begin, finish
from pipeline.workers.loaded import open_backbone, open_category
from pipeline.workers.schedule import worker_name


@dataclass(frozen=True)
class Job:
    """What every task of a cache shares; small, since it travels with each. The settings are the category's.

    weights: as in the settings, a file by its absolute path.
    """

    store: str
    cache_id: str
    image_root: str
    weights: str
    execution: Execution


@dataclass(frozen=True)
class TaskReport:
    """The outcome of one task: images done, a line per unreadable image, seconds by step, and the worker.

    threads: the images that each thread of the worker explained.
    """

    store: str
    category: str
    shard: int
    images: int
    bad: tuple[str, ...]
    seconds: dict[str, float]
    worker: str
    threads: dict[str, int]


@dataclass
class _Tally:
    """What a task counts: seconds by step, images by thread, and a line per image that could not be read."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    threads: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, step: str | None) -> None:
        """Add the time since the last call to a step; None: it was spent waiting for other threads."""
        now = time.perf_counter()
        if step is not None:
            self.seconds[step] += now - self._last
        self._last = now

    def add(self, image: Explained) -> None:
        """Count one image."""
        for step, spent in image.seconds.items():
            self.seconds[step] += spent
        self.threads[image.thread] += 1
        if image.pixels is None:
            self.bad.append(image.problem)


def compute_shard(job: Job, name: str, shard: int) -> TaskReport:
    """Compute the pending rows of one shard of a category and write them; a done shard stays as it is.

    It opens the store and loads the network once per process, wherever Dask runs it. With bad_images "stop" and an
    unreadable image it writes nothing, and the report carries the lines.
    """
    tally = _Tally()
    category = open_category(job.store, job.cache_id, name)
    pending = category.pending_rows(shard)
    images = pending.of if pending.done else len(pending.rows)
    if not pending.done:
        arrays = _compute(job, category, pending.paths, tally)
        if not tally.bad or job.execution.bad_images == "skip":
            category.write_shard(shard, _among_finished(category, shard, arrays, pending))
        tally.lap("write")
    bad, seconds, threads = tuple(tally.bad), dict(tally.seconds), dict(tally.threads)
    return TaskReport(job.store, name, shard, images, bad, seconds, worker_name(), threads)


def _among_finished(category: CachedCategory, shard: int, arrays: Arrays, pending: PendingRows) -> Arrays:
    """The arrays of the whole shard: the computed rows, and the rows that the cache already holds."""
    if len(pending.rows) == pending.of:
        return arrays
    whole = category.read_shard(shard, tuple(arrays))
    for name, values in arrays.items():
        whole[name][pending.rows] = values
    return whole


def _compute(job: Job, category: CachedCategory, paths: Sequence[str], tally: _Tally) -> Arrays:
    """The rows of all paths; memory holds them, and two chunks of images that are on their way."""
    settings, size = replace(category.settings, weights=job.weights), category.rows_per_chunk
    device = choose_device(job.execution.device)
    backbone = open_backbone(settings.backbone, settings.weights, settings.seed, str(device), category.folded)
    source = Source(
        job.image_root, category.decoding(job.execution.max_pixels), settings, backbone, job.execution.gpu_batch
    )
    shapes = layout(len(paths), settings).items()
    whole: Arrays = {name: np.zeros(shape, object if dtype == "str" else dtype) for name, (shape, dtype, _) in shapes}
    del whole["paths"]
    tally.lap("load")
    # The next chunk is begun before this one is finished, so that the threads always have images.
    ahead = begin(source, paths[:size])
    for start in range(0, len(paths), size):
        current, ahead = ahead, begin(source, paths[start + size : start + 2 * size])
        row = start
        for images in finish(source, current):
            tally.lap(None)
            _fill(whole, row, images, paths[row : row + len(images)], settings)
            row += len(images)
            for image in images:
                tally.add(image)
            tally.lap("clusters and pairs")
    return whole


def _fill(
    whole: Arrays, first: int, images: Sequence[Explained], paths: Sequence[str], settings: PrecomputeSettings
) -> None:
    """Cluster, draw, and set the rows from `first` on; those of images that could not be read stay empty."""
    rows = slice(first, first + len(images))
    whole["sha256"][rows] = [image.sha256 for image in images]
    whole["valid"][rows] = valid = np.array([image.pixels is not None for image in images])
    maps = [image.maps for image in images if image.maps is not None]
    if maps:
        good = first + np.flatnonzero(valid)
        whole["images"][good] = [image.pixels for image in images if image.pixels is not None]
        classes = [image.target_class for image in images if image.target_class is not None]
        whole["target_class"][good] = torch.cat(classes).cpu().numpy()
        readable = [path for path, is_valid in zip(paths, valid, strict=True) if is_valid]
        for name, values in _cluster_and_draw(torch.stack(maps), readable, settings).items():
            whole[name][good] = values


def _cluster_and_draw(saliency: Tensor, paths: Sequence[str], settings: PrecomputeSettings) -> Arrays:
    clusters, centroids = cluster_maps(saliency.flatten(0, 1), settings.clusters)
    pairs, relaxed = draw_pairs(
        clusters,
        map_keys(settings.seed, paths, settings.stages),
        pairs=settings.pairs,
        image_size=settings.image_size,
        area=settings.patch_area,
        aspect=settings.patch_aspect,
    )
    by_map = {"clusters": clusters, "centroids": centroids, "pairs": pairs, "relaxed": relaxed}
    by_image = {name: values.unflatten(0, saliency.shape[:2]).cpu().numpy() for name, values in by_map.items()}
    return {"saliency": saliency.cpu().numpy(), **by_image}
