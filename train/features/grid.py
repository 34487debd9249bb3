"""Cells of activations brought from one grid to another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def on_grid(cells: Tensor, grid: Sequence[int]) -> Tensor:
    """Cells (...,h,w) on another grid: along each axis averaged down, or interpolated linearly up.

    By products with a matrix per axis, whose gradients are the same at every run, also on a GPU.
    """
    if tuple(cells.shape[-2:]) == tuple(grid):
        return cells
    rows, columns = (_resize(before, after, cells) for before, after in zip(cells.shape[-2:], grid, strict=True))
    return rows @ cells @ columns.T


def _resize(before: int, after: int, like: Tensor) -> Tensor:
    """(after,before): how much of each cell goes into each new one along an axis; dtype and device those of `like`."""
    each = torch.eye(before, dtype=like.dtype, device=like.device)[None]
    if after <= before:
        return F.adaptive_avg_pool1d(each, after)[0].T
    return F.interpolate(each, size=after, mode="linear", align_corners=False)[0].T
