"""The scales of the scores that are summed, the range of maps, and the threshold, all from held-out normals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.evaluation.metrics import threshold_at
from train.features.extract import Images, as_it_is
from train.scorers.fitted import Fitted
from train.scorers.standardise import Standardiser, fit_standardiser


@dataclass(frozen=True)
class Calibration:
    """Scales and threshold, from the held-out normals.

    standardisers: of the recipe's members; map_range: median and largest value of the normals' maps; threshold: on the
    scale of the score that decides.
    """

    standardisers: Mapping[str, Standardiser]
    map_range: tuple[float, float]
    threshold: float

    def score(self, name: str, scores: Mapping[str, Tensor]) -> Tensor:
        """(B,) float64: of scores (B,) by scorer the one of that name; "sum" adds up the standardised ones."""
        return _score(name, scores, self.standardisers)


def calibrate(fitted: Fitted, held_out: Images, false_alarms: float) -> Calibration:
    """The calibration by two or more normals that nothing was fitted to.

    false_alarms: share of them that the threshold may flag.
    """
    recipe = fitted.recipe
    scores, maps = fitted.score_all(
        held_out, as_it_is, tuple(dict.fromkeys((*recipe.members, *recipe.deciding_scorers)))
    )
    standardisers = {name: fit_standardiser(scores[name].numpy()) for name in recipe.members}
    deciding = _score(recipe.deciding_score, scores, standardisers)
    map_range = float(np.median(maps.numpy())), float(maps.max())
    return Calibration(standardisers, map_range, threshold_at(deciding.numpy(), false_alarms))


def _score(name: str, scores: Mapping[str, Tensor], standardisers: Mapping[str, Standardiser]) -> Tensor:
    if name != "sum":
        return scores[name]
    return torch.stack([scale.standardise(scores[member]) for member, scale in standardisers.items()]).sum(0)
