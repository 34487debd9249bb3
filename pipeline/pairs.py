"""Draw the patch pairs of saliency maps: what the swap exchanges.

A pixel pair comes from the cluster of the highest centroid and becomes the centres of two patches of one size that
are inside the image and do not overlap. The top cluster is often two or three cells; then no two patches centred in
it are apart. The rule for that case: the first patch stays on the top cluster, and the second may come from the next
cluster down as well, and so on until the two are apart. Such a pair is recorded as relaxed.

All draws come from a counter-based generator keyed by (seed, relative path, stage), so that the pairs of an image
depend on nothing else: not on its chunk, its batch, its neighbours or the worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Tries for a disjoint pair within one set of clusters, before the next cluster is taken in.
_TRIES = 16


def pair_key(seed: int, path: str, stage: str) -> np.uint64:
    """The generator key of one map: the first 8 bytes of a BLAKE2b digest of (seed, relative path, stage name)."""
    digest = hashlib.blake2b(f"{seed}\0{path}\0{stage}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def map_keys(seed: int, paths: Sequence[str], stages: Sequence[str]) -> NDArray[np.uint64]:
    """(N*L,) keys of the maps of N images at L stages, the stages of an image side by side."""
    return np.array([pair_key(seed, path, stage) for path in paths for stage in stages], np.uint64)


def uniforms(keys: Tensor, count: int) -> Tensor:
    """(M,count) float64 draws in [0,1), row m from only keys[m]: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).

    keys: (M,) int64, the bits of the keys; all arithmetic is modulo 2^64, which the sign does not change.
    """
    z = keys[:, None] + torch.arange(1, count + 1, device=keys.device) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return _shifted(z ^ _shifted(z, 31), 11).double() * 2.0**-53


def _signed(constant: int) -> int:
    return constant - 2**64


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Unsigned numbers moved right, where torch's own shift would repeat the sign."""
    return (z >> bits).bitwise_and(2 ** (64 - bits) - 1)


def patch_sizes(
    u_area: Tensor, u_aspect: Tensor, image_size: int, area: Sequence[float], aspect: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Heights and widths in pixels, int64, 2 or more, from float64 draws in [0,1).

    area: least and largest share of the image (uniform); aspect: least and largest height/width (log-uniform).
    The longer side is cut at the image's side and the shorter at half of it, so that two such patches always fit.
    """
    pixels = (area[0] + u_area * (area[1] - area[0])) * image_size**2
    ratio = aspect[0] * (aspect[1] / aspect[0]) ** u_aspect
    height = (pixels * ratio).sqrt().round().long()
    width = (pixels / ratio).sqrt().round().long()
    tall = height >= width
    half = image_size // 2
    height = height.clamp(2, image_size).where(tall, height.clamp(2, half))
    width = width.clamp(2, half).where(tall, width.clamp(2, image_size))
    return height, width


def draw_pairs(
    labels: Tensor,
    keys: NDArray[np.uint64],
    *,
    pairs: int,
    image_size: int,
    area: Sequence[float],
    aspect: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Patch pairs of M maps, drawn on the maps' device.

    labels: (M,h,w) uint8 clusters numbered by rising centroid. keys: (M,) of `pair_key`. pairs: P, drawn per map.
    area, aspect: see `patch_sizes`.
    Returns (M,P,6) int16 y1,x1,y2,x2,height,width in image pixels and (M,P) uint8, 1 where the pair was relaxed.
    """
    maps, rows, columns = labels.shape
    u = uniforms(torch.from_numpy(keys.view(np.int64)).to(labels.device), pairs * (2 + _TRIES * 6))
    u = u.view(maps, pairs, -1)
    size = torch.stack(patch_sizes(u[..., 0], u[..., 1], image_size, area, aspect), -1)
    tries = u[..., 2:].view(maps, pairs, _TRIES, 2, 3)
    order, prefixes = _cells_by_cluster(labels)
    top = prefixes[:, :1]
    cell_size = torch.tensor([image_size / rows, image_size / columns], dtype=torch.float64, device=labels.device)

    def corners(patch: int, cells: Tensor) -> Tensor:
        """(M,P,T,2) top-left corners of patches whose centres are in the first `cells` (M,1) cells of `order`."""
        # Three draws per try: one cell of those allowed, then a point inside it, so that a small cluster of large cells
        # still gives many different centres. The clamp moves a patch back inside the image instead of drawing again.
        draw = tries[..., patch, :]
        index = (draw[..., 0] * cells[..., None]).long()
        flat = order.gather(1, index.view(maps, -1)).view(index.shape)
        cell = torch.stack([flat // columns, flat % columns], -1)
        centre = ((cell + draw[..., 1:]) * cell_size).long()
        corner = centre - size[:, :, None] // 2
        return torch.minimum(corner.clamp(min=0), image_size - size[:, :, None])

    boxes = torch.zeros(maps, pairs, 6, dtype=torch.int64, device=labels.device)
    relaxed = torch.zeros(maps, pairs, dtype=torch.uint8, device=labels.device)
    missing = torch.ones(maps, pairs, dtype=torch.bool, device=labels.device)
    first = corners(0, top)
    for cells in prefixes.T[..., None]:
        second = corners(1, cells)
        apart = ((first - second).abs() >= size[:, :, None]).any(-1)
        chosen = apart.byte().argmax(2)[..., None, None].expand(-1, -1, -1, 2)
        box = torch.cat([first.gather(2, chosen)[:, :, 0], second.gather(2, chosen)[:, :, 0], size], -1)
        new = missing & apart.any(2)
        boxes = box.where(new[..., None], boxes)
        relaxed = torch.where(new, (cells > top).byte(), relaxed)
        missing &= ~new
        if not missing.any():
            return boxes.short(), relaxed
    boxes = _opposite(first[:, :, 0], size, image_size).where(missing[..., None], boxes)
    return boxes.short(), relaxed.masked_fill(missing, 1)


def _cells_by_cluster(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Flat cell indices (M,h*w) by falling cluster, and how many cells the 1, 2, .. highest clusters hold (M,K)."""
    falling = (labels.amax((1, 2), keepdim=True) - labels).flatten(1)
    values, order = falling.sort(dim=1, stable=True)
    highest = torch.arange(int(labels.max()) + 1, dtype=torch.uint8, device=labels.device)
    return order, torch.searchsorted(values, highest.expand(len(values), -1).contiguous(), right=True)


def _opposite(corner: Tensor, size: Tensor, image_size: int) -> Tensor:
    """(M,P,6) boxes at opposite edges along the shorter side, where it always fits twice: the last resort."""
    short = torch.arange(2, device=size.device) == size.argmin(-1)[..., None]
    return torch.cat([corner.masked_fill(short, 0), (image_size - size).where(short, corner), size], -1)
