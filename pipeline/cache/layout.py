"""What a category of a cache consists of: its arrays, in chunks of 64 images and shards of one or several chunks.

A chunk is 64 images of every array. A shard is what one task writes, one object of every array: a single chunk, or in a
large category several, so that two tasks never write to one object.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from pipeline.settings import PrecomputeSettings

# The attribute `network` of a cache whose network has its batch norms folded; caches of earlier versions have none.
FOLDED = "folded"
FORMAT = 1
CHUNK = 64
# A category of at least this many images is written in shards of this many chunks: docs/cache.md says why.
LARGE = 100_000
_SHARD = 8
# Values of `done` other than 0. A grown chunk was done before rows were added or changed: rows with a digest are whole.
DONE, GROWN = 1, 2
# An array of texts beside those of `layout`, which a cache need not have.
STAMPS = "stamps"

Arrays = dict[str, NDArray[Any]]
Attributes = dict[str, Any]


def layout(images: int, settings: PrecomputeSettings) -> dict[str, tuple[tuple[int, ...], str, tuple[str, ...]]]:
    """Shape, dtype and dimension names of every array that has a row per image; `settings.stages` must be chosen."""
    size, cells, stages = settings.image_size, settings.map_size, len(settings.stages)
    maps = (images, stages, cells, cells), "uint8", ("image", "stage", "map_y", "map_x")
    return {
        "images": ((images, size, size, 3), "uint8", ("image", "y", "x", "channel")),
        "paths": ((images,), "str", ("image",)),
        "sha256": ((images,), "str", ("image",)),
        "valid": ((images,), "uint8", ("image",)),
        "saliency": maps,
        "target_class": ((images,), "int32", ("image",)),
        "clusters": maps,
        "centroids": ((images, stages, settings.clusters), "float32", ("image", "stage", "cluster")),
        "pairs": ((images, stages, settings.pairs, 6), "int16", ("image", "stage", "pair", "box")),
        "relaxed": ((images, stages, settings.pairs), "uint8", ("image", "stage", "pair")),
    }


def create_array(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str, dimensions: tuple[str, ...], chunks_per_shard: int
) -> None:
    """Create an empty array that has a row per image."""
    group.create_array(
        name,
        shape=shape,
        chunks=(CHUNK, *shape[1:]),
        shards=None if chunks_per_shard == 1 else (chunks_per_shard * CHUNK, *shape[1:]),
        dtype=str if dtype == "str" else dtype,
        compressors=ZstdCodec(level=1),
        dimension_names=dimensions,
    )


def create_stamps(group: zarr.Group, images: int, chunks_per_shard: int) -> None:
    """Create the array of stamps, an empty text per image."""
    create_array(group, STAMPS, (images,), "str", ("image",), chunks_per_shard)


def layout_problems(group: zarr.Group, settings: PrecomputeSettings) -> list[str]:
    """A line for each array of a category's group that is missing or is not as `layout` says."""
    arrays = dict(group.arrays())
    images = arrays["valid"].shape[0] if "valid" in arrays else 0
    shard = arrays["done"].chunks[0] if "done" in arrays else 1
    expected = {
        key: (shape, dtype, CHUNK, shard * CHUNK) for key, (shape, dtype, _) in layout(images, settings).items()
    }
    expected["done"] = ((-(-images // CHUNK),), "uint8", shard, shard)
    problems = [f"array {key} is missing; run precompute --overwrite" for key in expected if key not in arrays]
    for key, wanted in expected.items():
        if key not in arrays:
            continue
        one = arrays[key]
        kind = "str" if one.dtype.kind in "TOU" else str(one.dtype)
        found = one.shape, kind, one.chunks[0], (one.shards or one.chunks)[0]
        if found != wanted:
            problems.append(f"array {key} has shape, type, rows per chunk and per shard {found}, not {wanted}")
    return problems


def choose_shard(images: int) -> int:
    """Chunks per shard of a category that is created with so many images."""
    return _SHARD if images >= LARGE else 1


def locate(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The chunk of each row (n,) and its place in that chunk, both (n,)."""
    chunks, places = np.divmod(rows, CHUNK)
    return chunks, places


def pending_rows(states: NDArray[np.uint8], paths: NDArray[Any], digests: NDArray[Any]) -> NDArray[np.int64]:
    """The rows of some chunks that must be computed: none of a done chunk, those with a path of any other.

    states: the chunks' `done`; paths, digests: their rows of `paths` and `sha256`.
    """
    state = np.repeat(states, CHUNK)[: len(paths)]
    return np.flatnonzero((paths != "") & (state != DONE) & ~((state == GROWN) & (digests != "")))


def images_digest(paths: Sequence[str]) -> str:
    """SHA-256 of the relative paths, in order, each ended by a zero byte."""
    return sha256("".join(f"{path}\0" for path in paths).encode()).hexdigest()
