"""Which normals of a category are trained on, and which are held out for scales and thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.category import CachedCategory
from pipeline.data.census import Note
from pipeline.data.listing import path_digest
from pipeline.errors import UserError
from train.made_of import Files

# A detector needs two held-out normals for its scales, and two normals to fit to.
_LEAST_NORMALS = 4


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of the normals to train on, and of those held out; usable: all that there were then.

    files: which part each normal of the two is in, its row, path and digest, as they were then.
    """

    trained_on: NDArray[np.int64]
    held_out: NDArray[np.int64]
    usable: NDArray[np.int64]
    files: Files

    def holds(self, category: CachedCategory) -> bool:
        """Whether the normals of the category are still the same."""
        same = np.array_equal(self.usable, category.usable)
        return same and self.files == _files_of(category, self.trained_on, self.held_out)


def hold_out(paths: Sequence[str], share: float) -> NDArray[np.bool_]:
    """(N,) bool: which normals are held out: those of the lowest digests of their paths, at least two.

    The same images whatever the seed, the order and the settings. ValueError where fewer than four are given.
    """
    if len(paths) < _LEAST_NORMALS:
        raise ValueError(f"{len(paths)} normal images cannot be split: {_LEAST_NORMALS} or more can")
    digests = list(map(path_digest, paths))
    count = min(max(2, round(share * len(paths))), len(paths) - 2)
    held = np.zeros(len(paths), bool)
    held[sorted(range(len(paths)), key=digests.__getitem__)[:count]] = True
    return held


def split_rows(category: CachedCategory, rows: NDArray[np.int64], held_out: float) -> Split:
    """Of some rows of normals those to train on, and those held out, by `hold_out`."""
    paths = category.paths
    held = hold_out([paths[row] for row in rows], held_out)
    return Split(rows[~held], rows[held], category.usable, _files_of(category, rows[~held], rows[held]))


def _files_of(category: CachedCategory, trained_on: NDArray[np.int64], held_out: NDArray[np.int64]) -> Files:
    paths, digests = category.paths, category.digests
    kinds = (("trained on", trained_on), ("held out", held_out))
    return Files.of((kind, row, paths[row], digests[row]) for kind, rows in kinds for row in rows.tolist())


def split_all(
    categories: Iterable[CachedCategory], store: str, held_out: float, *, asked: bool
) -> tuple[dict[str, Split], tuple[Note, ...]]:
    """The split of each category that has enough normals, and a note of each that has not.

    asked: whether these categories were asked for by name; then each must have enough. UserError where one has not, or
    none has, and for a pending chunk.
    """
    splits: dict[str, Split] = {}
    few: list[Note] = []
    for category in categories:
        if not category.complete:
            raise UserError(f"{category.name} is not complete in {store}: run precompute again to finish it")
        if len(rows := category.usable) >= _LEAST_NORMALS:
            splits[category.name] = split_rows(category, rows, held_out)
            continue
        few.append(Note(category.name, len(rows), f"normal images: too few to train on, give {_LEAST_NORMALS} or more"))
    if few and (asked or not splits):
        raise UserError(f"{store}: {few[0].line}")
    return splits, tuple(few)
