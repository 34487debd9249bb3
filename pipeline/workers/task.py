"""One task of precompute: the images of a shard to saliency maps, clusters and patch pairs in the cache."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbones.load import Backbone
from pipeline.cache.category import CachedCategory, PendingRows
from pipeline.cache.layout import Arrays, layout
from pipeline.clusters import cluster_maps
from pipeline.data.images import decode_rgb, read_bytes
from pipeline.device import choose_device
from pipeline.errors import ImageError
from pipeline.pairs import draw_pairs, map_keys
from pipeline.saliency import layercam, scale_maps
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution
from pipeline.workers.loaded import open_backbone, open_category, readers
from pipeline.workers.schedule import worker_name

# On a CPU one image at a time is as fast as a batch, and makes every map independent of its neighbours: the bits of
# a convolution depend there on the size of the batch.
_IMAGES_AT_ONCE_CPU = 1


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
    """The outcome of one task: images done, a line per unreadable image, seconds by step, and the worker."""

    store: str
    category: str
    shard: int
    images: int
    bad: tuple[str, ...]
    seconds: dict[str, float]
    worker: str


@dataclass(frozen=True)
class _Loaded:
    pixels: NDArray[np.uint8] | None
    sha256: str
    problem: str = ""


def compute_shard(job: Job, name: str, shard: int) -> TaskReport:
    """Compute the pending rows of one shard of a category and write them; a done shard stays as it is.

    It opens the store and loads the network once per process, wherever Dask runs it. With bad_images "stop" and an
    unreadable image it writes nothing, and the report carries the lines.
    """
    clock = _Clock()
    category = open_category(job.store, job.cache_id, name)
    pending = category.pending_rows(shard)
    if pending.done:
        return TaskReport(job.store, name, shard, pending.of, (), clock.seconds, worker_name())
    arrays, bad = _compute_by_chunk(job, category, pending.paths, clock)
    if not bad or job.execution.bad_images == "skip":
        category.write_shard(shard, _among_finished(category, shard, arrays, pending))
    clock.lap("write")
    return TaskReport(job.store, name, shard, len(pending.rows), bad, clock.seconds, worker_name())


def _among_finished(category: CachedCategory, shard: int, arrays: Arrays, pending: PendingRows) -> Arrays:
    """The arrays of the whole shard: the computed rows, and the rows that the cache already holds."""
    if len(pending.rows) == pending.of:
        return arrays
    whole = category.read_shard(shard, tuple(arrays))
    for name, values in arrays.items():
        whole[name][pending.rows] = values
    return whole


def _compute_by_chunk(
    job: Job, category: CachedCategory, paths: Sequence[str], clock: _Clock
) -> tuple[Arrays, tuple[str, ...]]:
    """`_compute_arrays` of one chunk of images at a time, so that memory holds the result and two chunks of images."""
    settings, size = replace(category.settings, weights=job.weights), category.rows_per_chunk
    shapes = layout(len(paths), settings).items()
    whole: Arrays = {name: np.zeros(shape, object if dtype == "str" else dtype) for name, (shape, dtype, _) in shapes}
    del whole["paths"]
    problems: list[str] = []
    # The threads read and decode the next chunk while the network computes this one.
    ahead = _read_ahead(job.image_root, paths[:size], settings)
    for start in range(0, len(paths), size):
        part, following = paths[start : start + size], paths[start + size : start + 2 * size]
        loading, ahead = ahead, _read_ahead(job.image_root, following, settings)
        arrays, bad = _compute_arrays(job, settings, part, loading, clock)
        problems += bad
        for name, values in arrays.items():
            whole[name][start : start + size] = values
    return whole, tuple(problems)


def _read_ahead(image_root: str, paths: Sequence[str], settings: PrecomputeSettings) -> list[Future[_Loaded]]:
    return [readers().submit(_load_image, image_root, path, settings) for path in paths]


def _compute_arrays(
    job: Job, settings: PrecomputeSettings, paths: Sequence[str], loading: Sequence[Future[_Loaded]], clock: _Clock
) -> tuple[Arrays, tuple[str, ...]]:
    device = choose_device(job.execution.device)
    backbone = open_backbone(settings.backbone, settings.weights, settings.seed, str(device))
    at_once = _IMAGES_AT_ONCE_CPU if device.type == "cpu" else job.execution.gpu_batch
    clock.lap("load")
    images, maps, targets = [], [], []
    for start in range(0, len(paths), at_once):
        loaded = [future.result() for future in loading[start : start + at_once]]
        pixels = [one.pixels for one in loaded if one.pixels is not None]
        clock.lap("decode")
        if pixels:
            images += pixels
            found, classes = _explain(backbone, np.stack(pixels), settings)
            maps.append(found)
            targets.append(classes)
        clock.lap("network")
    everything = [future.result() for future in loading]
    valid = np.array([one.pixels is not None for one in everything])
    bad = tuple(one.problem for one in everything if one.pixels is None)
    arrays: Arrays = {
        "sha256": np.array([one.sha256 for one in everything], dtype=object),
        "valid": valid.astype(np.uint8),
    }
    if maps:
        good = [path for path, one in zip(paths, everything, strict=True) if one.pixels is not None]
        rows = {"images": np.stack(images), "target_class": torch.cat(targets).cpu().numpy()}
        rows |= _cluster_and_draw(torch.cat(maps), good, settings)
        arrays |= {name: _spread(values, valid) for name, values in rows.items()}
    clock.lap("clusters and pairs")
    return arrays, bad


def _explain(backbone: Backbone, images: NDArray[np.uint8], settings: PrecomputeSettings) -> tuple[Tensor, Tensor]:
    """(B,H,W,3) images to (B,L,h,w) uint8 saliency and (B,) classes, both on the backbone's device."""
    device = backbone.device
    pixels = torch.from_numpy(images)
    if device.type == "cuda":
        pixels = pixels.pin_memory()  # the copy then runs while the network computes the images before
    x = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
    with _network_gate(device):
        raw, classes = layercam(backbone, backbone.normalise(x), settings.stages, precision=settings.precision)
        return scale_maps(raw, settings.map_size), classes.int()


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


def _spread(values: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
    """The rows of the images that could be read, with empty rows between them for those that could not."""
    if valid.all():
        return values
    spread = np.zeros((len(valid), *values.shape[1:]), values.dtype)
    spread[valid] = values
    return spread


def _load_image(image_root: str, path: str, settings: PrecomputeSettings) -> _Loaded:
    try:
        data = read_bytes(image_root, path)
        return _Loaded(decode_rgb(data, settings.image_size, settings.resize, path), hashlib.sha256(data).hexdigest())
    except ImageError as error:
        return _Loaded(None, "", str(error))


_CUDA_GATE = threading.Lock()


def _network_gate(device: torch.device) -> AbstractContextManager[object]:
    """One task at a time on a GPU, while others decode and write; on a CPU every worker computes."""
    return nullcontext() if device.type == "cpu" else _CUDA_GATE


class _Clock:
    """Seconds spent by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self._last
        self._last = now
