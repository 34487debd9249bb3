"""The whitening of patch embeddings: after it, normal patches vary as much in every direction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from train.scorers.finite import in_chunks

# Share of the variance that the directions kept by "pca" hold.
_KEPT = 0.99


def by_ridge(patches: Tensor, ridge: float) -> Tensor:
    """(E,E): every dimension over its deviation, then the inverse root of (correlation matrix + `ridge` * identity)."""
    covariance = _covariance(patches)
    deviation = _safe(covariance.diagonal().sqrt())
    correlation = covariance / deviation[:, None] / deviation
    values, vectors = torch.linalg.eigh(correlation + ridge * torch.eye(len(correlation)).to(correlation))
    whitening: Tensor = vectors / values.sqrt() / deviation[:, None]
    return whitening


def by_pca(patches: Tensor, ridge: float) -> Tensor:
    """(E,d): the principal directions that hold 99 % of the variance, each over its deviation.

    Their variances are shrunk towards the mean by Ledoit-Wolf's share, whatever `ridge` is.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage  # here: a detector that only scores needs none of it

    values, vectors = torch.linalg.eigh(_covariance(patches))
    kept = values.cumsum(0) / values.sum() > 1 - _KEPT  # they rise
    kept[-1] = True
    values, vectors = values[kept], vectors[:, kept]
    principal = (patches - patches.mean(0)) @ vectors.to(patches)
    shrinkage = float(ledoit_wolf_shrinkage(principal.cpu().numpy(), assume_centered=True))
    shrunk = (1 - shrinkage) * values + shrinkage * values.mean()
    whitening: Tensor = vectors / _safe(shrunk).sqrt()
    return whitening


# What a recipe's `whitening` names: from patches (M,E) and a ridge to the projection (E,d), float64, that whitens.
WHITENINGS: dict[str, Callable[[Tensor, float], Tensor]] = {"ridge": by_ridge, "pca": by_pca}


def _covariance(patches: Tensor) -> Tensor:
    """(E,E) float64, in chunks of bounded memory."""
    mean = patches.mean(0, dtype=torch.float64)
    squares = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=patches.device)
    for chunk in in_chunks(patches, patches.shape[1]):
        centred = chunk.double() - mean
        squares += centred.T @ centred
    return squares / len(patches)


def _safe(spread: Tensor) -> Tensor:
    """The same, with 1 where nothing varies."""
    return torch.where(spread > 1e-12 * spread.max(), spread, torch.ones_like(spread))
