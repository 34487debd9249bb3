"""The swap: exchange two patches of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def swap_patches(image: NDArray[np.uint8], pair: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
    """A copy of one image (H,W,C) with the two patches of `pair` (y1,x1,y2,x2,height,width) exchanged.

    The patches must be inside the image and not overlap, as those of `pipeline.pairs.draw_pairs` do; then the
    result is a permutation of the pixels and the swap is its own inverse.
    """
    y1, x1, y2, x2, height, width = (int(v) for v in pair)
    swapped = image.copy()
    swapped[y1 : y1 + height, x1 : x1 + width] = image[y2 : y2 + height, x2 : x2 + width]
    swapped[y2 : y2 + height, x2 : x2 + width] = image[y1 : y1 + height, x1 : x1 + width]
    return swapped
