"""What a cache holds, as data: a summary of its categories and stages, and single images with all that was computed.

Only done chunks are read, and always whole. The summary of a half-filled cache covers its done chunks.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.cache import open_cache
from pipeline.cache.category import CachedCategory
from pipeline.cache.layout import Arrays, locate
from pipeline.data.census import copies
from pipeline.data.levels import Levels
from pipeline.errors import RunError, UserError

_RECORD = ("images", "saliency", "target_class", "clusters", "centroids", "pairs", "relaxed")
_NAMED = 5


@dataclass(frozen=True)
class StageSummary:
    """Means of one stage's maps over the images computed so far; None where there are none.

    flat: maps without any saliency; they are left out of the two means that follow. top_share: share of the map that
    the top cluster holds, 0..1. centroids: K, rising, 0..1. relaxed_share: share of the patch pairs that needed the
    rule for small clusters, 0..1.
    """

    name: str
    flat: int
    top_share: float | None
    centroids: tuple[float, ...] | None
    relaxed_share: float | None


@dataclass(frozen=True)
class CategorySummary:
    """One category: images listed and computed, bytes stored, and the paths that could not be read.

    blocks, blocks_done: chunks, under their older name, which `inspect --json` prints. levels: what is white in images
    of more than 8 bits, None in a cache of an earlier version. copies: the normals that are copies of an earlier one.
    """

    name: str
    images: int
    computed: int
    skipped: tuple[str, ...]
    blocks: int
    blocks_done: int
    stored_bytes: int
    stages: tuple[StageSummary, ...]
    levels: Levels | None
    copies: tuple[str, ...]


@dataclass(frozen=True)
class CacheSummary:
    """A cache and the categories asked for; `root` is where its source images were found.

    left_out: what else lay there at the last run, as JSON values of `pipeline.data.census.Note`; None where a cache of
    an earlier version does not tell.
    """

    store: str
    dataset: str
    root: str
    complete: bool
    settings: dict[str, Any]
    weights: str
    versions: dict[str, str]
    left_out: list[dict[str, Any]] | None
    categories: tuple[CategorySummary, ...]


@dataclass(frozen=True)
class ImageRecord:
    """All that the cache holds of one image; shapes and types: `pipeline.cache.layout` without the first axis."""

    category: str
    row: int
    path: str
    stages: tuple[str, ...]
    image: NDArray[np.uint8]
    saliency: NDArray[np.uint8]
    target_class: int
    clusters: NDArray[np.uint8]
    centroids: NDArray[np.float32]
    pairs: NDArray[np.int16]
    relaxed: NDArray[np.uint8]


def summarise(store: str, categories: Sequence[str] = ()) -> CacheSummary:
    """Summarise the cache at `store`, only of `categories` if any are given.

    UserError where it or they are not there, RunError where a chunk cannot be read.
    """
    cache = open_cache(store)
    chosen = cache.choose(categories)
    return CacheSummary(
        store=store,
        dataset=cache.dataset,
        root=cache.image_root,
        complete=cache.complete,
        settings=cache.settings.to_attributes(),
        weights=str(cache.attributes["weights"]),
        versions=dict(cache.attributes["versions"]),
        left_out=cache.attributes.get("left_out"),
        categories=tuple(map(_summarise_category, chosen)),
    )


def find_image(store: str, wanted: str, categories: Sequence[str] = ()) -> tuple[str, int]:
    """Category and row of the image that `wanted` names: a relative path, else a row number, else a part of one path.

    Of several paths with that part, the one whose file name it is wins. UserError, with suggestions, where no image
    or more than one fits; a row number fits in every category that has so many rows.
    """
    chosen = open_cache(store).choose(categories)
    listed = [(category.name, row, path) for category in chosen for row, path in enumerate(category.paths)]
    fits = (
        [one for one in listed if one[2] == wanted],
        [one for one in listed if wanted.isdecimal() and len(wanted) < 20 and one[1] == int(wanted)],
        [one for one in listed if one[2].endswith(f"/{wanted}")],
        [one for one in listed if wanted in one[2]],
    )
    found = next((fit for fit in fits if fit), [])
    if len(found) == 1:
        return found[0][:2]
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        named = ", ".join(path for *_, path in found[:_NAMED])
        raise UserError(f"--image {wanted} fits {len(found)} images: {named}{more}; give a whole path or --category")
    raise UserError(f"--image {wanted} is no image of {store}: {_suggestion(wanted, listed)}")


def read_image(store: str, category: str, row: int) -> ImageRecord:
    """One image of a cache; UserError where its chunk is not done yet or the image could not be read."""
    found = open_cache(store)[category]
    if row in found.usable:
        return next(read_images(found, [row]))
    path = found.paths[row]
    if found.done[locate(np.array(row))[0]]:
        raise UserError(f"{path} was skipped, it could not be read: fix the file and run `precompute --update`")
    raise UserError(f"{path} is not computed yet: run `precompute` again, it continues where it stopped")


def read_images(category: CachedCategory, rows: Sequence[int]) -> Iterator[ImageRecord]:
    """The images of rising `rows`, which must be usable ones; each chunk is read once, and one is held at a time."""
    held, arrays = -1, Arrays()
    for row, chunk, place in zip(rows, *locate(np.array(rows, np.int64)), strict=True):
        if chunk != held:
            held, arrays = chunk, _read(category, chunk, [*_RECORD, "paths"])
        path, *values = (arrays[name][place] for name in ("paths", *_RECORD))
        image, saliency, target, *rest = values
        stages = category.settings.stages
        yield ImageRecord(category.name, int(row), str(path), stages, image, saliency, int(target), *rest)


def top_shares(clusters: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share 0..1 of each map (...,h,w) that its highest cluster holds: the cells that pairs are drawn from."""
    shares: NDArray[np.float64] = (clusters == clusters.max((-2, -1), keepdims=True)).mean((-2, -1))
    return shares


