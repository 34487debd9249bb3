"""Lay one image over another by a quarter turn, a mirror, a shift and a small turn, and measure how well they agree."""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

# A coarse pose: one of the 8 symmetries of a square, then one of these angles in degrees, then a shift in pixels.
ANGLES = (-2.5, 0.0, 2.5)
VARIANTS = tuple(product(range(8), ANGLES))
# The furthest shift that is looked for, as a share of the side.
_REACH = 0.12
# Scales in pixels of a difference of Gaussians: of the first alignment, of the second, and of the detail compared.
_ROUGH, _CLOSE, _DETAIL = (2.5, 10.0), (1.0, 6.0), (1.0, 4.0)
_STEPS = 4


def taper(side: int, share: float) -> Tensor:
    """(side,side) 1 inside, falling to 0 at the border over half this share of a side."""
    place = torch.arange(side) + 0.5
    edge = torch.minimum(place, side - place) / (share * side / 2)
    window = 0.5 - 0.5 * torch.cos(math.pi * edge.clamp_max(1))
    return window[:, None] * window


def mirrored(images: Tensor, number: int) -> Tensor:
    """Images (n,S,S) by one of the 8 symmetries of a square."""
    images = images.transpose(1, 2) if number & 1 else images
    return images.flip([axis for axis, bit in ((1, 2), (2, 4)) if number & bit])


def turned(images: Tensor, degrees: float) -> Tensor:
    """Images (n,S,S) turned about their centre."""
    return _warped(images, _pose(torch.full((len(images),), degrees), torch.zeros(len(images), 2)))[0]


def frequencies(side: int) -> Tensor:
    """(side,side/2+1) cycles per side of each coefficient of a real Fourier transform."""
    distance: Tensor = torch.hypot((torch.fft.fftfreq(side) * side)[:, None], (torch.fft.rfftfreq(side) * side)[None])
    return distance


def transform(images: Tensor) -> Tensor:
    """(n,S,S/2+1) complex of images (n,S,S), less their mean and tapered."""
    window = taper(images.shape[1], 0.25)
    mean = (images * window).sum((1, 2), keepdim=True) / window.sum()
    transformed: Tensor = torch.fft.rfft2((images - mean) * window)
    return transformed


def whitened(images: Tensor, power: Tensor) -> Tensor:
    """Transforms over the usual power, of norm 1, frequencies below 2 and above 11 cycles left out."""
    at = frequencies(images.shape[1])
    band = ((at >= 2) & (at <= 11)).float()
    found = transform(images) * band / (power + 0.05 * power[band > 0].median() + 1e-12).sqrt()
    norm = torch.fft.irfft2(found, s=images.shape[1:]).square().sum((1, 2), keepdim=True).sqrt()
    whole: Tensor = found / norm.clamp_min(1e-9)
    return whole


