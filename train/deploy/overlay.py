"""The overlay of an image: its anomaly map over it, as a JPEG file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Longest side in pixels of a file, and its quality as Pillow counts it, 0..95.
_LONGEST = 1600
_QUALITY = 90

_LEVELS = 256

# Every 17th of the 256 colours of matplotlib's "inferno": its import takes longer than the scores of an image.
_INFERNO = (
    "000004 0c0826 240c4f 420a68 5d126e 781c6d 932667 ae305c c73e4c dd513a ed6925 f8850f fca50a fac62d f2e661 fcffa4"
)


def write_overlay(
    file: Path, image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], map_range: tuple[float, float]
) -> None:
    """Write the overlay to a JPEG file of at most 1,600 pixels a side; folders above it are made."""
    picture = Image.fromarray(overlay(image, anomaly_map, map_range))
    picture.thumbnail((_LONGEST, _LONGEST))
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, quality=_QUALITY)


def overlay(
    image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], map_range: tuple[float, float]
) -> NDArray[np.uint8]:
    """An image (H,W,3) with its anomaly map (H,W) over it: clear at the normals' median, opaque at twice their most."""
    low, high = map_range
    heat = np.clip((anomaly_map - low) / max(2 * high - low, 1e-9), 0, 1)
    level = np.rint(heat * (_LEVELS - 1)).astype(np.uint8)
    # The image's share and the colour's, by level: every pixel takes one product and one sum.
    alpha = np.linspace(0, 0.8, _LEVELS, dtype=np.float32)[:, None]
    blended = image * (1 - alpha)[level] + (inferno() * alpha)[level]
    return np.asarray(np.rint(blended), np.uint8)


@cache
def inferno() -> NDArray[np.float32]:
    """(256,3) in 0..255: the colours from cold to hot, within 7 of matplotlib's "inferno" and within 1 on average."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in _INFERNO.split()])
    levels = np.arange(_LEVELS)
    return np.stack([np.interp(levels, levels[::17], channel) for channel in anchors.T], 1).astype(np.float32)
