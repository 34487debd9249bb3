"""Exchange two patches of an image through a mask: a rectangle, an ellipse or a blob, with a hard or a soft border."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

# A patch is shrunk about its centre by a factor of this range, log-uniform, but not below so many pixels.
_SHRINK = (0.25, 1.0)
_LEAST_SIDE = 3
_RECTANGLES, _ELLIPSES = 0.4, 0.3  # shares of the masks; the others are blobs
_HARD = 0.4  # share of the masks without a soft border
_FEATHER = (0.5, 3.0)  # sigma of a soft border, in pixels

Mask = NDArray[np.float32]


def exchange(image: NDArray[np.float32], pair: Sequence[int], rng: np.random.Generator) -> None:
    """Exchange, in place, patches (y1,x1,y2,x2,height,width) of an image (H,W,C), or smaller ones at their centres."""
    y1, x1, y2, x2, height, width = (int(value) for value in pair)
    factor = math.exp(rng.uniform(math.log(_SHRINK[0]), math.log(_SHRINK[1])))
    rows, columns = (min(side, max(_LEAST_SIDE, round(factor * side))) for side in (height, width))
    down, right = (height - rows) // 2, (width - columns) // 2
    tops, lefts = (y1 + down, y2 + down), (x1 + right, x2 + right)
    mask, sigma = draw_shape(rows, columns, rng), draw_feather(rng)
    if sigma:
        # As far as the border of the image lets it, the soft border lies outside the patch.
        reach = math.ceil(2 * sigma)
        above, before = min(reach, *tops), min(reach, *lefts)
        below = min(reach, *(image.shape[0] - rows - top for top in tops))
        behind = min(reach, *(image.shape[1] - columns - left for left in lefts))
        mask = gaussian_filter(np.pad(mask, ((above, below), (before, behind))), sigma)
        tops, lefts = (tops[0] - above, tops[1] - above), (lefts[0] - before, lefts[1] - before)
    first, second = (
        image[top : top + mask.shape[0], left : left + mask.shape[1]] for top, left in zip(tops, lefts, strict=True)
    )
    moved = mask[..., None] * (second - first)
    first += moved
    second -= moved


def draw_feather(rng: np.random.Generator) -> float:
    """Sigma in pixels of the soft border of a mask, 0 for a hard one."""
    return 0.0 if rng.random() < _HARD else float(rng.uniform(*_FEATHER))


def draw_shape(rows: int, columns: int, rng: np.random.Generator) -> Mask:
    """(rows,columns) 1 inside a rectangle, an ellipse or a blob of about this size, 0 outside."""
    kind = rng.random()
    if kind < _RECTANGLES:
        return np.ones((rows, columns), np.float32)
    y, x = np.mgrid[:rows, :columns]
    radius = ((2 * y + 1) / rows - 1) ** 2 + ((2 * x + 1) / columns - 1) ** 2
    shape = radius <= 1
    if kind >= _RECTANGLES + _ELLIPSES:
        noise = gaussian_filter(rng.standard_normal((rows, columns)), (rows / 6, columns / 6), mode="nearest")
        blob = 0.6 * noise / (noise.std() + 1e-6) + 1 - 1.2 * radius > 0.2
        shape = blob if blob.any() else shape
    mask: Mask = shape.astype(np.float32)
    return mask
