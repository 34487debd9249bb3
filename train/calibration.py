"""Scales of scores and maps, trust in the localiser, and threshold: all from held-out normals and their negatives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.evaluation.metrics import image_auroc, threshold_at
from train.features.extract import Images, as_it_is
from train.recipe import Recipe
from train.scorers.cells import CellScale
from train.scorers.fitted import Evidence, Fitted, join
from train.scorers.maps import smooth_maps, top_mean
from train.scorers.standardise import FUSIONS, Standardiser, fit_standardiser

# With fewer held-out normals, an AUROC of theirs says too little to trust a localiser by.
_ENOUGH_TO_TRUST = 10


# Of scores and thresholds, when they are compared and where they are told: a reader of both comes to our verdict.
DECIMALS = 4


def rounded(score: float) -> float:
    """A score or a threshold as it is compared and told."""
    return round(score, DECIMALS)


@dataclass(frozen=True)
class Calibration:
    """Scales and threshold, from the held-out normals and, for the trust in the localiser, from their negatives.

    cells: of distances and logits; standardisers: of the recipe's members and control; map_range: of the normals' maps
    the median of their medians, and the largest value; threshold: on the scale of the score that decides, rounded,
    though not in detectors of earlier versions.
    """

    cells: CellScale
    standardisers: Mapping[str, Standardiser]
    map_range: tuple[float, float]
    threshold: float

    def exceeds(self, score: float) -> bool:
        """Whether an image of that score is anomalous: both are rounded, so that the last bits of a sum decide nothing.

        The threshold is the score of a held-out normal, which must not exceed it on another machine.
        """
        return rounded(score) > rounded(self.threshold)

    def scores(self, recipe: Recipe, found: Evidence) -> tuple[dict[str, Tensor], Tensor]:
        """Scores (B,) float64 by name, those that fuse the others too, and the cells (B,h,w) that the map shows."""
        scores = _scores(recipe, self.cells, found)
        fused = _fused(recipe, self.standardisers, scores)
        return scores | fused, self.cells.to_show(recipe, found.distances, found.logits)


def calibrate(fitted: Fitted, held_out: Images, negatives: Images, height: int, false_alarms: float) -> Calibration:
    """The calibration by two or more normals that nothing was fitted to.

    negatives: made of them, whole and without jitter; read only where there is a localiser. height: of the images.
    false_alarms: share of the normals that the threshold may flag. Memory holds the cells of all of them, but one map
    at a time.
    """
    recipe = fitted.recipe
    found = join(fitted.each(held_out, as_it_is))
    scale = CellScale()
    if found.logits is not None:
        scale = _scale(recipe, found, [_seen(recipe, one) for one in fitted.each(negatives, as_it_is)])
    scores, cells = _scores(recipe, scale, found), scale.to_show(recipe, found.distances, found.logits)
    fused = dict.fromkeys((*recipe.members, *recipe.control))
    standardisers = {name: fit_standardiser(scores[name].numpy()) for name in fused}
    scores |= _fused(recipe, standardisers, scores)
    maps = (smooth_maps(one, height, recipe.blur) for one in cells.split(1))
    medians, largest = zip(*((float(one.median()), float(one.max())) for one in maps), strict=True)
    map_range = float(np.median(medians)), max(largest)
    # Up, so that no normal which is not above it becomes so where either is rounded.
    whole = 10**DECIMALS
    threshold = math.ceil(threshold_at(scores[recipe.deciding_score].numpy(), false_alarms) * whole) / whole
    return Calibration(scale, standardisers, map_range, threshold)


def _scale(recipe: Recipe, found: Evidence, seen_in_negatives: Sequence[Tensor]) -> CellScale:
    assert found.logits is not None
    deviation = float(found.distances.double().std(correction=0))
    bound = float(np.quantile(found.logits.numpy().ravel(), recipe.logit_quantile))
    normal, negative = _seen(recipe, found).numpy(), torch.cat(list(seen_in_negatives)).numpy()
    labels = np.repeat([0, 1], [len(normal), len(negative)])
    own_kind = image_auroc(labels, np.concatenate([normal, negative])) if len(normal) >= _ENOUGH_TO_TRUST else None
    return CellScale(deviation or 1.0, bound, 0.5 if own_kind is None else own_kind)


def _seen(recipe: Recipe, found: Evidence) -> Tensor:
    """(B,) float64: the localiser's score by itself."""
    assert found.logits is not None
    return top_mean(found.logits, recipe.top_share).double()


def _scores(recipe: Recipe, scale: CellScale, found: Evidence) -> dict[str, Tensor]:
    """The scores of every scorer of the recipe."""
    scores = {}
    for name in recipe.scorers:
        if name in found.image:
            scores[name] = found.image[name]
        elif name == "localiser":
            scores[name] = _seen(recipe, found)
        else:  # "cells", "patches", "patchcore" or "patchcore-whitened"
            logits = found.logits if name == "cells" else None
            cells = scale.to_decide(recipe, found.distances, logits)
            scores[name] = top_mean(cells, recipe.top_share).double()
    return scores


def _fused(
    recipe: Recipe, standardisers: Mapping[str, Standardiser], scores: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    def fuse(members: Sequence[str], fusion: str) -> Tensor:
        return FUSIONS[fusion](torch.stack([standardisers[name].standardise(scores[name]) for name in members]))

    fused = {fusion: fuse(recipe.members, fusion) for fusion in FUSIONS} if recipe.members else {}
    if recipe.control and recipe.deciding_score in FUSIONS:
        fused["untrained"] = fuse(recipe.control, recipe.deciding_score)
    return fused
