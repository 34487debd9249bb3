"""A coreset: a few embeddings that leave no other one far away."""

from __future__ import annotations

import torch
from torch import Tensor

from train.scorers.finite import finite

# Points among which the next centres are sought before the distances of all are brought up to date.
_POOL = 256


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
    picks = chosen = first.to(points.device)
    far = torch.full_like(squares, torch.inf)
    while len(chosen) < size:
        far = torch.minimum(far, _squared(points, squares, picks).amin(1)).index_fill_(0, picks, -torch.inf)
        picks = _pick(points, squares, far, size - len(chosen))
        chosen = torch.cat([chosen, picks])
    return chosen


def _pick(points: Tensor, squares: Tensor, far: Tensor, most: int) -> Tensor:
    """The next centres, at least one: those that picking one by one would give, found among the farthest points only.

    far: (N,) squared distances to the nearest centre. A pick only lowers the distances of others, so one among the
    farthest points is right as long as it is no nearer than the farthest of the points left out.
    """
    values, pool = far.topk(min(_POOL, len(far)))
    bound = values[-1] if len(pool) < len(far) else values.new_tensor(-torch.inf)
    apart = _squared(points[pool], squares[pool], torch.arange(len(pool), device=pool.device))
    picks: list[int] = []
    while len(picks) < min(most, len(pool)):
        value, place = values.max(0)
        if picks and value < bound:
            break
        picks.append(int(place))
        values = torch.minimum(values, apart[place]).index_fill_(0, place, -torch.inf)
    return pool[picks]


def _squared(points: Tensor, squares: Tensor, chosen: Tensor) -> Tensor:
    """(N,k) squared distances of points (N,D), of squared lengths (N,), to the chosen (k,) of them."""
    return torch.addmm(squares[:, None] + squares[chosen], points, points[chosen].T, alpha=-2)
