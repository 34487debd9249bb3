"""The cells of an image as its score and as its anomaly map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def top_mean(distances: Tensor, share: float) -> Tensor:
    """(B,) mean of the highest cells of (B,h,w), this share of them and at least one: a defect is seldom one cell."""
    flat = distances.flatten(1)
    return flat.topk(max(1, round(share * flat.shape[1])), dim=1).values.mean(1)


def smooth_maps(distances: Tensor, size: int, blur: float) -> Tensor:
    """Cells (B,h,w) to maps (B,size,size): upsampled bilinearly and smoothed by a Gaussian.

    blur: its sigma, as a share of the side; it is cut off at three of them, and reflected at the border. Source:
    PatchCore.
    """
    # Both steps are linear, and the same along rows and columns: two products of small matrices do what a
    # two-dimensional kernel does, without ever smoothing a whole map.
    rows, columns = distances.shape[1:]
    down = smooth_profiles(rows, size, blur, distances)
    across = down if columns == rows else smooth_profiles(columns, size, blur, distances)
    return down.T @ distances @ across


def smooth_profiles(cells: int, size: int, blur: float, like: Tensor) -> Tensor:
    """(cells,size): what each of the cells along a side, alone at 1, becomes; dtype and device are those of `like`."""
    sigma = blur * size
    reach = round(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=like.dtype, device=like.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    each = torch.eye(cells, dtype=like.dtype, device=like.device)
    upsampled = F.interpolate(each[None], size=size, mode="linear", align_corners=False)
    windows = F.pad(upsampled, (reach, reach), mode="reflect")[0].unfold(1, 2 * reach + 1, 1)
    # A product, not a convolution: on a GPU, torch rounds the values of convolutions to 10 bits (TF32).
    return windows @ (kernel / kernel.sum())
