"""CutPaste (Li et al., CVPR 2021, arXiv 2104.04015): a jittered patch, or a thin turned one, pasted elsewhere."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import map_coordinates

from train.negatives.augment import Pixels, jitter_colour

# Section 2.1 and appendix: area as a share of the image, aspect and jitter of the patch; width and length of a scar in
# pixels of an image of 256, and its rotation in degrees.
_LOG_AREA = (math.log(0.02), math.log(0.15))
_LOG_ASPECT = (math.log(0.3), math.log(3.3))
_JITTER = 0.1
_SCAR_WIDTH = (2, 16)
_SCAR_LENGTH = (10, 25)
_SCAR_ROTATION = (-45, 45)
_SCAR_IMAGE_SIZE = 256
_LEAST_WIDTH, _LEAST_LENGTH = 2.0, 6.0  # in pixels: in a small image a thinner scar would not show


def paste(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A copy of an image (H,W,3) with a jittered patch of it pasted anywhere."""
    height, width = image.shape[:2]
    area = height * width * math.exp(rng.uniform(*_LOG_AREA))
    aspect = math.exp(rng.uniform(*_LOG_ASPECT))
    rows = min(height, max(1, round(math.sqrt(area / aspect))))
    columns = min(width, max(1, round(math.sqrt(area * aspect))))
    y, x, to_y, to_x = rng.integers(0, [height - rows + 1, width - columns + 1] * 2)
    pasted = image.copy()
    patch = jitter_colour(image[y : y + rows, x : x + columns], _JITTER, rng)
    pasted[to_y : to_y + rows, to_x : to_x + columns] = patch
    return pasted


def scar(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A copy of an image (H,W,3) with an upright thin patch of it, jittered and turned about its centre, elsewhere."""
    size = min(image.shape[:2])
    scale = size / _SCAR_IMAGE_SIZE
    width = max(_LEAST_WIDTH, scale * rng.uniform(*_SCAR_WIDTH))
    length = max(_LEAST_LENGTH, scale * rng.uniform(*_SCAR_LENGTH))
    angle = math.radians(rng.uniform(*_SCAR_ROTATION))
    sine, cosine = math.sin(angle), math.cos(angle)
    from_y, from_x = _anywhere(image, length, width, rng)
    turned = length * cosine + width * abs(sine), width * cosine + length * abs(sine)
    to_y, to_x = _anywhere(image, *turned, rng)
    # From each pixel near the scar's new centre back to its place in the patch: the other way, the rotation would leave
    # holes between the pixels that it hits.
    top, left = (max(0, math.floor(to - side / 2)) for to, side in zip((to_y, to_x), turned, strict=True))
    bottom, right = (math.ceil(to + side / 2) + 1 for to, side in zip((to_y, to_x), turned, strict=True))
    scarred = image.copy()
    region = scarred[top:bottom, left:right]
    y, x = np.mgrid[: region.shape[0], : region.shape[1]] + np.array([top - to_y, left - to_x])[:, None, None]
    along, across = cosine * y - sine * x, sine * y + cosine * x
    inside = (abs(along) <= length / 2) & (abs(across) <= width / 2)
    jittered = jitter_colour(image, _JITTER, rng)
    places = np.stack([from_y + along[inside], from_x + across[inside]])
    for channel in range(image.shape[2]):
        region[inside, channel] = map_coordinates(jittered[..., channel], places, order=0, mode="nearest")
    return scarred


def _anywhere(image: Pixels, height: float, width: float, rng: np.random.Generator) -> tuple[float, float]:
    """The centre (y,x) of a box inside the image, in the middle where the box is larger."""
    sides = zip(image.shape[:2], (height, width), strict=True)
    y, x = ((side - 1) / 2 if box >= side else float(rng.uniform(box / 2, side - box / 2) - 0.5) for side, box in sides)
    return y, x