def best_shift(a: Tensor, b: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Of pairs of whitened transforms: the highest correlation (m,), and where: x, y (m,2) in half sides."""
    reach = round(_REACH * side)
    width = 2 * reach + 1
    found: Tensor = torch.fft.irfft2(a * b.conj(), s=(side, side)).roll((reach, reach), (1, 2))[:, :width, :width]
    value, place = found.flatten(1).max(1)
    return value, torch.stack([place % width - reach, place // width - reach], 1) * (2 / side)


def agreement(a: Tensor, b: Tensor, variants: Tensor, shifts: Tensor) -> Tensor:
    """(m,) correlation of detail of images a and b (m,S,S), each b laid over its a, from a coarse pose on."""
    b = b.clone()
    for number in range(8):
        chosen = variants // len(ANGLES) == number
        b[chosen] = mirrored(b[chosen], number)
    pose = _pose(torch.tensor(ANGLES)[variants % len(ANGLES)], -shifts)
    for scales in (_ROUGH, _CLOSE):
        pose = _aligned(_band(a, scales), _band(b, scales), pose)
    moved, inside = _warped(_even(b), pose)
    return _correlation(_even(a), moved, inside * taper(a.shape[1], 0.1))


def _pose(degrees: Tensor, shifts: Tensor) -> Tensor:
    """(m,4) cosine - 1, sine, and shift x, y: first the shift, then the turn."""
    angle = torch.deg2rad(degrees)
    cos, sin = angle.cos(), angle.sin()
    x, y = shifts[:, 0], shifts[:, 1]
    return torch.stack([cos - 1, sin, cos * x - sin * y, sin * x + cos * y], 1)


def _warped(images: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """The images seen from their poses, and (m,S,S) 1 where that is inside of them."""
    p, q, x, y = pose.T
    matrix = torch.stack([torch.stack([1 + p, -q, x], 1), torch.stack([q, 1 + p, y], 1)], 1)
    grid = F.affine_grid(matrix, [len(images), 1, *images.shape[1:]], align_corners=False)
    seen = F.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    return seen, (grid.abs() <= 1).all(3).float()


def _blurred(images: Tensor, sigma: float) -> Tensor:
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1.0) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(images[:, None], [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None])[:, 0]


def _band(images: Tensor, scales: tuple[float, float]) -> Tensor:
    return _blurred(images, scales[0]) - _blurred(images, scales[1])


def _even(images: Tensor) -> Tensor:
    """The detail of images over its own local deviation, plus a little of that of the image."""
    detail = _band(images, _DETAIL)
    little = 0.01 * detail.std((1, 2), keepdim=True) + 1e-6
    return detail / (_blurred(detail.square(), 4.0).sqrt() + little)


def _centred(images: Tensor, weights: Tensor) -> Tensor:
    return images - (images * weights).sum((1, 2), keepdim=True) / weights.sum((1, 2), keepdim=True).clamp_min(1e-9)


def _correlation(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    a, b = _centred(a, weights), _centred(b, weights)
    norms = ((a * a * weights).sum((1, 2)) * (b * b * weights).sum((1, 2))).sqrt()
    return (a * b * weights).sum((1, 2)) / norms.clamp_min(1e-9)


def _aligned(a: Tensor, b: Tensor, pose: Tensor) -> Tensor:
    """The pose of the highest correlation on the way of some steps of Gauss and Newton (Lucas and Kanade, 1981)."""
    side = a.shape[1]
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    best, kept = torch.full((len(a),), -2.0), pose
    for step in range(_STEPS + 1):
        seen, inside = _warped(b, pose)
        weights = inside * taper(side, 0.15)
        found = _correlation(a, seen, weights)
        kept = torch.where((found > best)[:, None], pose, kept)
        best = torch.maximum(found, best)
        if step < _STEPS:
            pose = pose + _step(a, seen, weights, axis)
    return kept


def _step(a: Tensor, seen: Tensor, weights: Tensor, axis: Tensor) -> Tensor:
    """(m,4) the bounded change of the poses that brings what is seen closest to a, in the linear sense."""
    target, centred = _centred(a, weights), _centred(seen, weights)
    gain = (target * centred * weights).sum((1, 2)) / (centred.square() * weights).sum((1, 2)).clamp_min(1e-9)
    down, right = (slope * len(axis) / 2 for slope in torch.gradient(seen, dim=(1, 2)))
    x, y = axis[None, None, :], axis[None, :, None]
    slopes = torch.stack([right * x + down * y, down * x - right * y, right, down], 1).flatten(2)
    slopes = slopes * gain[:, None, None]
    left = (target - gain[:, None, None] * centred).flatten(1)
    heavy = slopes * weights.flatten(1)[:, None]
    square = heavy @ slopes.transpose(1, 2)
    damping = 1e-3 * square.diagonal(dim1=1, dim2=2) + 1e-9
    change = torch.linalg.solve(square + torch.diag_embed(damping), (heavy @ left[:, :, None]))[:, :, 0]
    return torch.cat([change[:, :2].clamp(-0.03, 0.03), change[:, 2:].clamp(-0.04, 0.04)], 1)
