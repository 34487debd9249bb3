"""What the localiser learns from: a crop of a normal or of a negative, and the labels of its cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.localiser.labels import CHANGED, SHOWN, label_cells
from train.negatives.augment import jitter_light
from train.negatives.make import make_negative
from train.negatives.stream import Normal

# Sides of crops are multiples of the coarsest trained stride, so that every stage's cells cover whole pixels of it.
_MULTIPLE = 16
_DRAWS = 5


@dataclass(frozen=True, eq=False)
class Example:
    """A crop (3,s,s) float32 on the 0..255 scale, and the labels (s/8,s/8) of its cells."""

    image: NDArray[np.float32]
    labels: NDArray[np.int8]


def crop_side(crop: int, shape: tuple[int, ...]) -> int:
    """The side of crops of images (H,W,...) where so many pixels are asked for."""
    return max(_MULTIPLE, min(crop, *shape[:2]) // _MULTIPLE * _MULTIPLE)


def make_example(normal: Normal, kind: str | None, crop: int, jitter: float, rng: np.random.Generator) -> Example:
    """An example of a normal (kind None) or of its negative; a crop of a negative is aimed at what was changed.

    A negative in which no change shows teaches nothing: then another is drawn, up to five in all. jitter: the largest
    relative change of brightness and contrast.
    """
    before, side = normal.image, crop_side(crop, normal.image.shape)
    for _ in range(_DRAWS):
        after = before if kind is None else make_negative(kind, normal, rng)
        window = _window(np.abs(after - before).max(2) > SHOWN, side, rng)
        labels = label_cells(before[window], after[window])
        if kind is None or (labels == CHANGED).any():
            break
    return Example(jitter_light(after[window], jitter, rng).transpose(2, 0, 1), labels)


def _window(shown: NDArray[np.bool_], side: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """A square with a random one of the pixels shown in its middle half, or nearer its edge at the image's border.

    It lies anywhere if no pixel is shown.
    """
    most = np.array(shown.shape) - side
    pixels = np.flatnonzero(shown)
    if len(pixels):
        pixel = np.array(np.unravel_index(pixels[rng.integers(len(pixels))], shown.shape))
        place = np.clip(pixel - rng.integers(side // 4, side - side // 4, 2), 0, most)
    else:
        place = rng.integers(0, most + 1)
    top, left = place.tolist()
    return slice(top, top + side), slice(left, left + side)
