"""Brightness, contrast and saturation of an image, changed a little."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# ITU-R BT.601 luma, the grey that saturation pulls towards.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

Pixels = NDArray[np.float32]


def jitter_light(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Brightness and contrast times factors of their own in 1-strength..1+strength.

    image: (H,W,3) on the 0..255 scale, to which the result is clipped. Contrast is about the mean of the image.
    """
    brightness, contrast = rng.uniform(1 - strength, 1 + strength, 2).astype(np.float32)
    mean = image.mean()
    jittered: Pixels = np.clip((image - mean) * contrast + mean * brightness, 0, 255)
    return jittered


def jitter_colour(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """The same, then saturation: as torchvision's ColorJitter without the hue, in a fixed order."""
    jittered = jitter_light(image, strength, rng)
    grey = (jittered @ _LUMA)[..., None]
    result: Pixels = np.clip(grey + np.float32(rng.uniform(1 - strength, 1 + strength)) * (jittered - grey), 0, 255)
    return result
