"""The scales of the scores that are fused, the range of maps, and the threshold, all from held-out normals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.evaluation.metrics import threshold_at
from train.features.extract import Images, as_it_is
from train.recipe import Recipe
from train.scorers.cells import CellScale
from train.scorers.fitted import Evidence, Fitted, join
from train.scorers.maps import smooth_maps, top_mean
from train.scorers.standardise import FUSIONS, Standardiser, fit_standardiser


@dataclass(frozen=True)
class Calibration:
    """Scales and threshold, from the held-out normals.

    cells: of distances and logits; standardisers: of the recipe's members and control; map_range: of the normals' maps
    the median of their medians, and the largest value; threshold: on the scale of the score that decides.
    """

    cells: CellScale
    standardisers: Mapping[str, Standardiser]
    map_range: tuple[float, float]
    threshold: float

    def scores(self, recipe: Recipe, found: Evidence) -> tuple[dict[str, Tensor], Tensor]:
        """Scores (B,) float64 by name, those that fuse the others too, and the cells (B,h,w) that the map shows."""
        scores, cells = _scores(recipe, self.cells, found)
        return scores | _fused(recipe, self.standardisers, scores), cells


def calibrate(fitted: Fitted, held_out: Images, height: int, false_alarms: float) -> Calibration:
    """The calibration by two or more normals that nothing was fitted to.

    height: of the images. false_alarms: share of them that the threshold may flag. Memory holds the cells of all of
    them, but one map at a time.
    """
    recipe = fitted.recipe
    found = join(fitted.each(held_out, as_it_is))
    scale = _scale(recipe, found)
    scores, cells = _scores(recipe, scale, found)
    fused = dict.fromkeys((*recipe.members, *recipe.control))
    standardisers = {name: fit_standardiser(scores[name].numpy()) for name in fused}
    scores |= _fused(recipe, standardisers, scores)
    maps = [smooth_maps(one, height, recipe.blur) for one in cells.split(1)]
    map_range = float(np.median([float(one.median()) for one in maps])), max(float(one.max()) for one in maps)
    threshold = threshold_at(scores[recipe.deciding_score].numpy(), false_alarms)
    return Calibration(scale, standardisers, map_range, threshold)


def _scale(recipe: Recipe, found: Evidence) -> CellScale:
    if found.logits is None:
        return CellScale()
    deviation = float(found.distances.double().std(correction=0))
    bound = float(np.quantile(found.logits.numpy().ravel(), recipe.logit_quantile))
    return CellScale(deviation or 1.0, bound)


def _scores(recipe: Recipe, scale: CellScale, found: Evidence) -> tuple[dict[str, Tensor], Tensor]:
    """The scores of every scorer of the recipe, and the cells."""
    cells = scale.combine(found.distances, found.logits, recipe.logit_weight)
    by_cell = {"cells": cells} if found.logits is None else {"cells": cells, "localiser": found.logits}
    scores = {}
    for name in recipe.scorers:
        # "patches", and as PatchCore's arms call it
        of_cells = by_cell.get(name, found.distances)
        scores[name] = found.image[name] if name in found.image else top_mean(of_cells, recipe.top_share).double()
    return scores, cells


def _fused(
    recipe: Recipe, standardisers: Mapping[str, Standardiser], scores: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    def fuse(members: Sequence[str], fusion: str) -> Tensor:
        return FUSIONS[fusion](torch.stack([standardisers[name].standardise(scores[name]) for name in members]))

    fused = {fusion: fuse(recipe.members, fusion) for fusion in FUSIONS} if recipe.members else {}
    if recipe.control and recipe.deciding_score in FUSIONS:
        fused["untrained"] = fuse(recipe.control, recipe.deciding_score)
    return fused
