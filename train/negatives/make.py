"""Negatives of a batch of normals: CutSwap from the cache's pairs, and the ways it is compared with."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.pairs import draw_pairs
from pipeline.settings import PrecomputeSettings
from pipeline.swap import swap_batch
from train.negatives.augment import jitter_colour

# CutPaste (Li et al., arXiv 2104.04015, section 2.1 and appendix): area, aspect and jitter of the pasted patch; width,
# length in pixels of an image of 256 and rotation in degrees of a scar.
_CUTPASTE_AREA = (0.02, 0.15)
_CUTPASTE_ASPECT = (0.3, 3.3)
_CUTPASTE_JITTER = 0.1
_SCAR_WIDTH = (2, 16)
_SCAR_LENGTH = (10, 25)
_SCAR_ROTATION = (-45, 45)
_SCAR_IMAGE_SIZE = 256


def make_negatives(
    kind: str, images: Tensor, pairs: NDArray[np.int16], settings: PrecomputeSettings, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Negatives of images (B,3,H,W) uint8, one each, and the group (B,) int64 that each belongs to.

    kind: "cutswap" swaps one of the cached pairs (B,L,P,6) of a random stage, which is the group; "random-swap" swaps a
    pair of the same sizes drawn anywhere; "cutpaste" pastes a jittered patch elsewhere; "cutpaste-scar" a thin rotated
    one; "cutpaste-3way" makes pastes (group 0) of one random half of the batch and scars (group 1) of the other: as
    many of one as of the other, as in the paper, and no more images per step than other kinds have. Elsewhere the group
    is 0.
    """
    count = len(images)
    group = torch.zeros(count, dtype=torch.int64)
    if kind == "cutswap":
        stage = rng.integers(pairs.shape[1], size=count)
        chosen = pairs[np.arange(count), stage, rng.integers(pairs.shape[2], size=count)]
        return swap_batch(images, torch.from_numpy(chosen)), torch.from_numpy(stage)
    if kind == "random-swap":
        chosen = _random_pairs(count, settings.image_size, settings.patch_area, settings.patch_aspect, rng)
        return swap_batch(images, torch.from_numpy(chosen)), group
    if kind == "cutpaste":
        return _paste(images, rng), group
    if kind == "cutpaste-scar":
        return _scar(images, rng), group
    group[rng.permutation(count)[: count // 2]] = 1
    pasted, scarred = group == 0, group == 1
    negatives = images.clone()
    negatives[pasted] = _paste(images[pasted], rng)
    negatives[scarred] = _scar(images[scarred], rng)
    return negatives, group


def _random_pairs(
    count: int, image_size: int, area: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.int16]:
    """(count,6) pairs anywhere: a map with a single cluster puts no bounds on them."""
    keys = rng.integers(2**63, size=count, dtype=np.uint64)
    anywhere = torch.zeros(count, 32, 32, dtype=torch.uint8)
    pairs, _ = draw_pairs(anywhere, keys, pairs=1, image_size=image_size, area=area, aspect=aspect)
    return pairs[:, 0].numpy()


def _paste(images: Tensor, rng: np.random.Generator) -> Tensor:
    pairs = _random_pairs(len(images), images.shape[2], _CUTPASTE_AREA, _CUTPASTE_ASPECT, rng)
    pasted = images.clone()
    jittered = jitter_colour(images.contiguous().float(), _CUTPASTE_JITTER, rng).to(images.dtype)
    for i, (y1, x1, y2, x2, height, width) in enumerate(pairs.tolist()):
        pasted[i, :, y2 : y2 + height, x2 : x2 + width] = jittered[i, :, y1 : y1 + height, x1 : x1 + width]
    return pasted


def _scar(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Paste one upright thin patch of each image, jittered and turned about its centre, elsewhere inside it."""
    count, size = len(images), images.shape[2]
    scale = size / _SCAR_IMAGE_SIZE
    width, length = (np.maximum(1, scale * rng.uniform(*bounds, count)) for bounds in (_SCAR_WIDTH, _SCAR_LENGTH))
    angle = np.radians(rng.uniform(*_SCAR_ROTATION, count))
    sine, cosine = np.sin(angle), np.cos(angle)

    def anywhere(height: NDArray[np.float64], width: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Centres (y,x) of boxes inside the image."""
        return rng.uniform(height / 2, size - height / 2), rng.uniform(width / 2, size - width / 2)

    from_y, from_x = anywhere(length, width)
    to_y, to_x = anywhere(length * cosine + width * abs(sine), width * cosine + length * abs(sine))
    # From each pixel near the scar's new centre back to its place in the patch: the other way, the rotation would leave
    # holes between the pixels that it hits.
    reach = math.ceil(max(1, math.hypot(_SCAR_WIDTH[1], _SCAR_LENGTH[1]) * scale) / 2)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along = cosine[:, None, None] * y - sine[:, None, None] * x
    across = sine[:, None, None] * y + cosine[:, None, None] * x
    image, row, column = np.nonzero((abs(along) < length[:, None, None] / 2) & (abs(across) < width[:, None, None] / 2))
    found = image, row, column

    def pixels(y: NDArray[np.float64], x: NDArray[np.float64]) -> tuple[Tensor, slice, Tensor, Tensor]:
        places = (torch.from_numpy(place.astype(np.int64)).to(images.device) for place in (image, y, x))
        index, rows, columns = places
        return index, slice(None), rows, columns

    scarred = images.clone()
    jittered = jitter_colour(images.contiguous().float(), _CUTPASTE_JITTER, rng).to(images.dtype)
    source = pixels(from_y[image] + along[found], from_x[image] + across[found])
    scarred[pixels(np.floor(to_y)[image] + y[row, column], np.floor(to_x)[image] + x[row, column])] = jittered[source]
    return scarred
