"""The Gaussian of normal image embeddings; a score is the distance from their mean, 0 or more."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.scorers.finite import finite_tensor

# Directions in which the normals vary less than this share of the mean variance are taken to vary this much:
# the Ledoit-Wolf shrinkage is 0 for two normals, which leaves a covariance without an inverse.
_VARIANCE_FLOOR = 1e-8


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Gaussian of normal image embeddings (D,); all tensors are float64, or float32 in an exported program.

    mean (D,); directions (D,r), orthonormal, in which the variance is one of `variances` (r,); it is `rest` in every
    direction that is orthogonal to them. So r is at most the number of normals, however large D is.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    rest: float

    def scores(self, embeddings: Tensor) -> Tensor:
        """Mahalanobis distances (B,) float64 of embeddings (B,D)."""
        centred = embeddings.to(self.mean) - self.mean
        along = centred @ self.directions
        squares = along.square()
        if self.mean.dtype == torch.float64:
            beside = (centred.square().sum(1) - squares.sum(1)).clamp(min=0)
        else:  # a second product: the difference of two large sums would lose the last digits
            beside = (centred - along @ self.directions.T).square().sum(1)
        return ((squares / self.variances).sum(1).double() + beside.double() / self.rest).sqrt()

    def in_single(self) -> Gaussian:
        """The same in float32, in which some runtimes of exported programs compute, to about 1e-7 of the distance."""
        return replace(
            self, mean=self.mean.float(), directions=self.directions.float(), variances=self.variances.float()
        )


def gaussian_of_factor(mean: Tensor, factor: Tensor) -> Gaussian:
    """The Gaussian whose distance is |(x - mean) factor|, for a factor (D,r): the form of detectors up to format 5."""
    return Gaussian(mean, factor, torch.ones_like(factor[0]), float("inf"))


def fit_gaussian(embeddings: NDArray[np.float32]) -> Gaussian:
    """Gaussian with Ledoit-Wolf shrinkage of normal embeddings (N,D); N >= 2 and N < D are fine.

    Source: Ledoit and Wolf, 2004; Rippel et al., arXiv 2005.14140. Time grows with D N^2 where N < D, as the N x N
    products of embeddings have the eigenvalues of their covariance (D,D). ValueError for N < 2 or a value that is not
    finite. If no feature varies, the distance is the Euclidean one.
    """
    if len(embeddings) < 2:
        raise ValueError(f"a Gaussian needs embeddings (N, D) with N >= 2, got {embeddings.shape}")
    points = finite_tensor(embeddings)
    mean = points.mean(0)
    centred = points - mean
    count, width = centred.shape
    variance = float(centred.square().mean())  # of a dimension, in the mean
    # Below the rounding of float32 embeddings there is no variance to divide by.
    if variance <= float((torch.finfo(torch.float32).eps * mean.abs().max()) ** 2):
        return Gaussian(mean, mean.new_zeros(width, 1), mean.new_ones(1), 1.0)
    wide = width > count
    products = centred @ centred.T if wide else centred.T @ centred
    shrinkage = _ledoit_wolf(products, centred, variance)
    values, vectors = torch.linalg.eigh(products)
    kept = values > values[-1] * len(values) * torch.finfo(torch.float64).eps
    values, vectors = values[kept], vectors[:, kept]
    directions = centred.T @ vectors / values.sqrt() if wide else vectors
    floor = _VARIANCE_FLOOR * variance
    rest = shrinkage * variance
    return Gaussian(mean, directions, ((1 - shrinkage) * values / count + rest).clamp(min=floor), max(rest, floor))


def _ledoit_wolf(products: Tensor, centred: Tensor, variance: float) -> float:
    """The share of the mean variance in the shrunk covariance, 0..1, by either product of `centred` with itself."""
    count, width = centred.shape
    # Of the covariance S: the squared distance to the target is tr(S^2)/D - variance^2, and the mean over normals x of
    # the squared distance of xx' to S is what of it is noise.
    squares = float(products.square().sum()) / count**2
    noise = (float(centred.square().sum(1).square().sum()) / count - squares) / (width * count)
    distance = squares / width - variance**2
    return min(noise, distance) / distance if distance > 0 else 0.0
