"""Whether a root holds the images that a cache was made of: by their content, never by their names."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.cache import Cache
from pipeline.cache.category import CachedCategory
from pipeline.data.content import read_file
from pipeline.data.datasets import Dataset, find_categories
from pipeline.errors import UserError
from pipeline.progress import progress

_READERS = 8


def refuse_other_data(cache: Cache, dataset: Dataset) -> bool:
    """UserError where a data set at another root than the cache's is not the same one, moved; returns if it has moved.

    It is the same if in every category of the cache, also in those not asked for, there is a path that both have, and
    each such path has the same SHA-256; this is said on standard error. A cache without categories may be of any root.
    Nothing is written.
    """
    names, root = cache.names(), dataset.image_root
    if not names or root == cache.image_root:
        return False
    listed = find_categories(dataset.name, root).layout.categories
    there = {one.name: {sample.path for sample in one.train} for one in listed}
    shared, differing, missing = 0, list[str](), list[str]()
    for name in names:
        cached = cache[name]
        paths, digests = cached.paths, cached.digests
        known = [
            path if path in there.get(name, ()) and digest else "" for path, digest in zip(paths, digests, strict=True)
        ]
        if not any(known) and any(digests):
            missing.append(name)
        shared += sum(path != "" for path in known)
        differing += [paths[row] for row in changed_rows(cached, root, known, digests)]
    if differing or missing:
        count = f"{len(differing)} of {shared} images differ"
        why = f"{count}, such as {differing[0]}" if differing else f"no image of {missing[0]} is the same"
        raise UserError(
            f"{cache.store} was made of {cache.image_root}, and {root} holds other images ({why}): "
            "give --store with another path, or --overwrite to start this cache again"
        )
    print(
        f"{cache.store}: the images of {cache.image_root} now lie in {root}: {shared} are the same",
        file=sys.stderr,
        flush=True,
    )
    return True


def changed_rows(
    category: CachedCategory, image_root: str, paths: Sequence[str], digests: Sequence[str]
) -> NDArray[np.int64]:
    """Rows whose file has another digest than the one they were computed from, or could not be read then.

    paths: of every row, "" for one that is not looked at.
    """

    def differs(row: int) -> bool:
        try:
            return not digests[row] or hashlib.sha256(read_file(image_root, paths[row])).hexdigest() != digests[row]
        except OSError:
            return True

    rows = [row for row, path in enumerate(paths) if path]
    found = []
    with ThreadPoolExecutor(_READERS) as pool, progress(f"check {category.name}", len(rows), "images") as advance:
        for row, new in zip(rows, pool.map(differs, rows), strict=True):
            found += [row] if new else []
            advance(1)
    return np.array(found, np.int64)
