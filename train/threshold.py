"""A threshold, and what it rests on: the scores of normals that the detector did not see."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Of scores and thresholds, when they are compared and where they are told: a reader of both comes to our verdict.
DECIMALS = 4
# How sure the bounds of a rate are, each by itself.
_SURE = 0.95
# With fewer scores a threshold is a guess: at least one new normal of 20 is expected above the highest of them.
ENOUGH = 20


def rounded(score: float) -> float:
    """A score or a threshold as it is compared and told."""
    return round(score, DECIMALS)


def threshold_at(scores: NDArray[np.floating], false_positive_rate: float) -> float:
    """The least score of unseen normals (N,) that keeps the expected rate of false positives, rounded up.

    A new normal lies above the k + 1-th highest of N with probability (k + 1) / (N + 1), whatever their distribution is
    (Vovk et al., Algorithmic Learning in a Random World, 2005): k is the most that keeps the rate. Where even the
    highest does not, for N < 1 / rate - 1, it is the threshold. ValueError for no scores, one not finite, or a rate
    outside 0 <= rate < 1.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    if len(ordered) == 0 or not np.isfinite(ordered).all():
        raise ValueError(f"a threshold needs finite scores of unseen normals, got {len(ordered)}")
    if not 0 <= false_positive_rate < 1:
        raise ValueError(f"a rate of false positives is in 0 <= rate < 1, not {false_positive_rate}")
    # The small term keeps 0.29 * 100 = 28.999999999999996 from losing one.
    above = min(max(0, math.floor(false_positive_rate * (len(ordered) + 1) + 1e-9) - 1), len(ordered) - 1)
    # Up, so that no normal which is not above it becomes so where either is rounded.
    whole: int = 10**DECIMALS
    return math.ceil(float(ordered[-1 - above]) * whole) / whole


def normals_for(false_positive_rate: float) -> int:
    """How many unseen normals a threshold needs to keep an expected rate."""
    return math.ceil(1 / false_positive_rate - 1 - 1e-9)


def p_value(normal_scores: Sequence[float], score: float) -> float | None:
    """The share of N unseen normals, and of the image itself, that score at least as high: 1/(N+1) to 1.

    It is comparable between detectors. A conformal p-value, by the same source as `threshold_at`. normal_scores:
    rising and rounded. None where N is 0.
    """
    count = len(normal_scores)
    return (count - bisect_left(normal_scores, rounded(score)) + 1) / (count + 1) if count else None


@dataclass(frozen=True)
class FalsePositives:
    """What `above` of `normals` unseen normals over a threshold say of the rate at which new ones are over it."""

    above: int
    normals: int

    @classmethod
    def of(cls, scores: Sequence[float], threshold: float) -> FalsePositives:
        """Of the scores of unseen normals, rounded."""
        return cls(sum(score > rounded(threshold) for score in scores), len(scores))

    @property
    def estimate(self) -> float:
        """The expected rate, 0..1."""
        return (self.above + 1) / (self.normals + 1)

    @property
    def low(self) -> float:
        """The rate is at least this, with a probability of 95 %; 0 to the estimate."""
        return self._quantile(1 - _SURE)

    @property
    def high(self) -> float:
        """The rate is at most this, with a probability of 95 %; the estimate to 1."""
        return self._quantile(_SURE)

    @property
    def rates(self) -> dict[str, float]:
        """Estimate and bounds by name, as files hold them."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high}

    def _quantile(self, share: float) -> float:
        """Of the rate's distribution, Beta(above + 1, normals - above), over draws of the normals."""
        if self.above >= self.normals:
            return 1.0
        from scipy.special import betaincinv  # here: a detector is loaded without it

        return float(betaincinv(self.above + 1, self.normals - self.above, share))
