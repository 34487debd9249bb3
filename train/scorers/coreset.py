"""A coreset: a few embeddings that leave no other one far away."""

from __future__ import annotations

import torch
from torch import Tensor

from train.scorers.finite import finite


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
    points = finite(embeddings).float()
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
