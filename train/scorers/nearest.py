"""The nearest normals of image embeddings and of patch embeddings; a score is a distance, 0 or more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from train.scorers.finite import finite_tensor, in_chunks


@dataclass(frozen=True, eq=False)
class KNearest:
    """Normal image embeddings (N, D) float64 of length 1, and the number k of neighbours to average."""

    normals: Tensor
    k: int

    def scores(self, embeddings: Tensor) -> Tensor:
        """Mean distances (B,) float64 in 0..2 of embeddings (B, D) to their k nearest normals, all of length 1."""
        return _nearest_distances(self.normals, normalize(embeddings.double()), self.k).mean(dim=1)


@dataclass(frozen=True, eq=False)
class PatchNearest:
    """Coreset (size, D) float32 of normal patches; a score is the distance to the nearest of them.

    Source: PatchCore, Roth et al., CVPR 2022, arXiv 2106.08265, without its re-weighting of image scores.
    """

    coreset: Tensor

    def scores(self, patches: Tensor, at_once: bool = False) -> Tensor:
        """Euclidean distances (M,) float32 of patches (M, D), in chunks of bounded memory unless `at_once`."""
        if at_once:
            return _nearest_distances(self.coreset, patches, k=1)[:, 0]
        chunks = in_chunks(patches, max(self.coreset.shape))
        return torch.cat([self.scores(chunk.to(self.coreset), at_once=True) for chunk in chunks])


def fit_k_nearest(embeddings: NDArray[np.float32], k: int = 5) -> KNearest:
    """Keep normals (N, D) for k neighbours, N if fewer; ValueError for k < 1, N < 1 or a value not finite."""
    if k < 1 or len(embeddings) < 1:
        raise ValueError(f"nearest neighbours need k >= 1 and a normal: k is {k}, normals {len(embeddings)}")
    return KNearest(normals=normalize(finite_tensor(embeddings)), k=min(k, len(embeddings)))


def nearest(references: Tensor, points: Tensor, k: int = 1) -> Tensor:
    """(M,k) int64: which of the references (N,D) are nearest to each of the points (M,D), the nearest first."""
    # |x - r|^2 / 2 less |x|^2 / 2, which is the same for every reference: one matrix product, no root. It is centred,
    # because small distances between points far from the origin would be lost.
    centre = references.mean(0)
    centred = references - centre
    half = centred.square().sum(1) / 2
    scored = torch.addmm(half, points - centre, centred.T, alpha=-1)
    return scored.argmin(1, keepdim=True) if k == 1 else scored.topk(k, largest=False).indices


def _nearest_distances(references: Tensor, points: Tensor, k: int) -> Tensor:
    """Distances (M,k) of points (M,D) to the k nearest of references (N,D)."""
    # By differences: the matrix product in `nearest` would give a copy of a reference a distance above 0.
    distances: Tensor = vector_norm(points[:, None] - references[nearest(references, points, k)], dim=2)
    return distances
