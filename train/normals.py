"""The normals to train on as the pretrained network sees them, looked at once for everything that is fitted to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbone import Backbone
from train.features import extract
from train.scorers import Gaussian, fit_gaussian

# Coresets are chosen from at most about this many patches: their time grows with this number times their size.
_PATCHES = 50_000


@dataclass(frozen=True, eq=False)
class Normals:
    """images: N of (size,size,3) uint8; rows: (N,) of the cache; pooled: (N,D) float32 embeddings and their Gaussian;

    patches: (N,k,E) float32, k random patch embeddings of each image, on the CPU.
    """

    images: Sequence[NDArray[np.uint8]]
    rows: NDArray[np.int64]
    pooled: NDArray[np.float32]
    gaussian: Gaussian
    patches: Tensor


def look_at(backbone: Backbone, images: Sequence[NDArray[np.uint8]], rows: NDArray[np.int64], seed: int) -> Normals:
    """Embed `images` with the backbone; seed: of the patches kept."""
    each = -(-_PATCHES // len(images))
    generator = torch.Generator().manual_seed(seed)

    def keep_some(patches: Tensor) -> Tensor:
        flat = patches.permute(0, 2, 3, 1).flatten(1, 2).cpu()
        return torch.stack([image[torch.randperm(len(image), generator=generator)[:each]] for image in flat])

    features = extract(backbone, None, images, keep_some)
    pooled = features.pretrained
    return Normals(images, rows, pooled, fit_gaussian(pooled), torch.cat(features.of_patches))
