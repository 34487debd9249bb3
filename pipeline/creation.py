"""Caches are created here, found again by the same command, refused to others, and said to be complete."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from pipeline.errors import UserError
from pipeline.remote import is_url, open_filesystem
from pipeline.settings import PrecomputeSettings
from pipeline.store import (
    BLOCK,
    FORMAT,
    Attributes,
    array,
    cache_settings,
    category_names,
    done_blocks,
    layout,
    open_cache,
    open_category,
    open_group,
)

# From so many images on a category is written in shards of so many blocks: docs/cache.md says why.
LARGE = 100_000
_SHARD = 8
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "zarr", "dask", "cutswap")


def choose_unit(images: int) -> int:
    """Blocks a write unit of a category that is created with so many images."""
    return _SHARD if images >= LARGE else 1


def prepare_cache(
    store: str,
    *,
    dataset: str,
    image_root: str,
    categories: Mapping[str, Sequence[str]],
    settings: PrecomputeSettings,
    weights: str,
    overwrite: bool,
    unit: int | None = None,
) -> str:
    """Create a cache, or open the one there is to go on with it; returns its id.

    categories: name to the relative paths of its normal images, in their order. weights: the weights' digest.
    overwrite: the named categories start again, and with them the whole cache where it holds no others. unit: blocks a
    write unit of categories that are created; None chooses by their number of images.
    Raises UserError where something else lies at `store`, or a cache with other settings. The images of a category that
    exists are left as they are: `pipeline.growth` brings them up to date.
    """
    attributes: Attributes = {"dataset": dataset, "settings": settings.to_attributes(), "weights": weights}
    attributes |= {"format": FORMAT, "cache_id": uuid.uuid4().hex}
    root = _open_or_create(store, attributes)
    alone = overwrite and set(category_names(root)) <= set(categories)
    if not alone:
        _refuse_others(store, root, dataset, settings, weights)
    for name in category_names(root):
        if overwrite and name in categories:
            # Before anything of it is deleted: killed half-way, it must not pass for whole.
            root[name].update_attributes({"ready": False})
    if alone:
        root.attrs.put(attributes)
    _update(root, {"root": image_root, "versions": _versions()})
    missing = [name for name in categories if name not in category_names(root)]
    if missing:
        mark_incomplete(root)
    for name in missing:
        _create_category(root, name, categories[name], settings, unit or choose_unit(len(categories[name])))
    list_images_digests(root)
    return str(root.attrs["cache_id"])


def mark_incomplete(root: zarr.Group) -> None:
    """Say that blocks are to come, until `finish_cache` says otherwise."""
    _update(root, {"complete": False})


def list_images_digests(root: zarr.Group) -> None:
    """Bring the root's list of its categories' `images_digest` up to date."""
    digests = {name: root[name].attrs["images_digest"] for name in category_names(root)}
    _update(root, {"images_digest": digests})


def finish_cache(store: str) -> bool:
    """Set `complete` where every block of every category is done; returns it."""
    root = open_cache(store, "r+")
    complete = all(bool(done_blocks(open_category(root, name)).all()) for name in category_names(root))
    _update(root, {"complete": complete})
    return complete


def _update(root: zarr.Group, attributes: Attributes) -> None:
    # A finished cache is not written to: it may lie where this run can only read.
    if any(root.attrs.get(name) != value for name, value in attributes.items()):
        root.update_attributes(attributes)


def images_digest(paths: Sequence[str]) -> str:
    """SHA-256 of the relative paths, in order, each ended by a zero byte."""
    return hashlib.sha256("".join(f"{path}\0" for path in paths).encode()).hexdigest()


def _open_or_create(store: str, attributes: Attributes) -> zarr.Group:
    if open_group(store, "r+") is None:
        if _holds_anything(store):
            raise UserError(f"{store} exists and is no cache of ours: choose another --store")
        # With its attributes from the start: killed at any moment, it is a cache or nothing.
        open_group(store, "w-", attributes)
    return open_cache(store, "r+")


def _holds_anything(store: str) -> bool:
    if is_url(store) and not store.startswith("file://"):
        filesystem, base = open_filesystem(store)
        try:
            return bool(filesystem.ls(base, detail=False))
        except FileNotFoundError:
            return False
    local = Path(store.removeprefix("file://"))
    return local.is_dir() and any(local.iterdir())


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # a checkout need not be installed
            versions[name] = version(name)
    return versions


def _refuse_others(store: str, root: zarr.Group, dataset: str, settings: PrecomputeSettings, weights: str) -> None:
    # Weights count by their digest: the same file under another path is no other setting.
    differences = [line for line in cache_settings(root).differences(settings) if not line.startswith("weights:")]
    for name, mine, yours in (("dataset", root.attrs["dataset"], dataset), ("weights", root.attrs["weights"], weights)):
        if mine != yours:
            differences.append(f"{name}: {mine}, not {yours}")
    if differences:
        raise UserError(
            f"{store} was made with other settings ({'; '.join(differences)}):"
            " give those, choose another --store, or start again with --overwrite"
        )


def _create_category(
    root: zarr.Group, name: str, paths: Sequence[str], settings: PrecomputeSettings, unit: int
) -> None:
    category = root.create_group(name, overwrite=True)
    for key, (shape, dtype, dimensions) in layout(len(paths), settings).items():
        category.create_array(
            key,
            shape=shape,
            chunks=(BLOCK, *shape[1:]),
            shards=None if unit == 1 else (unit * BLOCK, *shape[1:]),
            dtype=str if dtype == "str" else dtype,
            compressors=ZstdCodec(level=1),
            dimension_names=dimensions,
        )
    blocks = (-(-len(paths) // BLOCK),)
    category.create_array("done", shape=blocks, chunks=(unit,), dtype="uint8", dimension_names=("block",))
    array(category, "paths")[:] = np.array(paths, dtype=object)
    category.update_attributes({"stages": list(settings.stages), "images_digest": images_digest(paths), "ready": True})
