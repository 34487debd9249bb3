"""Find images of one part among many: another shot of it, a turned, mirrored, brighter or compressed copy."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.threads import CORES, torch_threads
from train.features.extract import Images
from train.registration import VARIANTS, agreement, best_shift, mirrored, transform, turned, whitened

# Sides in pixels of what is compared: spectra, coarse poses, and detail.
_SPECTRUM, _COARSE, _FINE = 64, 32, 128
# Images that are laid over each: those alike in spectrum, and of these the ones that agree best when laid over it.
_CANDIDATES, _COMPARED = 16, 5
# A near copy differs by less than this share of what is usual: `python benchmarks/near_copies.py` shows the gap.
FAR_CLOSER = 1 / 3
# What is usual is measured on so many images, spread over the list.
_SAMPLE = 20
_ROWS_AT_ONCE, _SHIFTS_AT_ONCE, _PAIRS_AT_ONCE = 512, 4096, 32

Pairs = NDArray[np.int64]


def near_copies(images: Images) -> Pairs:
    """(M,2) the pairs of images (S,S,3) uint8 that show the same part, by this rule.

    An image is laid over others that are alike in spectrum: mirrored, turned by quarters and by a little, and shifted.
    Two images differ by 1 less the correlation of their detail, whose contrast is made even over the image, so that
    outlines and light do not outweigh texture. Usual is what an image differs from the likest of the less alike half
    of its candidates, the median over some images: those are other parts, also where a part was photographed up to
    eight times. A pair that differs by less than a third of what is usual is a near copy. Where all parts look the
    same but for noise, other shots of one are not told from other parts, and only copies of a file are found.
    """
    with torch_threads(1):
        first, second, differ, usual = differences(images)
    near = differ <= FAR_CLOSER * usual
    return np.stack([first[near], second[near]], 1)


def differences(images: Images) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], float]:
    """The pairs that were compared: first and second image, and how much they differ; and what is usual."""
    spectral, coarse, fine = _thumbnails(images)
    count = len(fine)
    if count < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), 0.0
    others = _alike(spectral)
    width = others.shape[1]
    first, second = torch.arange(count).repeat_interleave(width), others.flatten()
    fit, variants, shifts = _laid_over(coarse, first, second)
    order = fit.view(count, width).argsort(dim=1, descending=True, stable=True)
    sample = torch.linspace(0, count - 1, min(_SAMPLE, count)).round().long()
    closest = _once((torch.arange(count)[:, None] * width + order[:, :_COMPARED]).flatten(), first, second)
    further = order[sample, width // 2 :]
    chosen = torch.cat([closest, (sample[:, None] * width + further).flatten()])

    def differing(some: Tensor) -> Tensor:
        with torch.inference_mode():
            return 1 - agreement(fine[first[some]], fine[second[some]], variants[some], shifts[some])

    differ = torch.cat(list(CORES.spread(differing, chosen.split(_PAIRS_AT_ONCE))))
    usual = float(differ[len(closest) :].view(further.shape).amin(1).median())
    return first[closest].numpy(), second[closest].numpy(), differ[: len(closest)].numpy(), usual


def _once(chosen: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Those of the chosen pairs whose two images are not those of an earlier one."""
    kept: dict[tuple[int, int], int] = {}
    for place, a, b in zip(chosen.tolist(), first[chosen].tolist(), second[chosen].tolist(), strict=True):
        kept.setdefault((min(a, b), max(a, b)), place)
    return torch.tensor(list(kept.values()), dtype=torch.long)


def _thumbnails(images: Images) -> tuple[Tensor, Tensor, Tensor]:
    """(N,s,s) float32 of every image, grey, at the three sizes."""
    fine = []
    for image in images:
        grey = torch.from_numpy(image.astype(np.float32).mean(2))[None, None]
        fine.append(F.interpolate(grey, size=_FINE, mode="area")[0, 0])
    stacked = torch.stack(fine) if fine else torch.zeros(0, _FINE, _FINE)
    return F.avg_pool2d(stacked, 2), F.avg_pool2d(stacked, 4), stacked


def _alike(images: Tensor) -> Tensor:
    """(N,k) the other images most alike in spectrum, which neither a shift, a quarter turn nor a mirror changes."""
    size = transform(images).abs().clamp_min(1e-3).log()
    side = images.shape[1]
    down = (torch.fft.fftfreq(side) * side).abs().round().long()
    places: dict[tuple[int, int], list[int]] = {}
    for row, y in enumerate(down.tolist()):
        for x in range(side // 2 + 1):
            if 2 <= math.hypot(x, y) <= 16:
                places.setdefault((min(x, y), max(x, y)), []).append(row * (side // 2 + 1) + x)
    rings = torch.stack([size.flatten(1)[:, at].mean(1) for at in places.values()], 1)
    rings = (rings - rings.mean(0)) / rings.std(0, correction=0).clamp_min(1e-6)
    rings = F.normalize(rings - rings.mean(1, keepdim=True), dim=1)
    found = []
    for start in range(0, len(rings), _ROWS_AT_ONCE):
        like = rings[start : start + _ROWS_AT_ONCE] @ rings.T
        like[torch.arange(len(like)), torch.arange(start, start + len(like))] = -2
        found.append(like.topk(min(_CANDIDATES, len(rings) - 1), 1).indices)
    return torch.cat(found)


def _laid_over(images: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each pair how well the second agrees with the first in its best coarse pose, and that: variant, shift."""
    power = torch.stack([_power(mirrored(images, number)) for number in range(8)]).mean(0)
    own = whitened(images, power)
    fit = torch.full((len(first),), -2.0)
    variants, shifts = torch.zeros(len(first), dtype=torch.long), torch.zeros(len(first), 2)
    for number, (symmetry, angle) in enumerate(VARIANTS):
        moved = whitened(turned(mirrored(images, symmetry), angle), power)
        for some in torch.arange(len(first)).split(_SHIFTS_AT_ONCE):
            found, shift = best_shift(own[first[some]], moved[second[some]], images.shape[1])
            better = found > fit[some]
            place = some[better]
            fit[place], variants[place], shifts[place] = found[better], number, shift[better]
    return fit, variants, shifts


def _power(images: Tensor) -> Tensor:
    power = transform(images).abs().square()
    return (power / power.mean((1, 2), keepdim=True).clamp_min(1e-9)).mean(0)
