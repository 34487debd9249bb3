"""Fit what a recipe names to normals: a Gaussian of their embeddings, and references of their patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbones.load import Backbone
from train.features.extract import Images, as_it_is, embed, map_images
from train.recipe import Recipe
from train.scorers.coreset import greedy_coreset
from train.scorers.gaussian import Gaussian, fit_gaussian
from train.scorers.nearest import PatchNearest
from train.scorers.state import on_device
from train.scorers.whitening import WHITENINGS


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What a recipe is fitted to, of n normals, on the CPU.

    pooled (m,D) float32: of some normals; patches (M,E) float32: some of each normal, or all; pooled_of (m,) and
    patches_of (M,): the place of the normal that each is of, 0 to n - 1.
    """

    pooled: Tensor
    pooled_of: NDArray[np.int64]
    patches: Tensor
    patches_of: NDArray[np.int64]

    def without(self, places: NDArray[np.int64]) -> Embeddings:
        """Those of the other normals."""
        pooled, patches = (np.flatnonzero(~np.isin(of, places)) for of in (self.pooled_of, self.patches_of))
        return Embeddings(
            self.pooled[torch.from_numpy(pooled)],
            self.pooled_of[pooled],
            self.patches[torch.from_numpy(patches)],
            self.patches_of[patches],
        )


@dataclass(frozen=True, eq=False)
class OfNormals:
    """What is fitted to the normals alone, on the backbone's device; see `train.scorers.fitted.Fitted`."""

    gaussian: Gaussian | None
    projection: Tensor | None
    references: PatchNearest


def embed_normals(backbone: Backbone, recipe: Recipe, images: Images, count: int, seed: int) -> Embeddings:
    """Embed `count` images (H,W,3) uint8 in one pass over them; seed: of the patches that are taken of each.

    Memory holds one embedding of each image, up to the recipe's most, and the candidates of references, not the images.
    """
    generator = torch.Generator().manual_seed(seed)
    each = None if recipe.reference_candidates is None else -(-recipe.reference_candidates // count)
    step = 1 if recipe.most_embeddings is None else -(-count // recipe.most_embeddings)
    pooled, patches = list[Tensor](), list[Tensor]()
    for found in map_images(lambda batch: embed(backbone, recipe, batch), images, as_it_is, backbone.device):
        for embedding, cells in zip(found.pooled.cpu(), found.patches.permute(0, 2, 3, 1).flatten(1, 2), strict=True):
            if len(patches) % step == 0:
                pooled.append(embedding)
            # Copied: a view would keep the patches of the whole image.
            some = cells if each is None else cells[torch.randperm(len(cells), generator=generator)[:each]].clone()
            patches.append(some.cpu())
    patches_of = np.repeat(np.arange(len(patches)), [len(some) for some in patches])
    return Embeddings(torch.stack(pooled), np.arange(0, len(patches), step), torch.cat(patches), patches_of)


def fit_normals(embeddings: Embeddings, recipe: Recipe, device: torch.device, seed: int) -> OfNormals:
    """Fit to the embeddings of normals; seed: of the references that are chosen from their patches."""
    gaussian = on_device(fit_gaussian(embeddings.pooled.numpy()), device) if recipe.embedding_stages else None
    candidates = embeddings.patches.to(device)
    projection = None
    if recipe.whitening != "none":
        projection = WHITENINGS[recipe.whitening](candidates, recipe.ridge).float()
        candidates = candidates @ projection
    kept = max(1, round(recipe.reference_share * len(candidates)))
    if recipe.most_references is not None:
        kept = min(kept, recipe.most_references)
    chosen = greedy_coreset(candidates, min(kept, len(candidates)), recipe.coreset_width, seed)
    return OfNormals(gaussian, projection, PatchNearest(candidates[chosen]))
