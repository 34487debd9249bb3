"""k-means of saliency maps: exact, in one dimension, on the histogram of each map.

A map is a set of scalars with 256 possible values, so its best clusters are intervals of values, and a dynamic
programme over where the intervals end finds the global optimum (Wang and Song, "Ckmeans.1d.dp", The R Journal 2011):
no seed, no restarts, the same cost at any map size.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BINS = 256
# On a CPU this many maps at once keep the (257, 257) cost tables in the processor's cache.
_MAPS_AT_ONCE_CPU = 4
_MAPS_AT_ONCE_GPU = 256


def cluster_maps(maps: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Cluster each map's values by k-means with the least possible inertia.

    maps: (M,h,w) uint8. clusters: K >= 2.
    Returns labels (M,h,w) uint8, numbered by rising centroid, and centroids (M,K) float32, rising, as saliency in
    0..1. A map with d < K distinct values uses the labels 0..d-1 alone, and its highest centroid fills the rest.
    """
    at_once = _MAPS_AT_ONCE_GPU if maps.is_cuda else _MAPS_AT_ONCE_CPU
    tables, centroids = zip(
        *(_cluster_histograms(_histograms(part), clusters) for part in torch.split(maps, at_once)), strict=True
    )
    table = torch.cat(tables)
    labels = table.gather(1, maps.reshape(len(maps), -1).long()).reshape(maps.shape)
    return labels, torch.cat(centroids)


def _histograms(maps: Tensor) -> Tensor:
    count = len(maps)
    offsets = torch.arange(count, device=maps.device).view(-1, 1) * _BINS
    bins = maps.reshape(count, -1).long() + offsets
    return torch.bincount(bins.reshape(-1), minlength=count * _BINS).view(count, _BINS).double()


def _cluster_histograms(histograms: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """(M,256) counts to the label of every value (M,256) uint8 and the centroids (M,K) float32."""
    values = torch.arange(_BINS, dtype=torch.float64, device=histograms.device)
    ends = _best_ends(histograms, values, clusters)
    table = torch.searchsorted(ends, values.long().expand(len(ends), -1).contiguous(), right=True)
    count = torch.zeros(len(ends), clusters, dtype=torch.float64, device=ends.device)
    total = count.scatter_add(1, table, histograms * values)
    count.scatter_add_(1, table, histograms)
    # Empty clusters, which only a map of fewer than K distinct values has, move behind the others.
    filled = count > 0
    rank = filled.long().cumsum(1) - 1
    centroid = total / count.clamp(min=1)
    moved = torch.zeros_like(centroid).scatter_reduce(1, rank.clamp(min=0), centroid.where(filled, 0.0), "amax")
    moved = moved.cummax(1).values / (_BINS - 1)
    return rank.gather(1, table).clamp(min=0).to(torch.uint8), moved.float()


def _best_ends(histograms: Tensor, values: Tensor, clusters: int) -> Tensor:
    """(M,K-1) int64: the first value that no longer belongs to cluster 0, 1, .. K-2.

    Least inertia is largest sum over clusters of (sum of values)^2 / count. Counts and sums are whole numbers that
    float64 holds exactly; float32, which is hardly faster, would lose a small cluster beside large ones.
    """
    count = torch.nn.functional.pad(histograms.cumsum(1), (1, 0))
    total = torch.nn.functional.pad((histograms * values).cumsum(1), (1, 0))
    # gain[m, j, i]: of one cluster that holds the values i..j-1
    gain = (total[:, :, None] - total[:, None, :]).square_()
    scratch = (count[:, :, None] - count[:, None, :]).clamp_(min=1)
    backwards = torch.full((_BINS + 1, _BINS + 1), float("-inf"), device=gain.device).triu_(1)
    gain.div_(scratch).add_(backwards)
    best = gain[:, :, 0]
    choices = []
    for _ in range(clusters - 2):
        best, choice = torch.add(gain, best[:, None, :], out=scratch).max(2)
        choices.append(choice)
    end = (gain[:, -1, :] + best).argmax(1, keepdim=True)
    ends = [end]
    for choice in reversed(choices):
        end = choice.gather(1, end)
        ends.append(end)
    return torch.cat(ends[::-1], 1)
