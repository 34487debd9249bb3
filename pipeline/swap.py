"""The swap: exchange two patches of an image, in numpy for one image and in torch for a batch on its device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def swap_patches(image: NDArray[np.uint8], pair: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
    """A copy of one image (H,W,C) with the two patches of `pair` (y1,x1,y2,x2,height,width) exchanged.

    The patches must be inside the image and not overlap, as those of `pipeline.pairs.draw_pairs` do; then the
    result is a permutation of the pixels and the swap is its own inverse.
    """
    y1, x1, y2, x2, height, width = (int(v) for v in pair)
    swapped = image.copy()
    swapped[y1 : y1 + height, x1 : x1 + width] = image[y2 : y2 + height, x2 : x2 + width]
    swapped[y2 : y2 + height, x2 : x2 + width] = image[y1 : y1 + height, x1 : x1 + width]
    return swapped


def swap_batch(images: Tensor, pairs: Tensor) -> Tensor:
    """A copy of (B,C,H,W) images, any dtype, with the patches of pairs (B,6) exchanged, one pair per image."""
    return swap_by_index(images, pairs) if images.is_cuda else swap_by_slices(images, pairs)


def swap_by_slices(images: Tensor, pairs: Tensor) -> Tensor:
    """`swap_batch` one image after the other, as is fastest on a CPU."""
    swapped = images.clone()
    for i, (y1, x1, y2, x2, height, width) in enumerate(pairs.tolist()):
        swapped[i, :, y1 : y1 + height, x1 : x1 + width] = images[i, :, y2 : y2 + height, x2 : x2 + width]
        swapped[i, :, y2 : y2 + height, x2 : x2 + width] = images[i, :, y1 : y1 + height, x1 : x1 + width]
    return swapped


def swap_by_index(images: Tensor, pairs: Tensor) -> Tensor:
    """`swap_batch` in a fixed number of kernels: every pixel fetches from where the swap moved it from."""
    first, second = patch_masks(pairs, images.shape[2], images.shape[3])
    y1, x1, y2, x2 = pairs[:, :4].to(images.device).long().T
    shift = ((y2 - y1) * images.shape[3] + x2 - x1)[:, None, None]
    source = torch.arange(images.shape[2] * images.shape[3], device=images.device).view(1, *images.shape[2:])
    source = source + shift * first.to(images.device) - shift * second.to(images.device)
    return images.flatten(2).gather(2, source.flatten(1)[:, None].expand(-1, images.shape[1], -1)).view_as(images)


def patch_masks(pairs: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where the first and the second patch of each pair (B,6) are: two (B,height,width) bool."""
    y = torch.arange(height, device=pairs.device).view(1, -1, 1)
    x = torch.arange(width, device=pairs.device).view(1, 1, -1)
    y1, x1, y2, x2, h, w = pairs.long().T[..., None, None]
    first = (y >= y1) & (y < y1 + h) & (x >= x1) & (x < x1 + w)
    second = (y >= y2) & (y < y2 + h) & (x >= x2) & (x < x2 + w)
    return first, second
