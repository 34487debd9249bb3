"""Which normals of a category a learner does not see, and in which folds all of them are scored as new ones are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.category import CachedCategory
from pipeline.data.census import Note, notes_of
from pipeline.data.listing import path_digest
from pipeline.errors import UserError
from train.made_of import Files

# A detector needs two held-out normals for its scales, and two normals to fit to.
LEAST_NORMALS = 4
# A learner's scale and the trust in it rest on so many held-out normals, where there are three times as many.
_LEAST_HELD_OUT = 10
# Of more normals the default share, 15 %, is 99 or more: a threshold for 1 % rests on them as well as on all.
MOST_FOR_FOLDS = 660


@dataclass(frozen=True, eq=False)
class Normals:
    """Rows (n,) of a category's normals that a run uses; usable: all that there were then.

    files: the row, path and digest of each, as they were then.
    """

    rows: NDArray[np.int64]
    usable: NDArray[np.int64]
    files: Files

    @classmethod
    def of(cls, category: CachedCategory, rows: NDArray[np.int64]) -> Normals:
        """Some normals of a category as they are now."""
        return cls(rows, category.usable, _files_of(category, rows))

    def holds(self, category: CachedCategory) -> bool:
        """Whether the normals of the category are still the same."""
        return np.array_equal(self.usable, category.usable) and self.files == _files_of(category, self.rows)


@dataclass(frozen=True, eq=False)
class Split:
    """Of n normals, by their place: held_out (n,) bool, which no learner sees; folds: places that are fitted without.

    parts (n,) int64: equal for images of one part, which neither puts asunder. Each fold in turn is scored by what is
    fitted to all but it: the folds are of all normals, or there is one, of those held out.
    """

    parts: NDArray[np.int64]
    held_out: NDArray[np.bool_]
    folds: tuple[NDArray[np.int64], ...]


def hold_out(keys: Sequence[str], parts: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """(n,) bool: which normals are held out: whole parts, those of the lowest digests of their keys, such as paths.

    parts: (n,) labels. About the share is held out, and 10 where there are 30 or more, but at least two, and at most
    half of the parts. The same normals whatever the seed, the order and the settings. ValueError for fewer than four.
    """
    ordered = _by_digest(keys, parts)
    count = max(2, round(share * len(keys)), min(_LEAST_HELD_OUT, len(keys) // 3))
    held = np.zeros(len(keys), bool)
    for places in ordered[: len(ordered) // 2]:
        if held.sum() >= count:
            break
        held[places] = True
    return held


def split(keys: Sequence[str], parts: NDArray[np.int64], share: float, folds: int) -> Split:
    """The split of normals by `hold_out`, and so many folds of about the same size, or as many as there are parts.

    There is one fold, of those held out, where it is asked for, and for more than 660 normals. ValueError as there.
    """
    held_out = hold_out(keys, parts, share)
    if folds == 1 or len(keys) > MOST_FOR_FOLDS:
        return Split(parts, held_out, (np.flatnonzero(held_out),))
    ordered = _by_digest(keys, parts)
    numbered = (ordered[start::folds] for start in range(min(folds, len(ordered))))
    return Split(parts, held_out, tuple(np.sort(np.concatenate(places)) for places in numbered))


def _by_digest(keys: Sequence[str], parts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The places of each part; parts by the lowest digest of a key of theirs."""
    if len(keys) < LEAST_NORMALS:
        raise ValueError(f"{len(keys)} normal images cannot be split: {LEAST_NORMALS} or more can")
    digests = list(map(path_digest, keys))
    places: dict[int, list[int]] = {}
    for place in sorted(range(len(keys)), key=digests.__getitem__):
        places.setdefault(int(parts[place]), []).append(place)
    return [np.array(of_part, np.int64) for of_part in places.values()]


def _files_of(category: CachedCategory, rows: NDArray[np.int64]) -> Files:
    paths, digests = category.paths, category.digests
    return Files.of((row, paths[row], digests[row]) for row in rows.tolist())


def choose_normals(
    categories: Iterable[CachedCategory], store: str, excluded: frozenset[str] = frozenset(), *, asked: bool
) -> tuple[dict[str, Normals], tuple[Note, ...]]:
    """The normals of each category that has enough, and notes of those that have not and of images left out.

    excluded: paths, as the cache has them, of normals to leave out. asked: whether these categories were asked for by
    name; then each must have enough. UserError where one has not, or none has, for a pending chunk, and for an excluded
    path that is in no category.
    """
    chosen: dict[str, Normals] = {}
    few, left_out, unknown = list[Note](), list[Note](), set(excluded)
    for category in categories:
        if not category.complete:
            raise UserError(f"{category.name} is not complete in {store}: run precompute again to finish it")
        rows = category.usable
        if excluded:
            paths = category.paths
            out = np.array([paths[row] in excluded for row in rows], np.bool_)
            unknown.difference_update(paths)
            left_out += notes_of(category.name, {"normals left out by --exclude": [paths[row] for row in rows[out]]})
            rows = rows[~out]
        if len(rows) >= LEAST_NORMALS:
            chosen[category.name] = Normals.of(category, rows)
            continue
        what = f"normal images: too few to train on, give {LEAST_NORMALS} or more"
        few.append(Note(category.name, len(rows), what))
    if unknown:
        raise UserError(
            f"--exclude names {len(unknown)} images that are no normals of {store}, the first {min(unknown)}: give"
            " paths as normals.csv of a run has them"
        )
    if few and (asked or not chosen):
        raise UserError(f"{store}: {few[0].line}")
    return chosen, (*few, *left_out)
