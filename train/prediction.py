"""What a detector says of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# An image to predict: a file, or an RGB array (H,W,3) uint8.
Source = str | Path | NDArray[np.uint8]


@dataclass(frozen=True)
class Scores:
    """Of N images the scores (N,) float64 by scorer, higher more anomalous, and maps (N,H,W) float32, 0 or more."""

    image: dict[str, NDArray[np.float64]]
    maps: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a detector says of an image.

    path: as it was given, None for an array. score: on the scale of threshold, above which it is anomalous; both are
    rounded to 4 decimals. p_value: see `train.threshold.p_value`; None for a detector of an earlier version. map:
    (H,W) float32 at the detector's image size, 0 or more, higher where the image is unlike the normals.
    """

    path: str | None
    score: float
    p_value: float | None
    threshold: float
    anomalous: bool
    map: NDArray[np.float32]
