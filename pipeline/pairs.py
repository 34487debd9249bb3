"""Draw the patch pairs of saliency maps: what the swap exchanges.

A pixel pair comes from the cluster of the highest centroid and becomes the centres of two patches of one size that
lie inside the image and do not overlap. The top cluster is often two or three cells; then no two patches centred in
it are apart. The rule for that case: the first patch stays on the top cluster, and the second may come from the next
cluster down as well, and so on until the two are apart. Such a pair is recorded as relaxed.

All draws come from a counter-based generator keyed by (seed, relative path, stage), so that the pairs of an image
depend on nothing else: not on its block, its batch, its neighbours or the worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Tries for a disjoint pair within one set of clusters, before the next cluster is taken in.
_TRIES = 16


def pair_key(seed: int, path: str, stage: str) -> np.uint64:
    """The generator key of one map: the first 8 bytes of a BLAKE2b digest of (seed, relative path, stage name)."""
    digest = hashlib.blake2b(f"{seed}\0{path}\0{stage}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def map_keys(seed: int, paths: Sequence[str], stages: Sequence[str]) -> NDArray[np.uint64]:
    """(N*L,) keys of the maps of N images at L stages, the stages of an image side by side."""
    return np.array([pair_key(seed, path, stage) for path in paths for stage in stages], np.uint64)


def uniforms(keys: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """(M,count) draws in [0,1), row m from keys[m] alone: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = keys[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    draws: NDArray[np.float64] = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return draws


def patch_sizes(
    u_area: NDArray[np.float64],
    u_aspect: NDArray[np.float64],
    image_size: int,
    area: Sequence[float],
    aspect: Sequence[float],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Heights and widths in pixels, 2 or more, from draws in [0,1).

    area: least and largest share of the image (uniform); aspect: least and largest height/width (log-uniform).
    The longer side is cut at the image's side and the shorter at half of it, so that two such patches always fit.
    """
    pixels = (area[0] + u_area * (area[1] - area[0])) * image_size**2
    ratio = np.exp(np.log(aspect[0]) + u_aspect * np.log(aspect[1] / aspect[0]))
    height = np.rint(np.sqrt(pixels * ratio)).astype(np.int64)
    width = np.rint(np.sqrt(pixels / ratio)).astype(np.int64)
    tall = height >= width
    half = image_size // 2
    height = np.clip(height, 2, np.where(tall, image_size, half))
    width = np.clip(width, 2, np.where(tall, half, image_size))
    return height, width


def draw_pairs(
    labels: NDArray[np.uint8],
    keys: NDArray[np.uint64],
    *,
    pairs: int,
    image_size: int,
    area: Sequence[float],
    aspect: Sequence[float],
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Patch pairs of M maps.

    labels: (M,h,w) clusters numbered by rising centroid. keys: (M,) of `pair_key`. pairs: P, drawn per map.
    area, aspect: see `patch_sizes`.
    Returns (M,P,6) y1,x1,y2,x2,height,width in image pixels and (M,P), 1 where the pair was relaxed.
    """
    maps = len(labels)
    u = uniforms(keys, pairs * (2 + _TRIES * 6)).reshape(maps, pairs, -1)
    size = np.stack(patch_sizes(u[..., 0], u[..., 1], image_size, area, aspect), -1)
    tries = u[..., 2:].reshape(maps, pairs, _TRIES, 2, 3)
    order, prefixes = _cells_by_cluster(labels)
    top = prefixes[:, :1]

    def corners(patch: int, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """(M,P,T,2) top-left corners of patches whose centres lie in the first `cells` (M,1) cells of `order`."""
        draw = tries[..., patch, :]
        index = (draw[..., 0] * cells[..., None]).astype(np.int64)
        flat = np.take_along_axis(order, index.reshape(maps, -1), 1).reshape(index.shape)
        cell = np.stack(np.divmod(flat, labels.shape[2]), -1)
        centre = ((cell + draw[..., 1:]) * (image_size / np.array(labels.shape[1:]))).astype(np.int64)
        corner: NDArray[np.int64] = np.clip(centre - size[:, :, None] // 2, 0, image_size - size[:, :, None])
        return corner

    boxes = np.zeros((maps, pairs, 6), np.int16)
    relaxed = np.zeros((maps, pairs), np.uint8)
    missing = np.ones((maps, pairs), bool)
    first = corners(0, top)
    for cells in prefixes.T[..., None]:
        second = corners(1, cells)
        apart: NDArray[np.bool_] = np.any(abs(first - second) >= size[:, :, None], axis=-1)
        chosen = apart.argmax(axis=2)[..., None, None]
        box = [np.take_along_axis(first, chosen, 2)[:, :, 0], np.take_along_axis(second, chosen, 2)[:, :, 0], size]
        new = missing & apart.any(axis=2)
        boxes[new] = np.concatenate(box, -1)[new]
        relaxed[new] = np.broadcast_to(cells > top, new.shape)[new]
        missing &= ~new
        if not missing.any():
            return boxes, relaxed
    boxes[missing] = _opposite(first[:, :, 0], size, image_size)[missing]
    relaxed[missing] = 1
    return boxes, relaxed


def _cells_by_cluster(labels: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Flat cell indices (M,h*w) by falling cluster, and how many cells the 1, 2, .. highest clusters hold (M,K)."""
    falling = labels.max((1, 2), keepdims=True) - labels
    falling = falling.reshape(len(labels), -1)
    order = np.argsort(falling, axis=1, kind="stable")
    highest = np.arange(int(labels.max()) + 1)
    return order, np.stack([(falling <= n).sum(1) for n in highest], 1)


def _opposite(corner: NDArray[np.int64], size: NDArray[np.int64], image_size: int) -> NDArray[np.int64]:
    """(M,P,6) boxes at opposite edges along the shorter side, where it always fits twice: the last resort."""
    short = np.arange(2) == size.argmin(-1)[..., None]
    return np.concatenate([np.where(short, 0, corner), np.where(short, image_size - size, corner), size], -1)
