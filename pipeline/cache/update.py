"""Update a category of a cache: append new images, drop vanished ones, compute changed ones again.

No other row moves: a new image gets a row at the end, and a dropped one leaves an empty row without a path. So the
rows of all other images, and their pairs, stay the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.cache import Cache
from pipeline.cache.category import CachedCategory
from pipeline.cache.identity import changed_rows
from pipeline.cache.layout import CHUNK, GROWN, images_digest, locate
from pipeline.data.content import stamps
from pipeline.data.datasets import Dataset
from pipeline.errors import UserError

# Paths that a line names; the others are counted.
_NAMED = 10


def update_cache(cache: Cache, dataset: Dataset, update: bool) -> None:
    """Make the rows of the cached categories match the data set, and name on standard error what changed.

    update: also drop images that have vanished, and mark those whose files have changed, or could not be read, to be
    computed again, which reads every file. Without it there are none, see `refuse_changes`.
    """
    listed = [(cache[one.name], [sample.path for sample in one.train]) for one in dataset.categories]
    if update:
        cache.update_attributes(complete=False)
    for category, paths in listed:
        for line in _update_category(category, dataset.image_root, paths, update):
            # Now, because a run that is killed later could not name them.
            print(line, file=sys.stderr, flush=True)
            cache.update_attributes(complete=False)
        _stamp(category, dataset.image_root, update)
    cache.refresh_digests()


def refuse_changes(cache: Cache, dataset: Dataset, *, compared: bool) -> None:
    """UserError for images of the cached categories that have vanished or changed; nothing is written.

    Only files of another size or time than before are read, and none where all were compared just now.
    """
    names = cache.names()
    for one in dataset.categories:
        if one.name in names:
            _refuse_vanished(cache[one.name], dataset.image_root, [sample.path for sample in one.train])
            if not compared:
                _refuse_changed(cache[one.name], dataset.image_root)


def _refuse_changed(category: CachedCategory, image_root: str) -> None:
    """UserError where a file has another content than the one that its row was computed from."""
    paths, digests, known = category.paths, category.digests, category.stamps
    if known is None:
        if any(digests):
            told = "this cache of an earlier version does not tell whether images have changed; --update reads them all"
            print(f"{category.name}: {told}", file=sys.stderr, flush=True)
        return
    found = stamps(image_root, paths)
    # Of one that is not computed yet, or could not be read, nothing is known.
    doubtful = [stamp != now and bool(digest) for stamp, now, digest in zip(known, found, digests, strict=True)]
    looked_at = [path if doubt else "" for path, doubt in zip(paths, doubtful, strict=True)]
    changed = [paths[row] for row in changed_rows(category, image_root, looked_at, digests)]
    if changed:
        raise UserError(
            f"{category.name}: {len(changed)} images have changed since they were computed: {_listed(changed)};"
            " give --update to compute them again, or restore them"
        )


def _stamp(category: CachedCategory, image_root: str, update: bool) -> None:
    if update or category.stamps is not None:
        category.write_stamps(stamps(image_root, category.paths))


def _refuse_vanished(category: CachedCategory, image_root: str, paths: Sequence[str]) -> None:
    gone = sorted(set(category.paths) - {"", *paths})
    if gone:
        raise UserError(
            f"{category.name}: {len(gone)} cached images have vanished from {image_root}: {_listed(gone)};"
            " restore them, or give --update to drop them"
        )


def _update_category(category: CachedCategory, image_root: str, paths: Sequence[str], update: bool) -> list[str]:
    """Update one category; a line each for images that joined, changed and left."""
    stored = category.paths
    known, wanted = set(stored), set(paths)
    gone = changed = np.array([], np.int64)
    digests: list[str] = []
    if update:
        digests = category.digests
        gone = np.array([row for row, path in enumerate(stored) if path and path not in wanted], np.int64)
        _empty(category, gone, ("paths", "valid", "sha256"))
        changed = changed_rows(category, image_root, [path if path in wanted else "" for path in stored], digests)
        _empty(category, changed, ("valid", "sha256"))
        _set_pending(category, np.unique(locate(changed)[0]))
    added = [path for path in paths if path not in known]
    if added:
        _append(category, len(stored), added)
    if added or len(gone):
        category.group.update_attributes({"images_digest": images_digest(category.paths)})
    kinds = (
        ("new images", added),
        ("images have changed and are computed again", [stored[row] for row in changed if digests[row]]),
        ("images have vanished and are dropped", [stored[row] for row in gone]),
    )
    return [f"{category.name}: {len(some)} {what}: {_listed(some)}" for what, some in kinds if some]


def _append(category: CachedCategory, count: int, added: Sequence[str]) -> None:
    total = count + len(added)
    if count % CHUNK:
        _set_pending(category, np.array([count // CHUNK]))
    for name, values in category.group.arrays():
        rows = -(-total // CHUNK) if name == "done" else total
        values.resize((rows, *values.shape[1:]))
    # Last, so that a run killed before this leaves rows without a path, which count as dropped.
    category.array("paths")[count:] = np.array(added, dtype=object)


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return f"{', '.join(paths[:_NAMED])}{more}"


def _empty(category: CachedCategory, rows: NDArray[np.int64], names: Sequence[str]) -> None:
    for name in names if len(rows) else ():
        values = category.read(name)
        values[rows] = "" if name in ("paths", "sha256") else 0
        category.array(name)[:] = values


def _set_pending(category: CachedCategory, chunks: NDArray[np.int64]) -> None:
    states = category.read("done")
    states[chunks] = np.where(states[chunks] == 0, 0, GROWN)  # one that was never done is computed whole
    category.array("done")[:] = states
