"""Fit what a recipe names to normals: a Gaussian of their embeddings, and references of their patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
class OfNormals:
    """What is fitted to the normals alone, on the backbone's device; see `train.scorers.fitted.Fitted`."""

    gaussian: Gaussian | None
    projection: Tensor | None
    references: PatchNearest


def fit_normals(backbone: Backbone, recipe: Recipe, images: Images, count: int, seed: int) -> OfNormals:
    """Fit to `count` images (H,W,3) uint8 in one pass over them.

    seed: of the patches that references are chosen from. Memory holds one embedding of each image, up to the recipe's
    most, and the candidates of references, not the images.
    """
    device = backbone.device
    pooled, patches = _embedded(backbone, recipe, images, count, seed)
    gaussian = on_device(fit_gaussian(pooled.numpy()), device) if recipe.embedding_stages else None
    candidates = patches.to(device)
    projection = None
    if recipe.whitening != "none":
        projection = WHITENINGS[recipe.whitening](candidates, recipe.ridge).float()
        candidates = candidates @ projection
    kept = max(1, round(recipe.reference_share * len(candidates)))
    if recipe.most_references is not None:
        kept = min(kept, recipe.most_references)
    chosen = greedy_coreset(candidates, min(kept, len(candidates)), recipe.coreset_width, seed)
    return OfNormals(gaussian, projection, PatchNearest(candidates[chosen]))


def _embedded(backbone: Backbone, recipe: Recipe, images: Images, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings (n,D) of images spread over the list, and patch embeddings (M,E): some of each image, or all."""
    generator = torch.Generator().manual_seed(seed)
    each = None if recipe.reference_candidates is None else -(-recipe.reference_candidates // count)
    step = 1 if recipe.most_embeddings is None else -(-count // recipe.most_embeddings)
    pooled, patches = [], []
    place = 0
    for found in map_images(lambda batch: embed(backbone, recipe, batch), images, as_it_is, backbone.device):
        for embedding, cells in zip(found.pooled.cpu(), found.patches.permute(0, 2, 3, 1).flatten(1, 2), strict=True):
            if place % step == 0:
                pooled.append(embedding)
            # Copied: a view would keep the patches of the whole image.
            some = cells if each is None else cells[torch.randperm(len(cells), generator=generator)[:each]].clone()
            patches.append(some.cpu())
            place += 1
    return torch.stack(pooled), torch.cat(patches)
