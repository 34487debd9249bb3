"""The embeddings of the normals to train on, computed once for everything that is fitted to them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbones.load import Backbone
from train.features.extract import Images, as_it_is, embed, map_images
from train.recipe import Recipe
from train.scorers.gaussian import Gaussian, fit_gaussian


@dataclass(frozen=True, eq=False)
class Normals:
    """The images to train on and their embeddings in the pretrained network, on the CPU.

    images: N of (size,size,3) uint8; rows: (N,) of the cache; pooled: (N,D) float32 embeddings; patches: (N,k,E)
    float32, k random patch embeddings of each image, or all in their order.
    """

    images: Images
    rows: NDArray[np.int64]
    pooled: NDArray[np.float32]
    patches: Tensor

    @cached_property
    def gaussian(self) -> Gaussian:
        """The Gaussian of the embeddings; ValueError where the recipe names no stage of them."""
        return fit_gaussian(self.pooled)


def embed_normals(backbone: Backbone, recipe: Recipe, images: Images, rows: NDArray[np.int64], seed: int) -> Normals:
    """Embed `images` by the recipe; seed: of the patches kept."""
    generator = torch.Generator().manual_seed(seed)

    def kept(patches: Tensor) -> Tensor:
        if recipe.reference_candidates is None:
            return patches
        each = -(-recipe.reference_candidates // len(rows))
        return patches[torch.randperm(len(patches), generator=generator)[:each]]

    embeddings, some = [], []
    for pooled, patches in map_images(partial(embed, backbone, recipe), images, as_it_is, backbone.device):
        embeddings.append(pooled.cpu())
        some.append(torch.stack([kept(image) for image in patches.permute(0, 2, 3, 1).flatten(1, 2).cpu()]))
    return Normals(images, rows, torch.cat(embeddings).numpy(), torch.cat(some))
