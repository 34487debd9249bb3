"""k-means of saliency maps: exact, in one dimension, on the histogram of each map.

A map is a set of scalars with 256 possible values, so its best clusters are intervals of values, and a dynamic
programme over where the intervals end finds the global optimum (Wang and Song, "Ckmeans.1d.dp", The R Journal 2011):
no seed, no restarts, the same cost at any map size.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

_BINS = 256
# On a CPU this many maps, and columns of their tables, at once stay in the processor's cache.
_MAPS_AT_ONCE_CPU = 12
_MAPS_AT_ONCE_GPU = 256
# Ranges of the 257 columns: a range leaves out the rows beyond its end.
_WIDTH = 65
_COLUMNS = tuple((low, min(low + _WIDTH, _BINS + 1)) for low in range(0, _BINS + 1, _WIDTH))


def cluster_maps(maps: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Cluster each map's values by k-means with the least possible inertia.

    maps: (M,h,w) uint8. clusters: K >= 2.
    Returns labels (M,h,w) uint8, numbered by rising centroid, and centroids (M,K) float32, rising, as saliency in
    0..1. A map with d < K distinct values uses only the labels 0..d-1, and its highest centroid fills the rest.
    """
    at_once = _MAPS_AT_ONCE_GPU if maps.is_cuda else _MAPS_AT_ONCE_CPU
    starts, centroids = zip(
        *(_cluster_histograms(_histograms(part), clusters) for part in torch.split(maps, at_once)), strict=True
    )
    return _labels(maps, torch.cat(starts)), torch.cat(centroids)


def _labels(maps: Tensor, starts: Tensor) -> Tensor:
    """(M,h,w) uint8 from the least value of each cluster but the lowest (M,K-1), 1..256: far faster than a look-up."""
    labels = torch.zeros_like(maps)
    for start in (starts - 1).to(torch.uint8).T:
        labels += maps > start.view(-1, 1, 1)
    return labels


def _histograms(maps: Tensor) -> Tensor:
    count = len(maps)
    offsets = torch.arange(count, device=maps.device).view(-1, 1) * _BINS
    bins = maps.reshape(count, -1).long() + offsets
    return torch.bincount(bins.reshape(-1), minlength=count * _BINS).view(count, _BINS).double()


def _cluster_histograms(histograms: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """(M,256) counts to the least value of each cluster but the lowest (M,K-1), 256 for none, and centroids (M,K)."""
    values = torch.arange(_BINS, dtype=torch.float64, device=histograms.device)
    count = torch.nn.functional.pad(histograms.cumsum(1), (1, 0))
    total = torch.nn.functional.pad((histograms * values).cumsum(1), (1, 0))
    borders = torch.nn.functional.pad(_best_ends(count, total, clusters), (1, 0))
    borders = torch.nn.functional.pad(borders, (0, 1), value=_BINS)
    size = count.gather(1, borders).diff(dim=1)
    centroid = total.gather(1, borders).diff(dim=1) / size.clamp(min=1)
    # Empty clusters, which only a map of fewer than K distinct values has, move behind the others.
    filled = size > 0
    rank = (filled.long().cumsum(1) - 1).clamp(min=0)
    moved = torch.zeros_like(centroid).scatter_reduce(1, rank, centroid.where(filled, 0.0), "amax")
    start = torch.full_like(rank, _BINS).scatter_reduce(1, rank, borders[:, :-1].where(filled, _BINS), "amin")
    return start[:, 1:], (moved.cummax(1).values / (_BINS - 1)).float()


def _best_ends(count: Tensor, total: Tensor, clusters: int) -> Tensor:
    """(M,K-1) int64: the first value that no longer belongs to cluster 0, 1, .. K-2.

    count, total: (M,257) float64, how many cells hold a value below 0, 1, .. 256, and the sum of those values.
    Least inertia is largest sum over clusters of (sum of values)^2 / count, the gain. Counts and sums are whole
    numbers that float64 holds exactly; float32 would lose a small cluster next to large ones.
    """
    # best[k][m, j]: the greatest gain of k+1 clusters of the values 0..j-1. One cluster leaves no choice. Of k+1 the
    # last holds i..j-1 and the others are the best k of 0..i-1, so each row follows from the row before it.
    best = [total.square() / count.clamp(min=1)]
    best += [torch.empty_like(count) for _ in range(clusters - 2)]
    spaces = count.new_empty(2, len(count) * _WIDTH * (_BINS + 1))
    for low, high in _COLUMNS if clusters > 2 else ():
        # Views of the same memory: new memory for every range would cost more than the arithmetic.
        shape = len(count), high - low, high
        gain, sums = (space[: math.prod(shape)].view(shape) for space in spaces)
        _gains(count, total, low, high, gain, sums)
        # The gains of these columns serve every k. The row of all clusters is not computed: only its last value would
        # be needed, and the walk back below finds the ends without it.
        for fewer, more in pairwise(best):
            more[:, low:high] = torch.add(gain, fewer[:, None, :high], out=sums).amax(2)
    # Walk back from the last cluster. To find each start again costs less than to store the place of every maximum.
    end = torch.full_like(count[:, :1], _BINS, dtype=torch.int64)
    starts = torch.arange(_BINS + 1, device=end.device)
    ends = []
    for before in reversed(best):
        last = (total.gather(1, end) - total).square_() / (count.gather(1, end) - count).clamp_(min=1)
        end = (before + last).masked_fill_(starts > end, float("-inf")).argmax(1, keepdim=True)
        ends.append(end)
    return torch.cat(ends[::-1], 1)


def _gains(count: Tensor, total: Tensor, low: int, high: int, gain: Tensor, sums: Tensor) -> None:
    """Fill `gain` (M,high-low,high) with those of one cluster of the values i..j-1, low <= j < high and i < high.

    -inf where i > j. sums: of the same shape, overwritten.
    """
    torch.sub(total[:, low:high, None], total[:, None, :high], out=gain).square_()
    gain.div_(torch.sub(count[:, low:high, None], count[:, None, :high], out=sums).clamp_(min=1))
    backwards = torch.full((high - low, high - low), float("-inf"), dtype=gain.dtype, device=gain.device).triu_(1)
    gain[:, :, low:].add_(backwards)
