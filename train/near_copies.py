"""Find images of one part among many: another shot of it, a mirrored, turned, brighter or compressed copy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.threads import CORES, torch_threads
from train.features.extract import Images
from train.scorers.maps import smooth_profiles

# A near copy differs by less than this share of what the image differs from its eighth nearest.
CLOSER, NEIGHBOURS = 0.12, 8
# Side in pixels at which images are laid over each other, and the furthest shift, as a share of it.
_SIDE, _REACH = 64, 0.08
# The detail that is compared: a difference of Gaussians of two widths, and the width in which contrast is made even.
_FINE, _ROUGH, _EVEN = 1.0, 4.0, 6.0
# An image is turned by each of these angles in degrees, and then mirrored by the 8 symmetries of a square.
_ANGLES = (-2.0, 0.0, 2.0)
# Images that are laid over each: those alike in spectrum, which no shift and no symmetry changes.
_CANDIDATES = 16
_ROWS_AT_ONCE = 512


def near_copies(images: Images) -> NDArray[np.int64]:
    """(M,2) the pairs of images (S,S,3) uint8 that show the same part, by this rule.

    An image is laid over the 16 that are most alike in spectrum: mirrored, turned by quarters and by 2 degrees, shifted
    by up to 8 % of its side. Two images differ by 1 less the correlation of their detail, whose contrast is made even,
    so that outlines and light do not outweigh texture. A pair is near if it differs by less than 12 % of what both of
    its images differ from their eighth nearest: a part that was photographed up to eight times has other parts there.
    """
    others, over = compared(images)
    near = over < CLOSER
    return np.stack([np.nonzero(near)[0], others[near]], 1)


def compared(images: Images) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(N,k) int64 the images each is laid over, and by how much it differs from them, as a share of what is usual."""
    with torch_threads(1):
        others, differ = differences(images)
    if not others.shape[1]:
        return others, differ
    usual = np.sort(differ, axis=1)[:, min(NEIGHBOURS, others.shape[1]) - 1]
    return others, differ / np.minimum(usual[:, None], usual[others]).clip(1e-6)


def differences(images: Images) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(N,k) int64 the other images most alike in spectrum, and how much each differs from the image, 0 to 2."""
    seen = [_thumbnail(image) for image in images]
    grey = torch.stack(seen) if seen else torch.zeros(0, _SIDE, _SIDE)
    if len(grey) < 2:
        return np.zeros((len(grey), 0), np.int64), np.zeros((len(grey), 0), np.float32)
    turned = {degrees: _detail(_turned(grey, degrees)) for degrees in _ANGLES}
    others, own = _alike(grey), torch.fft.rfft2(turned[0.0])
    reach = round(_REACH * _SIDE)

    def best(pose: tuple[int, float]) -> Tensor:
        symmetry, degrees = pose
        with torch.inference_mode():
            moved = torch.fft.rfft2(_mirrored(turned[degrees], symmetry))
            found = [_agreement(own[row], moved[others[row]], reach) for row in range(len(own))]
        return torch.stack(found)

    agree = torch.full(others.shape, -1.0)
    for found in CORES.spread(best, product(range(8), _ANGLES)):
        agree = torch.maximum(agree, found)
    return others.numpy(), (1 - agree).numpy()


def _agreement(one: Tensor, others: Tensor, reach: int) -> Tensor:
    """(k,) the highest correlation of others, by their transforms (k,S,S/2+1), with one, over shifts up to `reach`."""
    shifted = torch.fft.irfft2(one * others.conj(), s=(_SIDE, _SIDE)).roll((reach, reach), (1, 2))
    highest: Tensor = shifted[:, : 2 * reach + 1, : 2 * reach + 1].amax((1, 2))
    return highest


def _thumbnail(image: NDArray[np.uint8]) -> Tensor:
    grey = torch.from_numpy(image.astype(np.float32).mean(2))[None, None]
    return F.interpolate(grey, size=_SIDE, mode="area")[0, 0]


def _mirrored(images: Tensor, symmetry: int) -> Tensor:
    """Images (n,S,S) by one of the 8 symmetries of a square."""
    images = images.transpose(1, 2) if symmetry & 1 else images
    return images.flip([axis for axis, bit in ((1, 2), (2, 4)) if symmetry & bit])


def _turned(images: Tensor, degrees: float) -> Tensor:
    """Images (n,S,S) turned about their centre."""
    if not degrees:
        return images
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    turn = torch.tensor([[[cosine, -sine, 0.0], [sine, cosine, 0.0]]]).expand(len(images), 2, 3)
    grid = F.affine_grid(turn, [len(images), 1, _SIDE, _SIDE], align_corners=False)
    return F.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0]


def _detail(images: Tensor) -> Tensor:
    """(n,S,S) of norm 1: the detail of images (n,S,S), of even contrast, less at the border."""
    detail = _blurred(images, _FINE) - _blurred(images, _ROUGH)
    detail = detail / _blurred(detail.square(), _EVEN).clamp_min(1e-3).sqrt()
    window = torch.hann_window(_SIDE + 2)[1:-1].sqrt()
    detail = detail * window[:, None] * window
    detail = detail - detail.mean((1, 2), keepdim=True)
    norm: Tensor = detail.flatten(1).norm(dim=1).clamp_min(1e-9)
    return detail / norm[:, None, None]


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (n,S,S) smoothed by a Gaussian, reflected at the border."""
    profile = smooth_profiles(_SIDE, _SIDE, sigma / _SIDE, images)
    return profile.T @ images @ profile


def _alike(images: Tensor) -> Tensor:
    """(N,k) the other images most alike in spectrum, which neither a shift, a quarter turn nor a mirror changes."""
    window = torch.hann_window(_SIDE + 2)[1:-1]
    spectrum = torch.fft.rfft2(images * window[:, None] * window).abs().clamp_min(1e-3).log()
    rings = torch.stack([spectrum[:, rows, columns].mean(1) for rows, columns in _rings()], 1)
    rings = (rings - rings.mean(0)) / rings.std(0, correction=0).clamp_min(1e-6)
    rings = F.normalize(rings - rings.mean(1, keepdim=True), dim=1)
    found = []
    for start in range(0, len(rings), _ROWS_AT_ONCE):
        like = rings[start : start + _ROWS_AT_ONCE] @ rings.T
        like[torch.arange(len(like)), torch.arange(start, start + len(like))] = -2
        found.append(like.topk(min(_CANDIDATES, len(rings) - 1), 1).indices)
    return torch.cat(found)


def _rings() -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and columns of the coefficients of a spectrum that the symmetries of a square exchange, set by set."""
    places: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row in range(_SIDE):
        for column in range(_SIDE // 2 + 1):
            y = min(row, _SIDE - row)
            if 2 <= math.hypot(y, column) <= _SIDE / 4:
                places.setdefault((min(y, column), max(y, column)), []).append((row, column))
    for same in places.values():
        rows, columns = torch.tensor(same).T
        yield rows, columns
