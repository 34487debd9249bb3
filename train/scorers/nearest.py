"""The nearest normal of patch embeddings; a score is a distance, 0 or more."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from train.scorers.finite import in_chunks


@dataclass(frozen=True, eq=False)
class PatchNearest:
    """Coreset (size, D) float32 of normal patches; a score is the distance to the nearest of them.

    Source: PatchCore, Roth et al., CVPR 2022, arXiv 2106.08265, without its re-weighting of image scores.
    """

    coreset: Tensor

    def scores(self, patches: Tensor, at_once: bool = False) -> Tensor:
        """Euclidean distances (M,) float32 of patches (M, D), in chunks of bounded memory unless `at_once`."""
        if at_once:
            return _nearest_distances(self.coreset, patches)
        chunks = in_chunks(patches, max(self.coreset.shape))
        return torch.cat([self.scores(chunk.to(self.coreset), at_once=True) for chunk in chunks])


def nearest(references: Tensor, points: Tensor) -> Tensor:
    """(M,) int64: which of the references (N,D) is nearest to each of the points (M,D)."""
    # |x - r|^2 / 2 less |x|^2 / 2, which is the same for every reference: one matrix product, no root. It is centred,
    # because small distances between points far from the origin would be lost.
    centre = references.mean(0)
    centred = references - centre
    half = centred.square().sum(1) / 2
    return torch.addmm(half, points - centre, centred.T, alpha=-1).argmin(1)


def _nearest_distances(references: Tensor, points: Tensor) -> Tensor:
    """Distances (M,) of points (M,D) to the nearest of references (N,D)."""
    # By differences: the matrix product in `nearest` would give a copy of a reference a distance above 0.
    distances: Tensor = vector_norm(points - references[nearest(references, points)], dim=1)
    return distances
