"""Where the cache and the runs of a data set lie unless the user says otherwise."""

from __future__ import annotations

from pathlib import Path

from pipeline.cache.cache import find_cache
from pipeline.data.datasets import root_of
from pipeline.data.listing import last_part

CACHES = Path("data/cache")


def name_of(dataset: str, image_root: str | None) -> str:
    """What the cache and the runs of a data set are called: the name of its folder, or its own at its usual place.

    image_root: None for the usual one, ``data/<dataset>``.
    """
    return dataset if image_root is None or root_of(dataset, image_root) == root_of(dataset) else last_part(image_root)


def cache_of(dataset: str, image_root: str | None) -> str:
    """The cache of a data set, ``data/cache/<name>.zarr``.

    Earlier versions called it after the data set, whatever its folder: such a cache of this very root is still used.
    """
    named, earlier = (CACHES / f"{name}.zarr" for name in (name_of(dataset, image_root), dataset))
    if not named.exists() and earlier.exists() and (found := find_cache(str(earlier))):
        named = earlier if found.image_root == root_of(dataset, image_root) else named
    return named.as_posix()


def runs_of(dataset: str, image_root: str) -> Path:
    """The run folder of a cache's data set, ``runs/<name>``."""
    return Path("runs", name_of(dataset, image_root))
