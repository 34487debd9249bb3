"""Fit the scorers of a detector: to normals, and to what was gathered of negatives."""

from __future__ import annotations

import torch

from pipeline.backbones.load import Backbone
from train.features.extract import as_it_is, map_images
from train.features.network import CutSwapNetwork
from train.recipe import Recipe
from train.scorers.contrast import Contrast
from train.scorers.coreset import greedy_coreset
from train.scorers.fitted import Fitted
from train.scorers.gaussian import Gaussian, fit_gaussian
from train.scorers.nearest import KNearest, PatchNearest, fit_k_nearest
from train.scorers.normals import Normals
from train.scorers.state import on_device


def fit_scorers(
    recipe: Recipe,
    pretrained: Backbone,
    network: CutSwapNetwork | None,
    contrast: Contrast | None,
    normals: Normals,
    seed: int,
) -> Fitted:
    """Fit what the recipe names to `normals` and to what `contrast` holds of negatives.

    contrast: None where there were none: distances weigh all directions alike. seed: of the references.
    """
    device = pretrained.device
    projection = None if contrast is None else contrast.patch_projection()
    patches = normals.patches.flatten(0, 1).to(device)
    projected = patches if projection is None else patches @ projection
    kept = max(1, round(recipe.reference_share * len(projected)))
    if recipe.most_references is not None:
        kept = min(kept, recipe.most_references)
    references = PatchNearest(projected[greedy_coreset(projected, kept, recipe.coreset_width, seed)].float())
    scorers = _of_embeddings(recipe, network, contrast, normals) if recipe.embedding_stages else {}
    scorers = {name: on_device(scorer, device) for name, scorer in scorers.items()}
    return Fitted(recipe, pretrained, network, scorers, projection, references)


@torch.no_grad()
def _of_embeddings(
    recipe: Recipe, network: CutSwapNetwork | None, contrast: Contrast | None, normals: Normals
) -> dict[str, Gaussian | KNearest]:
    trained, gaussian = normals.pooled, normals.gaussian
    if network is not None and not network.frozen:
        embeddings = map_images(network.embedding, normals.images, as_it_is, network.backbone.device)
        trained = torch.cat([embedding.cpu() for embedding in embeddings]).numpy()
        gaussian = fit_gaussian(trained)
    return {
        "untrained": normals.gaussian,
        "embedding": normals.gaussian if contrast is None else contrast.embedding_discriminant(),
        "gde": gaussian,
        "knn": fit_k_nearest(trained, recipe.neighbours),
    }
