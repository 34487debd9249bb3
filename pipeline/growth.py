"""Bring a category of a cache up to date with its images: append new ones, drop vanished ones, redo changed ones.

Nothing else moves: a new image goes behind all others, and a dropped one leaves an empty row without a path, so that
the rows, and with them the pairs, of all other images stay what they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.creation import images_digest
from pipeline.errors import UserError
from pipeline.progress import progress
from pipeline.roots import read_file
from pipeline.store import BLOCK, DONE, GROWN, array, read_all

# Paths that a line names; the others are counted.
_NAMED = 10
_READERS = 8


@dataclass(frozen=True)
class Changes:
    """Paths of the images that joined a category, whose files are others than before, and that left it."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    vanished: tuple[str, ...]

    def lines(self, name: str) -> list[str]:
        """A line for the new images of category `name`, one for the changed and one for the vanished, if any."""
        kinds = (
            (f"{name}: {len(self.added)} new images", self.added),
            (f"{name}: {len(self.changed)} images have changed and are computed again", self.changed),
            (f"{name}: {len(self.vanished)} images have vanished and are dropped", self.vanished),
        )
        return [f"{line}: {_listed(paths)}" for line, paths in kinds if paths]


def refuse_vanished(name: str, category: zarr.Group, root: str, paths: Sequence[str]) -> None:
    """Raise UserError where the category holds images that are not among `paths` below `root`."""
    gone = sorted({str(path) for path in read_all(category, "paths")} - {"", *paths})
    if gone:
        raise UserError(
            f"{name}: {len(gone)} cached images have vanished from {root}: {_listed(gone)};"
            " restore them, or give --update to drop them"
        )


def update_category(category: zarr.Group, root: str, paths: Sequence[str], update: bool) -> Changes:
    """Make the rows of `category` those of `paths` below `root`, which new images join; returns what changed.

    update: also drop images that have vanished, and mark those whose files have changed, or could not be read, to be
    computed again, which reads every file. Without it such images stay as they are.
    """
    stored = [str(path) for path in read_all(category, "paths")]
    known, wanted = set(stored), set(paths)
    gone = changed = np.array([], np.int64)
    digests: list[str] = []
    if update:
        digests = [str(digest) for digest in read_all(category, "sha256")]
        gone = np.array([row for row, path in enumerate(stored) if path and path not in wanted], np.int64)
        _empty(category, gone, ("paths", "valid", "sha256"))
        changed = _changed(category, root, [path if path in wanted else "" for path in stored], digests)
        _empty(category, changed, ("valid", "sha256"))
        _set_open(category, np.unique(changed // BLOCK))
    added = [path for path in paths if path not in known]
    if added:
        _append(category, len(stored), added)
    if added or len(gone):
        digest = images_digest([str(path) for path in read_all(category, "paths")])
        category.update_attributes({"images_digest": digest})
    again = (stored[row] for row in changed if digests[row])
    return Changes(tuple(added), tuple(again), tuple(stored[row] for row in gone))


def open_rows(states: NDArray[np.uint8], paths: NDArray[Any], digests: NDArray[Any]) -> NDArray[np.int64]:
    """The rows of some blocks that must be computed: none of a done one, all of one that is not, if they have a path.

    states: the blocks' `done`; paths, digests: their rows of `paths` and `sha256`.
    """
    state = np.repeat(states, BLOCK)[: len(paths)]
    return np.flatnonzero((paths != "") & (state != DONE) & ~((state == GROWN) & (digests != "")))


def _append(category: zarr.Group, count: int, added: Sequence[str]) -> None:
    total = count + len(added)
    if count % BLOCK:
        _set_open(category, np.array([count // BLOCK]))
    for name, values in category.arrays():
        rows = -(-total // BLOCK) if name == "done" else total
        values.resize((rows, *values.shape[1:]))
    # Last, so that a run killed before this leaves rows without a path, which count as dropped.
    array(category, "paths")[count:] = np.array(added, dtype=object)


def _changed(category: zarr.Group, root: str, paths: Sequence[str], digests: Sequence[str]) -> NDArray[np.int64]:
    """Rows whose file has another digest than the one they were computed from, or could not be read then."""

    def differs(row: int) -> bool:
        try:
            return not digests[row] or hashlib.sha256(read_file(root, paths[row])).hexdigest() != digests[row]
        except OSError:
            return True

    rows = [row for row, path in enumerate(paths) if path]
    found = []
    with ThreadPoolExecutor(_READERS) as pool, progress(f"check {category.basename}", len(rows), "images") as advance:
        for row, new in zip(rows, pool.map(differs, rows), strict=True):
            found += [row] if new else []
            advance(1)
    return np.array(found, np.int64)


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return f"{', '.join(paths[:_NAMED])}{more}"


def _empty(category: zarr.Group, rows: NDArray[np.int64], names: Sequence[str]) -> None:
    for name in names if len(rows) else ():
        values = read_all(category, name)
        values[rows] = "" if name in ("paths", "sha256") else 0
        array(category, name)[:] = values


def _set_open(category: zarr.Group, blocks: NDArray[np.int64]) -> None:
    states = read_all(category, "done")
    states[blocks] = np.where(states[blocks] == 0, 0, GROWN)  # one that was never done is computed whole
    array(category, "done")[:] = states
