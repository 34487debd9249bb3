"""Which cells of a negative show a change, and of which that cannot be said."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CELL = 8
CHANGED, UNCHANGED, IGNORED = 1, 0, -1

_BLOCK = 4
# A pixel shows a change of more than so many grey levels.
SHOWN = 8
# A block shows it where this share of its pixels does, and the mean of their differences is more than so many levels.
_PIXEL_SHARE, _MEAN_DIFFERENCE = 0.25, 6
# A cell is changed above this share of pixels that differ in such blocks; it is unchanged if there are none, and up to
# this share of pixels that differ in other blocks.
_CHANGED_SHARE, _HIDDEN_SHARE = 0.1, 0.05


def label_cells(normal: NDArray[np.float32], negative: NDArray[np.float32]) -> NDArray[np.int8]:
    """(H/8,W/8) labels of a negative's cells: changed, unchanged, or ignored where the change cannot be seen.

    Images (H,W,3) float32 on the 0..255 scale, of sides that are multiples of 8. A swap of two similar patches leaves
    much of its mask as it was: called changed, such cells would teach noise.
    """
    difference = np.abs(negative - normal).max(2)
    shown = (_blocks(difference) > _MEAN_DIFFERENCE) & (_blocks(difference > SHOWN) > _PIXEL_SHARE)
    differs = _blocks(difference > 0.5)
    per_cell = CELL // _BLOCK
    visible, hidden = (_means(np.where(where, differs, 0), per_cell) for where in (shown, ~shown))
    labels = np.full(visible.shape, IGNORED, np.int8)
    labels[(visible == 0) & (hidden <= _HIDDEN_SHARE)] = UNCHANGED
    labels[visible > _CHANGED_SHARE] = CHANGED
    return labels


def _blocks(values: NDArray[np.generic]) -> NDArray[np.float64]:
    return _means(values, _BLOCK)


def _means(values: NDArray[np.generic], side: int) -> NDArray[np.float64]:
    """Means over squares of so many values a side."""
    rows, columns = values.shape
    means: NDArray[np.float64] = values.reshape(rows // side, side, columns // side, side).mean((1, 3), np.float64)
    return means
