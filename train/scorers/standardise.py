"""The scale of a scorer, by which scorers of different scales are fused into one score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Standardiser:
    """Mean and standard deviation of held-out normals' scores."""

    mean: float
    deviation: float

    def standardise(self, scores: Tensor) -> Tensor:
        """Scores (M,) float64 in deviations above the mean of the held-out normals."""
        return (scores - self.mean) / self.deviation


# What is made of standardised scores (K,M) of K scorers: (M,). "largest": an image is as anomalous as the scorer says
# that finds it most anomalous.
FUSIONS: dict[str, Callable[[Tensor], Tensor]] = {"largest": lambda z: z.amax(0), "sum": lambda z: z.sum(0)}


def fit_standardiser(scores: NDArray[np.float64]) -> Standardiser:
    """Mean and sample deviation (1 if it is 0) of scores (N,); ValueError for N < 2 or one not finite."""
    if len(scores) < 2 or not np.isfinite(scores).all():
        raise ValueError(f"standardising needs 2 or more finite scores of normals, got {len(scores)}")
    deviation = float(scores.std(ddof=1)) if np.ptp(scores) > 0 else 1.0
    return Standardiser(mean=float(scores.mean()), deviation=deviation)
