"""Create a cache, or open an existing one that was made with the same settings."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import zarr

from pipeline.cache.cache import Cache, find_cache
from pipeline.cache.group import create_group, holds_anything
from pipeline.cache.identity import refuse_other_data
from pipeline.cache.layout import (
    CHUNK,
    FOLDED,
    FORMAT,
    Attributes,
    choose_shard,
    create_array,
    create_stamps,
    images_digest,
    layout,
)
from pipeline.cache.update import refuse_changes
from pipeline.data.datasets import Dataset
from pipeline.data.pixels import MOST_PIXELS
from pipeline.data.survey import survey
from pipeline.errors import UserError
from pipeline.settings import PrecomputeSettings

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "zarr", "dask", "cutswap")


def prepare_cache(
    store: str,
    dataset: Dataset,
    settings: PrecomputeSettings,
    weights: str,
    *,
    overwrite: bool = False,
    update: bool = False,
    chunks_per_shard: int | None = None,
    most_pixels: int = MOST_PIXELS,
) -> Cache:
    """Create the cache of a data set, or open the existing one to continue it.

    settings: with their stages chosen. weights: the weights' digest. overwrite: the data set's categories start again,
    and with them the whole cache where it holds no others. chunks_per_shard: of categories that are created; None
    chooses by their number of images. most_pixels: larger images take no part in the look at the normals of a category
    (`pipeline.data.survey`).
    Raises UserError, before anything is written, where `store` holds something else, or a cache with other settings or
    of other images, and unless update is True also for images that have vanished or changed. The images of an existing
    category stay as they are: `pipeline.cache.update` updates them.
    """
    attributes: Attributes = {"dataset": dataset.name, "settings": settings.to_attributes(), "weights": weights}
    attributes |= {"format": FORMAT, "cache_id": uuid.uuid4().hex, "network": FOLDED}
    cache = find_cache(store, "r+") or _create(store, attributes)
    listed = {category.name: [sample.path for sample in category.train] for category in dataset.categories}
    only_these = overwrite and set(cache.names()) <= set(listed)
    if not only_these:
        _refuse_others(cache, dataset.name, settings, weights)
        moved = refuse_other_data(cache, dataset)
        if not (overwrite or update):
            refuse_changes(cache, dataset, compared=moved)
    for name in cache.names():
        if overwrite and name in listed:
            # Before anything is deleted: a run that is killed now must not leave a category that looks whole.
            cache.group[name].update_attributes({"ready": False})
    if only_these:
        cache.group.attrs.put(dict(attributes))  # a copy: zarr keeps what it is given, and clears it at the next put
    cache.update_attributes(root=dataset.image_root, versions=_versions())
    # Not into a finished cache of an earlier version: it may be on a store that this run can only read.
    if not cache.complete or "left_out" in cache.attributes:
        cache.update_attributes(left_out=[note.value() for note in dataset.left_out])
    if cache.settings.weights != settings.weights:  # the same file at another place
        cache.update_attributes(settings=settings.to_attributes())
    ready = cache.names()
    missing = [name for name in listed if name not in ready]
    if missing:
        cache.update_attributes(complete=False)
    for name in missing:
        paths = listed[name]
        seen = survey(dataset.image_root, paths, most_pixels)
        for line in seen.lines():
            print(f"{name}: {line}", file=sys.stderr, flush=True)
        group = _create_category(cache, name, paths, settings, chunks_per_shard or choose_shard(len(paths)))
        levels = seen.levels.to_attributes()
        about = {"stages": list(settings.stages), "images_digest": images_digest(paths), "levels": levels}
        group.update_attributes(about | {"sizes": [list(size) for size in seen.sizes], "ready": True})
    cache.refresh_digests()
    return cache


def _create(store: str, attributes: Attributes) -> Cache:
    if holds_anything(store):
        raise UserError(f"{store} exists and is no cache of ours: choose another --store")
    try:
        # With its attributes at once: a run that is killed at any moment leaves a cache or nothing.
        return Cache(store, create_group(store, dict(attributes)))
    except UserError:
        if found := find_cache(store, "r+"):  # another run was faster
            return found
        raise


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # a checkout need not be installed
            versions[name] = version(name)
    return versions


def _refuse_others(cache: Cache, dataset: str, settings: PrecomputeSettings, weights: str) -> None:
    # Weights count by their digest: the same file under another path is no other setting.
    differences = [line for line in cache.settings.differences(settings) if not line.startswith("weights:")]
    found = ("dataset", cache.dataset, dataset), ("weights", str(cache.group.attrs["weights"]), weights)
    differences += [f"{name}: {mine}, not {yours}" for name, mine, yours in found if mine != yours]
    if differences:
        raise UserError(
            f"{cache.store} was made with other settings ({'; '.join(differences)}):"
            " give those, choose another --store, or start again with --overwrite"
        )


def _create_category(
    cache: Cache, name: str, paths: Sequence[str], settings: PrecomputeSettings, chunks_per_shard: int
) -> zarr.Group:
    group = cache.group.create_group(name, overwrite=True)
    for key, (shape, dtype, dimensions) in layout(len(paths), settings).items():
        create_array(group, key, shape, dtype, dimensions, chunks_per_shard)
    create_stamps(group, len(paths), chunks_per_shard)
    chunks = (-(-len(paths) // CHUNK),)
    group.create_array("done", shape=chunks, chunks=(chunks_per_shard,), dtype="uint8", dimension_names=("block",))
    group["paths"][:] = np.array(paths, dtype=object)  # type: ignore[index]
    return group
