"""The Gaussian of normal image embeddings; a score is the distance from their mean, 0 or more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.linalg import vector_norm

from train.scorers.finite import finite_tensor

# Directions in which the normals vary less than this share of the mean variance are taken to vary this much:
# the Ledoit-Wolf shrinkage is 0 for two normals, which leaves a covariance without an inverse.
_VARIANCE_FLOOR = 1e-8


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Gaussian of normal image embeddings: mean (D,) and factor (D, D), both float64.

    The factor F satisfies F F^T = precision, so the Mahalanobis distance of x is |(x - mean) F|.
    """

    mean: Tensor
    factor: Tensor

    def scores(self, embeddings: Tensor) -> Tensor:
        """Mahalanobis distances (B,) float64 of embeddings (B, D)."""
        distances: Tensor = vector_norm((embeddings.double() - self.mean) @ self.factor, dim=1)
        return distances


def fit_gaussian(embeddings: NDArray[np.float32]) -> Gaussian:
    """Gaussian with Ledoit-Wolf shrinkage of normal embeddings (N, D); N >= 2 and N < D are fine.

    Source: Rippel et al., arXiv 2005.14140; the density of CutPaste, arXiv 2104.04015. ValueError for N < 2
    or a value that is not finite. If no feature varies, the distance is the Euclidean one.
    """
    from sklearn.covariance import LedoitWolf  # here: a detector that only scores needs none of it

    if len(embeddings) < 2:
        raise ValueError(f"a Gaussian needs embeddings (N, D) with N >= 2, got {embeddings.shape}")
    estimate = LedoitWolf(store_precision=False).fit(finite_tensor(embeddings).numpy())
    mean = torch.from_numpy(estimate.location_)
    return Gaussian(mean=mean, factor=_precision_factor(torch.from_numpy(estimate.covariance_), mean))


def _precision_factor(covariance: Tensor, mean: Tensor) -> Tensor:
    variance = covariance.trace() / len(mean)
    # Below the rounding of float32 embeddings there is no variance to divide by.
    if variance <= (torch.finfo(torch.float32).eps * mean.abs().max()) ** 2:
        return torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    values, vectors = torch.linalg.eigh(covariance)
    factor: Tensor = vectors / values.clamp(min=_VARIANCE_FLOOR * variance).sqrt()
    return factor