def _summarise_category(category: CachedCategory) -> CategorySummary:
    done = category.done
    shares, centroids, relaxed, skipped = [], [], [], list[str]()
    for chunk in category.done_chunks():
        arrays = _read(category, chunk, ["paths", "valid", "clusters", "centroids", "relaxed"])
        valid = arrays["valid"].astype(bool)
        skipped += [str(path) for path in arrays["paths"][~valid] if path]
        shares.append(top_shares(arrays["clusters"][valid]))
        centroids.append(arrays["centroids"][valid])
        relaxed.append(arrays["relaxed"][valid].mean(2))
    tables = [np.concatenate(parts) if parts else np.zeros((0, 0)) for parts in (shares, centroids, relaxed)]
    return CategorySummary(
        name=category.name,
        images=sum(path != "" for path in category.paths),
        computed=len(tables[0]),
        skipped=tuple(skipped),
        blocks=len(done),
        blocks_done=int(done.sum()),
        stored_bytes=sum(array.nbytes_stored() for _, array in category.group.arrays()),
        stages=tuple(_summarise_stage(stage, i, *tables) for i, stage in enumerate(category.settings.stages)),
        levels=category.levels,
        copies=tuple(copies(category.paths, category.digests)),
    )


def _summarise_stage(
    name: str, stage: int, shares: NDArray[Any], centroids: NDArray[Any], relaxed: NDArray[Any]
) -> StageSummary:
    """Of shares (N,L), centroids (N,L,K) and relaxed (N,L), over the images that were computed."""
    if not len(shares):
        return StageSummary(name, 0, None, None, None)
    shaped = centroids[:, stage, -1] > 0
    share, means = shares[shaped, stage], centroids[shaped, stage]
    return StageSummary(
        name,
        flat=int((~shaped).sum()),
        top_share=float(share.mean()) if len(share) else None,
        centroids=tuple(float(mean) for mean in means.mean(0, dtype=np.float64)) if len(means) else None,
        relaxed_share=float(relaxed[:, stage].mean()),
    )


def _read(category: CachedCategory, chunk: int, names: Sequence[str]) -> Arrays:
    try:
        return category.read_chunk(chunk, names)
    except Exception as error:
        # Which exception a damaged chunk raises is up to its codec.
        line = f"{category.name}, chunk {chunk} cannot be read ({error}): `inspect --verify` says what is damaged"
        raise RunError(line) from error


def _suggestion(wanted: str, listed: Sequence[tuple[str, int, str]]) -> str:
    names = {path.rpartition("/")[2]: path for *_, path in reversed(listed)}
    near = [names[name] for name in difflib.get_close_matches(wanted.rpartition("/")[2], list(names), 3)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    last = max((row for _, row, _ in listed), default=0)
    return (
        f"give a path such as {listed[0][2]}, a part of one, or a row from 0 to {last}" if listed else "it holds none"
    )
