"""Which normals show the same part: they are trained on or held out together, since a copy is no unseen part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.errors import UserError
from train.features.extract import Images
from train.near_copies import near_copies

# Beyond so many images only equal files are found: near copies of these take about half a minute.
MOST_COMPARED = 2_000

Labels = NDArray[np.int64]


def group_of(images: Images, digests: Sequence[str]) -> Labels:
    """(N,) the group of each image, counted from 0 in the order of first members.

    images: (S,S,3) uint8 as they are in the cache. digests: of their files, "" where unknown. Files that are equal,
    images that are equal, and near copies (`train.near_copies.near_copies` has the rule) share a group, and so do
    copies of copies. Of more than `MOST_COMPARED` images only the digests are compared, and the images are not read.
    """
    alike = _equal(digests)
    if len(digests) <= MOST_COMPARED:
        pixels = list[str]()
        near = near_copies(_noted(images, pixels))
        alike = np.concatenate([alike, _equal(pixels), near])
    return _components(len(digests), alike)


def group_by(paths: Sequence[str], pattern: str) -> Labels:
    """(N,) the group of each image by its path: "folder" takes the folder it lies in, else a regular expression.

    Of an expression the first group counts, or the whole match where it has none; a path without a match is a group of
    its own. UserError for an expression that is none, or that matches no path.
    """
    if pattern == "folder":
        return _numbered([str(PurePosixPath(path).parent) for path in paths])
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--group {pattern!r} is no regular expression: {error}; or give `folder`") from None
    keys: list[object] = []
    for place, path in enumerate(paths):
        match = compiled.search(path)
        named = match and match.group(1 if compiled.groups else 0)
        # A number is equal to no text, so that such a path is alone.
        keys.append(place if named is None else named)
    if all(isinstance(key, int) for key in keys):
        example = f", such as {paths[0]}" if paths else ""
        raise UserError(f"--group {pattern!r} matches none of {len(paths)} paths{example}: change the expression")
    return _numbered(keys)


def groups_line(labels: Labels) -> str | None:
    """What the groups say in one sentence, None where every image is alone."""
    sizes = np.bincount(labels)
    if not len(sizes) or sizes.max() == 1:
        return None
    several = sizes[sizes > 1]
    size = f"about {several.mean():.0f}" if several.min() < several.max() else str(several[0])
    groups = f"groups of {size} are" if len(several) > 1 else f"a group of {size} is"
    parts = "part" if len(sizes) == 1 else "parts"
    return f"{len(labels)} images look like {len(sizes)} {parts}: {groups} kept together"


def _noted(images: Images, pixels: list[str]) -> Images:
    """The images as they come; `pixels` gains the digest of each."""
    for image in images:
        pixels.append(sha256(image.tobytes()).hexdigest())
        yield image


def _equal(digests: Sequence[str]) -> NDArray[np.int64]:
    """(M,2) each image of a digest that came before, with the first of them."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(digest, place), place) for place, digest in enumerate(digests) if digest]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _components(count: int, pairs: NDArray[np.int64]) -> Labels:
    """The connected components of so many images, where pairs (M,2) are joined."""
    joined = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return _numbered(connected_components(joined, directed=False)[1].tolist())


def _numbered(keys: Sequence[object]) -> Labels:
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
