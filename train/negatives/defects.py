"""Defects drawn into an image, which no swap makes: blobs of another brightness, noise, blur and lines."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from train.negatives.augment import Pixels
from train.negatives.exchange import draw_feather, draw_shape

# Of the region that is changed, as a share of the image's side, log-uniform.
_LOG_SIDE = (math.log(0.03), math.log(0.25))
_CHANGE = (15.0, 80.0)  # of brightness, in grey levels, lighter or darker
_NOISE = (10.0, 50.0)  # standard deviation, in grey levels
_BLUR = (1.5, 5.0)  # sigma in pixels
_LINE_WIDTH = (0.7, 2.5)  # sigma in pixels
_LOG_LINE_LENGTH = (math.log(0.08), math.log(0.5))  # as a share of the image's side

Change = Callable[[Pixels, np.random.Generator], Pixels]


def blob(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A region lighter or darker."""
    return _in_a_region(image, rng, lambda region, rng: region + _change(rng))


def noise(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A region with noise, the same in the three channels."""

    def add(region: Pixels, rng: np.random.Generator) -> Pixels:
        grain = rng.standard_normal(region.shape[:2]).astype(np.float32)
        return region + np.float32(rng.uniform(*_NOISE)) * grain[..., None]

    return _in_a_region(image, rng, add)


def blur(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A region out of focus."""

    def smooth(region: Pixels, rng: np.random.Generator) -> Pixels:
        sigma = rng.uniform(*_BLUR)
        smoothed: Pixels = gaussian_filter(region, (sigma, sigma, 0))
        return smoothed

    return _in_a_region(image, rng, smooth)


def line(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A thin line, lighter or darker, bent a little."""
    height, width = image.shape[:2]
    length = math.exp(rng.uniform(*_LOG_LINE_LENGTH)) * min(height, width)
    angle, bend = rng.uniform(0, math.pi), rng.uniform(-0.5, 0.5)
    along = np.linspace(-0.5, 0.5, max(2, math.ceil(2 * length)))
    direction = angle + bend * along
    start_y, start_x = rng.uniform(0, height), rng.uniform(0, width)
    step = length / len(along)
    rows, columns = (
        np.floor(start + (np.cumsum(moves) - moves[0]) * step).astype(int)
        for start, moves in ((start_y, np.sin(direction)), (start_x, np.cos(direction)))
    )
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    drawn = np.zeros((height, width), np.float32)
    drawn[rows[inside], columns[inside]] = 1
    drawn = gaussian_filter(drawn, rng.uniform(*_LINE_WIDTH))
    drawn /= max(float(drawn.max()), 1e-6)
    changed: Pixels = np.clip(image + _change(rng) * drawn[..., None], 0, 255)
    return changed


def _change(rng: np.random.Generator) -> np.float32:
    return np.float32(rng.choice((-1, 1)) * rng.uniform(*_CHANGE))


def _in_a_region(image: Pixels, rng: np.random.Generator, change: Change) -> Pixels:
    """A copy with a region changed: a rectangle, an ellipse or a blob, with a hard or a soft border."""
    sides = np.array(image.shape[:2])
    rows, columns = np.maximum(3, np.rint(sides * np.exp(rng.uniform(*_LOG_SIDE, 2)))).astype(int)
    top, left = rng.integers(0, sides - (rows, columns) + 1)
    mask = np.zeros(image.shape[:2], np.float32)
    mask[top : top + rows, left : left + columns] = draw_shape(rows, columns, rng)
    if sigma := draw_feather(rng):
        mask = gaussian_filter(mask, sigma)
    changed: Pixels = np.clip(image + mask[..., None] * (change(image, rng) - image), 0, 255)
    return changed
