"""The scale of a scorer, by which scorers of different scales are fused into one score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# A deviation is at least this share of the mean.
_LEAST = 1e-3


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
    """Mean and sample deviation of scores (N,), at least 0.1 % of the mean; 1 for equal scores.

    Scores that hardly differ, as of images that hardly do, would give every other score a huge standardised one.
    ValueError for N < 2 or one not finite.
    """
    if len(scores) < 2 or not np.isfinite(scores).all():
        raise ValueError(f"standardising needs 2 or more finite scores of normals, got {len(scores)}")
    mean = float(scores.mean())
    deviation = max(float(scores.std(ddof=1)), _LEAST * abs(mean)) if np.ptp(scores) > 0 else 1.0
    return Standardiser(mean, deviation)
