"""The distances of patches as the score of an image and as its anomaly map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur


def top_mean(distances: Tensor, share: float) -> Tensor:
    """(B,) mean of this share of the distances (B,h,w), the highest, at least one: a defect is seldom one cell."""
    flat = distances.flatten(1)
    return flat.topk(max(1, round(share * flat.shape[1])), dim=1).values.mean(1)


def smooth_maps(distances: Tensor, size: int, blur: float) -> Tensor:
    """Distances of patches (B,h,w) to maps (B,size,size): upsampled bilinearly and smoothed by a Gaussian.

    blur: its sigma, as a share of the side; it is cut off at three of them. Source: PatchCore.
    """
    maps = F.interpolate(distances[:, None], size=(size, size), mode="bilinear", align_corners=False)
    sigma = blur * size
    smooth: Tensor = gaussian_blur(maps, [2 * round(3 * sigma) + 1] * 2, [sigma] * 2)
    return smooth[:, 0]
