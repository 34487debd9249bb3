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
    ColorJitter with the hue left alone.
    """
    if strength == 0:
        return images
    factors = torch.from_numpy(rng.uniform(1 - strength, 1 + strength, (3, len(images), 1, 1, 1))).to(images)
    images = (images * factors[0]).clamp_(0, 255)
    luma = torch.tensor(_LUMA, device=images.device).view(1, 3, 1, 1)
    mean = (images * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = (mean + (images - mean) * factors[1]).clamp_(0, 255)
    grey = (images * luma).sum(1, keepdim=True)
    return (grey + (images - grey) * factors[2]).clamp_(0, 255)


def translate(images: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Each image (B,C,H,W) moved by whole pixels, at most `share` of its side each way; edge pixels fill the gap."""
    height, width = images.shape[2:]
    y = _moved(height, share, len(images), rng).to(images.device)
    x = _moved(width, share, len(images), rng).to(images.device)
    batch = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    return images.permute(0, 2, 3, 1)[batch, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def _moved(side: int, share: float, count: int, rng: np.random.Generator) -> Tensor:
    most = round(share * side)
    shift = rng.integers(-most, most + 1, size=(count, 1))
    return torch.from_numpy(np.clip(np.arange(side) + shift, 0, side - 1))
