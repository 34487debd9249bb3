"""Augmentation of a batch on its device, after the resize and the swap: colour jitter and small translations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# ITU-R BT.601 luma, the grey that saturation pulls towards.
_LUMA = (0.299, 0.587, 0.114)


def jitter_colour(images: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation of each image times its own factor in 1-strength..1+strength.

    images: (B,3,H,W) float on the 0..255 scale; the result is clipped to it. The order is fixed, as in torchvision's
    ColorJitter without the hue.
    """
    if strength == 0:
        return images
    factors = torch.from_numpy(rng.uniform(1 - strength, 1 + strength, (3, len(images), 1, 1, 1))).to(images)
    # In place after the first: fresh memory for every step would cost more than the arithmetic.
    images = (images * factors[0]).clamp_(0, 255)
    mean = _grey(images.mean((2, 3), keepdim=True))
    images.mul_(factors[1]).add_(mean * (1 - factors[1])).clamp_(0, 255)
    grey = _grey(images)
    images.mul_(factors[2]).add_(grey * (1 - factors[2])).clamp_(0, 255)
    return images


def translate(images: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Each image (B,C,H,W) moved by whole pixels, at most `share` of its side each way; edge pixels fill the gap."""
    for axis in (2, 3):
        side = images.shape[axis]
        most = round(share * side)
        edge = [most if i == axis else -1 for i in range(4)]
        first, last = (images.narrow(axis, place, 1).expand(edge) for place in (0, side - 1))
        padded = torch.cat([first, images, last], axis)
        starts = rng.integers(0, 2 * most + 1, len(images)).tolist()
        moved = [image.narrow(axis - 1, start, side) for image, start in zip(padded, starts, strict=True)]
        images = torch.stack(moved)
    return images


def _grey(images: Tensor) -> Tensor:
    """(B,3,h,w) to (B,1,h,w)."""
    red, green, blue = images.split(1, dim=1)
    grey: Tensor = _LUMA[0] * red
    return grey.add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
