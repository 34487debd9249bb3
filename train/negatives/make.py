"""The negative of a normal: CutSwap from the cache's pairs, and the ways it is compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.pairs import draw_pairs
from train.negatives.augment import Pixels
from train.negatives.cutpaste import paste, scar
from train.negatives.defects import blob, blur, line, noise
from train.negatives.exchange import exchange
from train.negatives.stream import Normal

_MOST_SWAPS = 3
# Kinds that "mix" has beside CutSwap, each as often as the others; CutSwap makes half of its negatives.
_OTHERS = (scar, blob, paste, noise, blur, line)


def make_negative(kind: str, normal: Normal, rng: np.random.Generator) -> Pixels:
    """The negative (H,W,3) of a normal, on the same scale; `kind` is one of `KINDS`."""
    return KINDS[kind](normal, rng)


def _cutswap(normal: Normal, rng: np.random.Generator) -> Pixels:
    pairs = normal.pairs.reshape(-1, 6)
    return _swapped(normal.image, pairs[rng.integers(len(pairs), size=_swaps(rng))], rng)


def _random_swap(normal: Normal, rng: np.random.Generator) -> Pixels:
    """Pairs of the sizes of the cached ones, anywhere: a map with a single cluster puts no bounds on them."""
    anywhere, settings = torch.zeros(1, 32, 32, dtype=torch.uint8), normal.settings
    key = rng.integers(2**63, size=1, dtype=np.uint64)
    pairs, _ = draw_pairs(
        anywhere,
        key,
        pairs=_swaps(rng),
        image_size=settings.image_size,
        area=settings.patch_area,
        aspect=settings.patch_aspect,
    )
    return _swapped(normal.image, pairs[0].numpy(), rng)


def _swaps(rng: np.random.Generator) -> int:
    return int(rng.integers(1, _MOST_SWAPS + 1))


def _swapped(image: Pixels, pairs: NDArray[np.int16], rng: np.random.Generator) -> Pixels:
    swapped = image.copy()
    for pair in pairs.tolist():
        exchange(swapped, pair, rng)
    # Where two patches touch each other and the image's border, their soft borders overlap.
    return np.clip(swapped, 0, 255)


def _mixed(normal: Normal, rng: np.random.Generator) -> Pixels:
    if rng.random() < 0.5:
        return _cutswap(normal, rng)
    return _OTHERS[rng.integers(len(_OTHERS))](normal.image, rng)


def _paste_or_scar(normal: Normal, rng: np.random.Generator) -> Pixels:
    return (paste if rng.random() < 0.5 else scar)(normal.image, rng)


# How `--negatives` names them.
KINDS: dict[str, Callable[[Normal, np.random.Generator], Pixels]] = {
    "cutswap": _cutswap,
    "random-swap": _random_swap,
    "cutpaste": lambda normal, rng: paste(normal.image, rng),
    "cutpaste-scar": lambda normal, rng: scar(normal.image, rng),
    "cutpaste-3way": _paste_or_scar,
    "mix": _mixed,
}
