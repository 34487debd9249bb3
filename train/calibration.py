"""Scales of scores and maps, trust in the localiser, and threshold: all from held-out normals and their negatives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.evaluation.image_metrics import image_auroc
from train.recipe import Recipe
from train.scorers.cells import CellScale
from train.scorers.fitted import Evidence
from train.scorers.maps import smooth_maps, top_mean
from train.scorers.standardise import FUSIONS, Standardiser, fit_standardiser
from train.threshold import FalsePositives, p_value, rounded, threshold_at

# With fewer held-out normals, an AUROC of theirs says too little to trust a localiser by.
_ENOUGH_TO_TRUST = 10


@dataclass(frozen=True)
class Calibration:
    """Scales and threshold, from the held-out normals and, for the trust in the localiser, from their negatives.

    cells: of distances and logits; standardisers: of the recipe's members and control; map_range: of the normals' maps
    the median of their medians, and the largest value; map_threshold: of the values of a map, as `threshold` is of
    scores; threshold: on the scale of the score that decides, rounded, though not in detectors of earlier versions.
    normal_scores: those that decide, rising and rounded, of the normals that the threshold rests on; none in detectors
    of earlier versions.
    """

    cells: CellScale
    standardisers: Mapping[str, Standardiser]
    map_range: tuple[float, float]
    map_threshold: float
    threshold: float
    normal_scores: tuple[float, ...]

    @property
    def false_positives(self) -> FalsePositives:
        """What the normals say of the rate of false positives at the threshold."""
        return FalsePositives.of(self.normal_scores, self.threshold)

    def p_value(self, score: float) -> float | None:
        """The p-value of a score; see `train.threshold.p_value`."""
        return p_value(self.normal_scores, score)

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


@dataclass(frozen=True, eq=False)
class Unseen:
    """What was found of N normals, two or more, each by what was fitted without it.

    seen (N,) bool: which of them the localiser learned from all the same. parts (N,) int64: equal for images of one
    part, which are alike.
    """

    found: Evidence
    seen: NDArray[np.bool_]
    parts: NDArray[np.int64]


def calibrate(
    recipe: Recipe, normals: Unseen, negatives: Iterable[Evidence], size: int, false_alarms: float
) -> tuple[Calibration, NDArray[np.float64]]:
    """The calibration by normals, and their scores (N,) that decide.

    negatives: what was found of negatives made of the normals that the localiser did not see; read only where there is
    one. size: of the images. false_alarms: the rate of false positives that the threshold is for; it rests on the
    highest score of each part. Memory holds one map at a time.
    """
    scale, found = CellScale(), normals.found
    if found.logits is not None:
        found = _as_unseen(recipe, normals)
        scale = _scale(recipe, found, ~normals.seen, [_of_localiser(recipe, one) for one in negatives])
    scores, cells = _scores(recipe, scale, found), scale.to_show(recipe, found.distances, found.logits)
    fused = dict.fromkeys((*recipe.members, *recipe.control))
    standardisers = {name: fit_standardiser(scores[name].numpy()) for name in fused}
    scores |= _fused(recipe, standardisers, scores)
    maps = (smooth_maps(one, size, recipe.blur) for one in cells.split(1))
    medians, largest = map(np.array, zip(*((float(one.median()), float(one.max())) for one in maps), strict=True))
    deciding: NDArray[np.float64] = scores[recipe.deciding_score].numpy()
    of_parts = _highest(deciding, normals.parts)
    calibration = Calibration(
        scale,
        standardisers,
        map_range=(float(np.median(medians)), float(largest.max())),
        map_threshold=threshold_at(_highest(largest, normals.parts), false_alarms),
        threshold=threshold_at(of_parts, false_alarms),
        normal_scores=tuple(sorted(map(rounded, of_parts.tolist()))),
    )
    return calibration, deciding


def _highest(values: NDArray[np.float64], parts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The highest of the values (N,) of each part."""
    numbers, of = np.unique(parts, return_inverse=True)
    highest = np.full(len(numbers), -np.inf)
    np.maximum.at(highest, of, values)
    return highest


def _as_unseen(recipe: Recipe, normals: Unseen) -> Evidence:
    """The logits of normals that the localiser learned from, raised to what it says of others.

    It has learned that these are normal: their logits are lower, by as much as the quantile is that bounds logits. On
    screws and tiles the threshold was passed by 10 and 12 % of new normals in place of 1.6 % without this.
    """
    logits = normals.found.logits
    assert logits is not None
    if not normals.seen.any():
        return normals.found
    others, own = (_bound(recipe, logits[torch.from_numpy(places)]) for places in (~normals.seen, normals.seen))
    raised = torch.where(torch.from_numpy(normals.seen)[:, None, None], logits + (others - own), logits)
    return replace(normals.found, logits=raised)


def _scale(recipe: Recipe, found: Evidence, held_out: NDArray[np.bool_], of_negatives: Sequence[Tensor]) -> CellScale:
    assert found.logits is not None
    deviation = float(found.distances.double().std(correction=0))
    bound = _bound(recipe, found.logits[torch.from_numpy(held_out)])
    normal, negative = _of_localiser(recipe, found).numpy()[held_out], torch.cat(list(of_negatives)).numpy()
    labels = np.repeat([0, 1], [len(normal), len(negative)])
    own_kind = image_auroc(labels, np.concatenate([normal, negative])) if len(normal) >= _ENOUGH_TO_TRUST else None
    return CellScale(deviation or 1.0, bound, 0.5 if own_kind is None else own_kind)


def _bound(recipe: Recipe, logits: Tensor) -> float:
    return float(np.quantile(logits.numpy().ravel(), recipe.logit_quantile))


def _of_localiser(recipe: Recipe, found: Evidence) -> Tensor:
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
            scores[name] = _of_localiser(recipe, found)
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
