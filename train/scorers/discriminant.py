"""What negatives teach in closed form: the quadratic discriminant of normals against negatives.

For normals N(0, A) and negatives N(0, B) the log-likelihood ratio of x is, up to constants, half of x' (1/A - 1/B) x
(Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, section 4.3). In the directions that whiten A
and make B diagonal, with variances l, that is the sum of (1 - 1/l) x_i^2: a squared distance in which a direction
counts the more, the further negatives go beyond normals in it, and not at all where they do not.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quadratic_discriminant(whitening: Tensor, negative: Tensor, width: int) -> Tensor:
    """Factor F (D,d), d <= width, of the distance |x F|: the directions in which negatives exceed normals most.

    whitening: (D,D) float64 W with W' A W = 1 for the normals' covariance A. negative: (D,D) float64, the negatives'
    second moments about the normals' mean in whitened coordinates, W' B W. d is 0 where they exceed normals nowhere.
    """
    variances, directions = torch.linalg.eigh(negative)
    gains = 1 - 1 / variances.clamp(min=1)
    kept = torch.arange(len(gains), device=gains.device) >= len(gains) - width
    kept &= gains > 0
    factor: Tensor = whitening @ (directions[:, kept] * gains[kept].sqrt())
    return factor


def whiten(covariance: Tensor, ridge: float) -> Tensor:
    """(D,D) float64 W with W' (covariance + ridge * mean variance) W = 1; the identity where nothing varies."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    variance = covariance.trace() / len(covariance)
    if variance <= 0:
        return identity
    variances, directions = torch.linalg.eigh(covariance + ridge * variance * identity)
    whitening: Tensor = directions / variances.sqrt()
    return whitening
