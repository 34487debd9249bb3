"""What the held-out normals decide: the scales of the scores that are added up, the range of maps, the threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.features import Images
from train.fitted import Fitted
from train.metrics import threshold_at
from train.scorers import Standardiser, fit_standardiser


@dataclass(frozen=True)
class Calibration:
    """standardisers: of the recipe's members; map_range: median and largest value of the held-out normals' maps;

    threshold: on the scale of the score that decides.
    """

    standardisers: Mapping[str, Standardiser]
    map_range: tuple[float, float]
    threshold: float


def calibrate(fitted: Fitted, held_out: Images, false_alarms: float) -> Calibration:
    """By two normals or more that nothing was fitted to; false_alarms: share of them that the threshold may flag."""
    recipe = fitted.recipe
    scores, maps = fitted.score_all(held_out, tuple(dict.fromkeys((*recipe.members, *recipe.deciding))))
    standardisers = {name: fit_standardiser(scores[name].numpy()) for name in recipe.members}
    threshold = threshold_at(decide(recipe.decides, standardisers, scores).numpy(), false_alarms)
    return Calibration(standardisers, (float(np.median(maps.numpy())), float(maps.max())), threshold)


def decide(decides: str, standardisers: Mapping[str, Standardiser], scores: Mapping[str, Tensor]) -> Tensor:
    """(B,) float64: of scores (B,) by name the one that decides, which may be the sum of the standardised ones."""
    if decides != "sum":
        return scores[decides]
    return torch.stack([scale.standardise(scores[name]) for name, scale in standardisers.items()]).sum(0)
