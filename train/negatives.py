"""Negatives of a batch of normals: CutSwap from the cache's pairs, and the ways it is compared with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.pairs import draw_pairs
from pipeline.settings import PrecomputeSettings
from pipeline.swap import swap_batch
from train.augment import jitter_colour

# CutPaste (Li et al., arXiv 2104.04015, section 2.1 and appendix): area, aspect and jitter of the pasted patch.
_CUTPASTE_AREA = (0.02, 0.15)
_CUTPASTE_ASPECT = (0.3, 3.3)
_CUTPASTE_JITTER = 0.1


def make_negatives(
    kind: str, images: Tensor, pairs: NDArray[np.int16], settings: PrecomputeSettings, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Negatives of images (B,3,H,W), one each, and the stage (B,) int64 that each one's pair came from.

    kind: "cutswap" swaps one of the cached pairs (B,L,P,6) of a random stage; "random-swap" swaps a pair of the same
    sizes drawn anywhere; "cutpaste" pastes a jittered patch elsewhere. The last two have no stage and get 0.
    """
    count = len(images)
    if kind == "cutswap":
        stage = rng.integers(pairs.shape[1], size=count)
        chosen = pairs[np.arange(count), stage, rng.integers(pairs.shape[2], size=count)]
        return swap_batch(images, torch.from_numpy(chosen)), torch.from_numpy(stage)
    nowhere = torch.zeros(count, dtype=torch.int64)
    if kind == "random-swap":
        chosen = _random_pairs(count, settings.image_size, settings.patch_area, settings.patch_aspect, rng)
        return swap_batch(images, torch.from_numpy(chosen)), nowhere
    chosen = _random_pairs(count, settings.image_size, _CUTPASTE_AREA, _CUTPASTE_ASPECT, rng)
    return _cut_and_paste(images, chosen, rng), nowhere


def _random_pairs(
    count: int, image_size: int, area: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.int16]:
    """(count,6) pairs anywhere: a map with a single cluster puts no bounds on them."""
    keys = rng.integers(2**63, size=count, dtype=np.uint64)
    anywhere = torch.zeros(count, 32, 32, dtype=torch.uint8)
    pairs, _ = draw_pairs(anywhere, keys, pairs=1, image_size=image_size, area=area, aspect=aspect)
    return pairs[:, 0].numpy()


def _cut_and_paste(images: Tensor, pairs: NDArray[np.int16], rng: np.random.Generator) -> Tensor:
    pasted = images.clone()
    jittered = jitter_colour(images.float(), _CUTPASTE_JITTER, rng).to(images.dtype)
    for i, (y1, x1, y2, x2, height, width) in enumerate(pairs.tolist()):
        pasted[i, :, y2 : y2 + height, x2 : x2 + width] = jittered[i, :, y1 : y1 + height, x1 : x1 + width]
    return pasted
