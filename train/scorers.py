"""Anomaly scorers: a Gaussian and the nearest normals of image embeddings, the nearest normals of patch embeddings.

They are fitted to numpy arrays or tensors, and score torch tensors on the device where the fitted object lies. A score
is a distance, 0 or more, and higher means more anomalous. `state_of` turns every fitted object into a flat dict of
tensors, which `torch.load(..., weights_only=True)` can read, and `from_state` turns it back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

State = dict[str, Tensor]

# Elements of the largest temporary: 2^24 float64 are 128 MiB, whatever the number of patches.
_CHUNK_ELEMENTS = 2**24
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
        chunks = _chunks(patches, max(self.coreset.shape))
        return torch.cat([self.scores(chunk.to(self.coreset), at_once=True) for chunk in chunks])


@dataclass(frozen=True)
class Standardiser:
    """Mean and standard deviation of held-out normals' scores, to sum scorers of different scales."""

    mean: float
    deviation: float

    def standardise(self, scores: Tensor) -> Tensor:
        """Scores (M,) float64 in deviations above the mean of the held-out normals."""
        return (scores - self.mean) / self.deviation


T = TypeVar("T")


def state_of(fitted: object) -> State:
    """Field name -> tensor, on the device of a fitted object; a number becomes a tensor without axes."""
    # By way of numpy, as torch.tensor would round a Python float to float32.
    return {n: v if isinstance(v, Tensor) else torch.tensor(np.array(v)) for n, v in vars(fitted).items()}


def from_state(kind: Callable[..., T], state: State) -> T:
    """Inverse of `state_of`; the fitted object works on the device of these tensors."""
    return kind(**{name: value if value.ndim else value.item() for name, value in state.items()})


def on_device(fitted: T, device: torch.device) -> T:
    """The same on a device."""
    return from_state(type(fitted), {name: value.to(device) for name, value in state_of(fitted).items()})


def fit_gaussian(embeddings: NDArray[np.float32]) -> Gaussian:
    """Gaussian with Ledoit-Wolf shrinkage of normal embeddings (N, D); N >= 2 and N < D are fine.

    Source: Rippel et al., arXiv 2005.14140; the density of CutPaste, arXiv 2104.04015. ValueError for N < 2
    or a value that is not finite. If no feature varies, the distance is the Euclidean one.
    """
    if len(embeddings) < 2:
        raise ValueError(f"a Gaussian needs embeddings (N, D) with N >= 2, got {embeddings.shape}")
    estimate = LedoitWolf(store_precision=False).fit(_finite_tensor(embeddings).numpy())
    mean = torch.from_numpy(estimate.location_)
    return Gaussian(mean=mean, factor=_precision_factor(torch.from_numpy(estimate.covariance_), mean))


def fit_k_nearest(embeddings: NDArray[np.float32], k: int = 5) -> KNearest:
    """Keep normals (N, D) for k neighbours, N if fewer; ValueError for k < 1, N < 1 or a value not finite."""
    if k < 1 or len(embeddings) < 1:
        raise ValueError(f"nearest neighbours need k >= 1 and a normal: k is {k}, normals {len(embeddings)}")
    return KNearest(normals=normalize(_finite_tensor(embeddings)), k=min(k, len(embeddings)))


def fit_standardiser(scores: NDArray[np.float64]) -> Standardiser:
    """Mean and sample deviation (1 if it is 0) of scores (N,); ValueError for N < 2 or one not finite."""
    if len(scores) < 2 or not np.isfinite(scores).all():
        raise ValueError(f"standardising needs 2 or more finite scores of normals, got {len(scores)}")
    deviation = float(scores.std(ddof=1)) if np.ptp(scores) > 0 else 1.0
    return Standardiser(mean=float(scores.mean()), deviation=deviation)


def greedy_coreset(embeddings: Tensor, size: int, width: int, seed: int) -> Tensor:
    """Indices (size,) int64, all different, of embeddings (N, D) that leave none far from a chosen one.

    Greedy k-centre: a first embedding by `seed`, then always the one farthest from those chosen, so that the
    largest distance to a chosen one is at most twice the least possible (on a random projection to `width`
    dimensions where D > width). The same seed on the same device gives the same indices; time grows with
    N * size. Source: PatchCore. ValueError unless 1 <= size <= N, and for a value that is not finite.
    """
    count = len(embeddings)
    if not 1 <= size <= count:
        raise ValueError(f"a coreset of {size} cannot be taken from {count} embeddings")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(count, (1,), generator=generator)
    # Centred, because |a|^2 + |b|^2 - 2ab loses the small distances between points far from the origin.
    points = _finite(embeddings).float()
    points = points - points.mean(dim=0)
    if points.shape[1] > width:
        # Drawn on the CPU so that every device gets the same projection.
        points = points @ torch.randn(points.shape[1], width, generator=generator).to(points)
    squares = points.square().sum(dim=1)
    # A point per column: the products with one point then run along memory, which is much faster on a CPU.
    points = points.T.contiguous()
    chosen = torch.empty(size, dtype=torch.int64, device=points.device)
    chosen[:1] = first.to(points.device)
    nearest = torch.full_like(squares, torch.inf)
    for step in range(1, size):
        # Indexed by tensor, not by int: reading the index back would stall a GPU at every step.
        last = chosen[step - 1 : step]
        squared = squares + squares[last] - 2 * (points[:, last].T @ points)[0]
        nearest = torch.minimum(nearest, squared).index_fill_(0, last, -torch.inf)
        chosen[step : step + 1] = nearest.argmax()
    return chosen


def _precision_factor(covariance: Tensor, mean: Tensor) -> Tensor:
    variance = covariance.trace() / len(mean)
    # Below the rounding of float32 embeddings there is no variance to divide by.
    if variance <= (torch.finfo(torch.float32).eps * mean.abs().max()) ** 2:
        return torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    values, vectors = torch.linalg.eigh(covariance)
    factor: Tensor = vectors / values.clamp(min=_VARIANCE_FLOOR * variance).sqrt()
    return factor


def _nearest_distances(references: Tensor, points: Tensor, k: int) -> Tensor:
    """Distances (M, k) of points (M, D) to the k nearest of references (N, D)."""
    # Always by a matrix product: torch's own choice depends on the number of points, which a program must not.
    near = torch.cdist(points, references, compute_mode="use_mm_for_euclid_dist")
    nearest = near.topk(k, largest=False).indices
    # Again by differences: the matrix product in cdist gives a copy of a reference a distance above 0.
    distances: Tensor = vector_norm(points[:, None] - references[nearest], dim=2)
    return distances


def _chunks(rows: Tensor, elements_per_row: int) -> tuple[Tensor, ...]:
    chunks: tuple[Tensor, ...] = torch.split(rows, max(1, _CHUNK_ELEMENTS // elements_per_row))
    return chunks


def _finite(embeddings: Tensor) -> Tensor:
    if not all(bool(chunk.isfinite().all()) for chunk in _chunks(embeddings, embeddings.shape[-1])):
        raise ValueError("embeddings hold a value that is not finite")
    return embeddings


def _finite_tensor(embeddings: NDArray[np.float32]) -> Tensor:
    return _finite(torch.from_numpy(np.array(embeddings, dtype=np.float64)))
