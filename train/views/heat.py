"""The one scale on which anomaly maps are shown, in the pictures of `predict` and in `maps.png`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train.calibration import Calibration

_LEVELS = 256
# The hottest colour's share of a pixel.
_OPAQUE = 0.8
# The line around what is above the threshold; no colour of the scale is near it.
LINE = (0, 255, 255)
# Where a flagged image's map is nowhere above its threshold, a line is drawn at this share of the way from the median
# of the normals to the map's highest value.
_HIGHEST = 0.75

# Every 17th of the 256 colours of matplotlib's "inferno": its import takes longer than the scores of an image.
_INFERNO = (
    "000004 0c0826 240c4f 420a68 5d126e 781c6d 932667 ae305c c73e4c dd513a ed6925 f8850f fca50a fac62d f2e661 fcffa4"
)

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Heat:
    """A scale of map values: clear at the median of the normals' maps, half-way at the threshold, and so on to the end.

    threshold: of a map's values, see `Calibration.map_threshold`.
    """

    median: float
    threshold: float

    @classmethod
    def of(cls, calibration: Calibration) -> Heat:
        """The scale of a detector."""
        return cls(calibration.map_range[0], calibration.map_threshold)

    def over(self, picture: Picture, anomaly_map: NDArray[np.float32]) -> Picture:
        """A picture (H,W,3) with a map of it, of any size, over it."""
        heat = np.clip((anomaly_map - self.median) / max(2 * (self.threshold - self.median), 1e-9), 0, 1)
        level = Image.fromarray(np.rint(heat * (_LEVELS - 1)).astype(np.uint8))
        level = level.resize((picture.shape[1], picture.shape[0]), Image.Resampling.BILINEAR)
        opacity = level.point([round(255 * _OPAQUE * i / (_LEVELS - 1)) for i in range(_LEVELS)])
        level.putpalette(np.rint(inferno()).astype(np.uint8).tobytes())
        return np.asarray(Image.composite(level.convert("RGB"), Image.fromarray(picture), opacity))

    def region(self, anomaly_map: NDArray[np.float32], size: tuple[int, int], *, flagged: bool) -> NDArray[np.bool_]:
        """(height,width) bool: where a map, resized to `size` (width, height), is above the threshold.

        Where it is so nowhere, though the image is flagged or a value of the map is above, it is where it is highest.
        """
        shown = resized(anomaly_map, size)
        region = shown > self.threshold
        if not region.any() and (flagged or float(anomaly_map.max()) > self.threshold):
            highest = float(shown.max())
            return shown >= highest - (1 - _HIGHEST) * max(highest - self.median, 0.0)
        return region


def resized(anomaly_map: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map at another size (width, height)."""
    return np.asarray(Image.fromarray(anomaly_map).resize(size, Image.Resampling.BILINEAR))


def outline(picture: Picture, region: NDArray[np.bool_], width: int) -> Picture:
    """A picture (H,W,3) with a line of so many pixels around a region (H,W), which has a dark edge outside."""
    if not region.any():
        return picture
    lined = picture.copy()
    # Only where the region is: most are small.
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    box = tuple(slice(max(0, int(at[0]) - width), int(at[-1]) + 1 + width) for at in (rows, columns))
    inside, outside, whole, part = region[box], region[box], region[box], lined[box]
    for _ in range(width):
        inside = ~_grown(~inside, edge=True)
        outside = _grown(outside, edge=False)
    part[outside & ~whole] = 0
    part[whole & ~inside] = LINE
    return lined


def _grown(region: NDArray[np.bool_], *, edge: bool) -> NDArray[np.bool_]:
    """A region and the pixels beside it; edge: whether what lies outside the picture is in it."""
    around = np.pad(region, 1, constant_values=edge)
    across = around[:, :-2] | around[:, 1:-1] | around[:, 2:]
    return across[:-2] | across[1:-1] | across[2:]


@cache
def inferno() -> NDArray[np.float32]:
    """(256,3) in 0..255: the colours from cold to hot, within 7 of matplotlib's "inferno" and within 1 on average."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in _INFERNO.split()])
    levels = np.arange(_LEVELS)
    return np.stack([np.interp(levels, levels[::17], channel) for channel in anchors.T], 1).astype(np.float32)
