"""Check a cache against its own layout, its own arithmetic and the source images, chunk by chunk.

Zarr reads a lost chunk as zeros without an error, so the check compares the arrays with each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.cache import Cache, open_cache
from pipeline.cache.category import CachedCategory
from pipeline.cache.layout import Arrays, images_digest, layout, layout_problems
from pipeline.cache.summary import summarise
from pipeline.data.images import read_bytes
from pipeline.errors import ImageError, RunError, UserError, one_line
from pipeline.progress import Advance, progress
from pipeline.remote import describe_io_error
from pipeline.settings import PrecomputeSettings

# Centroids are float32 means of values that are multiples of 1/255.
_CENTROID_TOLERANCE = 1e-3
_READERS = 8


@dataclass(frozen=True)
class Verdict:
    """What a check found: images checked, a line per problem, and paths of images that were skipped (no problem)."""

    images: int
    problems: tuple[str, ...]
    skipped: tuple[str, ...]


def verify_cache(store: str, categories: Sequence[str] = ()) -> Verdict:
    """Check the cache at `store`, only of `categories` if any are given; never raises for damage, only lists it.

    Checked: that every chunk is done and the cache marked complete; shapes and types; the digest of the image list;
    of every valid image in a done chunk, its source's SHA-256 and what `chunk_faults` names. A row that is not valid
    is exempt. UserError where there is no cache or no such category.
    """
    cache = open_cache(store)
    problems = _cache_problems(cache)
    skipped: list[str] = []
    checked = 0
    for category in cache.choose(categories):
        try:
            one = _verify_category(cache, category)
        except (UserError, RunError):
            raise
        except Exception as error:
            _refuse_remote_failure(store, error)
            # Which exception damaged metadata or a damaged chunk raises is up to zarr and its codecs.
            one = Verdict(0, (f"{category.name}: cannot be read ({one_line(error)}); run precompute --overwrite",), ())
        problems += one.problems
        skipped += one.skipped
        checked += one.images
    return Verdict(checked, tuple(problems), tuple(skipped))


def inspection_value(store: str, categories: Sequence[str] = (), *, verify: bool) -> dict[str, Any]:
    """What `inspect --json` prints: the summary as plain JSON values and, where asked for, the verdict as "verify".

    For a cache that is too damaged to summarise it holds only the verdict; without a verdict that raises RunError.
    """
    verdict = {"verify": asdict(verify_cache(store, categories))} if verify else {}
    try:
        return asdict(summarise(store, categories)) | verdict
    except RunError:
        if not verdict:
            raise
        return verdict


def chunk_faults(arrays: Arrays, settings: PrecomputeSettings) -> dict[str, NDArray[np.bool_]]:
    """Which images of a chunk break a rule of the layout or of the method: a line per rule, to (B,) bool.

    arrays: B rows of every array of `pipeline.cache.layout`, of valid images only.
    """
    clusters, centroids, pairs = arrays["clusters"], arrays["centroids"], arrays["pairs"].astype(np.int64)
    corners, size = pairs[..., :4].reshape(*pairs.shape[:3], 2, 2), pairs[..., None, 4:]
    near = abs(corners[..., 0, :] - corners[..., 1, :]) < pairs[..., 4:]
    falling = ~((np.diff(centroids) >= 0).all(-1) & (centroids[..., 0] >= 0) & (centroids[..., -1] <= 1))
    by_line: dict[str, NDArray[np.bool_]] = {
        "patches that are empty or reach outside the image": (
            (corners < 0) | (size < 1) | (corners + size > settings.image_size)
        ),
        "patches of a pair that overlap": near[..., 0] & near[..., 1],
        f"clusters that are not below {settings.clusters}": clusters >= settings.clusters,
        "centroids that do not rise within 0..1": falling,
        "clusters that are not numbered by their saliency's rising centroids": _misnumbered(arrays),
        "relaxed marks that are neither 0 nor 1": arrays["relaxed"] > 1,
        "a target class below 0": arrays["target_class"] < 0,
    }
    faults = {line: np.logical_or.reduce(faulty.reshape(len(pairs), -1), axis=1) for line, faulty in by_line.items()}
    if not arrays["images"].any():
        faults["only black pixels, as of a lost chunk,"] = np.ones(len(pairs), bool)
    return faults


def _verify_category(cache: Cache, category: CachedCategory) -> Verdict:
    problems = [f"{category.name}: {line}" for line in layout_problems(category.group, category.settings)]
    if problems:
        return Verdict(0, tuple(problems), ())
    with progress(f"verify {category.name}", int(category.in_done.sum()), "images") as advance:
        chunks = _check_chunks(category, cache.image_root, advance)
    problems = _list_problems(cache, category)
    return Verdict(chunks.images, (*problems, *chunks.problems), chunks.skipped)


def _refuse_remote_failure(name: str, error: Exception) -> None:
    """Raise RunError for an unreachable remote side, which says nothing about the cache."""
    if not isinstance(error, OSError) and (reason := describe_io_error(error)):
        raise RunError(f"{name} is out of reach ({reason}): try again when it is back") from error


def _misnumbered(arrays: Arrays) -> NDArray[np.bool_]:
    """(B,L): maps whose labels leave a gap, or whose saliency in some cluster is not on average its centroid."""
    saliency, clusters, centroids = arrays["saliency"], arrays["clusters"], arrays["centroids"]
    wrong = np.zeros(clusters.shape[:2], bool)
    before = np.ones(clusters.shape[:2], bool)
    for label in range(centroids.shape[2]):
        inside = clusters == label
        count = inside.sum((2, 3))
        mean = saliency.sum((2, 3), where=inside, dtype=np.int64) / np.maximum(count, 1) / 255
        wrong |= (count > 0) & ~(abs(mean - centroids[..., label]) < _CENTROID_TOLERANCE)
        wrong |= (count > 0) & ~before
        before = count > 0
    return wrong


def _cache_problems(cache: Cache) -> list[str]:
    ready = cache.names()
    problems = [
        f"{name}: its arrays were not all created; run precompute again"
        for name, _ in cache.group.groups()
        if name not in ready
    ]
    if not cache.complete:
        problems.append("the cache is not marked complete; run precompute again, it continues where it stopped")
    return problems


def _list_problems(cache: Cache, category: CachedCategory) -> list[str]:
    name, problems = category.name, []
    digest = images_digest(category.paths)
    listed = cache.attributes.get("images_digest") or {}
    if category.group.attrs.get("images_digest") != digest or listed.get(name) != digest:
        problems.append(f"{name}: the paths are not those of images_digest; run precompute --overwrite")
    done = category.done
    if not done.all():
        problems.append(f"{name}: {(~done).sum()} of {len(done)} chunks are not done; run precompute again")
    return problems


def _check_chunks(category: CachedCategory, image_root: str, advance: Advance) -> Verdict:
    """Problems and skipped paths of the done chunks of one category."""
    name, names = category.name, list(layout(0, category.settings))
    problems: list[str] = []
    skipped: list[str] = []
    lost: list[str] = []
    checked = 0
    with ThreadPoolExecutor(_READERS) as readers:
        for chunk in category.done_chunks():
            try:
                arrays = category.read_chunk(chunk, names)
            except Exception as error:
                _refuse_remote_failure(name, error)
                # One damaged chunk must not hide what is wrong with the others.
                line = f"cannot be read ({one_line(error)}); run precompute --overwrite"
                problems.append(f"{name}, chunk {chunk}: {line}")
                continue
            valid = arrays["valid"] == 1
            skipped += [str(path) for path in arrays["paths"][~valid] if path]
            problems += [f"{name}, chunk {chunk}: {line}" for line in _chunk_problems(arrays, valid, category.settings)]
            named = [(str(p), str(d)) for p, d in zip(arrays["paths"][valid], arrays["sha256"][valid], strict=True)]
            states = list(readers.map(lambda one: _source_problem(image_root, *one), named))
            problems += [line for line, missing in states if line and not missing]
            lost += [line for line, missing in states if missing]
            checked += len(named)
            advance(len(valid))
    if len(lost) == checked > 1:
        lost = [f"{name}: none of its {checked} source images can be read, first {lost[0]}"]
    return Verdict(checked, (*problems, *lost), tuple(skipped))


def _chunk_problems(arrays: Arrays, valid: NDArray[np.bool_], settings: PrecomputeSettings) -> Iterator[str]:
    digested = np.array([bool(digest) for digest in arrays["sha256"]])
    faults = {"a digest though marked as not read": ~valid & digested}
    if valid.any():
        for line, faulty in chunk_faults({key: rows[valid] for key, rows in arrays.items()}, settings).items():
            faults[line] = np.zeros(len(valid), bool)
            faults[line][valid] = faulty
    for line, faulty in faults.items():
        if faulty.any():
            first = arrays["paths"][faulty.argmax()]
            yield f"{line} in {faulty.sum()} of {len(faulty)} images, first {first}"


def _source_problem(image_root: str, path: str, digest: str) -> tuple[str, bool]:
    """A line, empty where the source is unchanged; and whether the source could not be read."""
    try:
        found = hashlib.sha256(read_bytes(image_root, path)).hexdigest()
    except ImageError as error:
        return str(error), True
    return ("" if found == digest else f"{path}: the source image changed since it was computed"), False
