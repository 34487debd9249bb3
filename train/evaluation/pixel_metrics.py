"""Metrics of the pixels of anomaly maps against masks; mask True means anomalous.

A metric that is not defined, such as one without an anomalous pixel, is None and never NaN. SciPy is imported where it
is used, because its import is slow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Diagonal neighbours belong to one region, as in the evaluation code published with MVTec AD.
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.int64)


def has_pixel_truth(labels: NDArray[np.integer], masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which (N,) images the pixel metrics may use, from labels (N,) and masks (N, H, W).

    All but the anomalous images whose mask is empty: there the place of the anomaly is not known, and
    counting all their pixels as normal would punish a map that finds it. Select with this before ranking their
    pixels, as an empty mask is a normal image there.
    """
    usable: NDArray[np.bool_] = np.logical_or(np.asarray(labels) == 0, masks.any(axis=(1, 2)))
    return usable


@dataclass(frozen=True, eq=False)
class PixelRanking:
    """The pixels of anomaly maps by falling score, sorted once for every metric of pixels.

    scores: (P,) float; regions: (P,) int32, which connected anomalous region a pixel is in (8 neighbours, within an
    image), from 1, and 0 for a normal pixel; images: (P,) int32, which image it is of.
    """

    scores: NDArray[np.float32]
    regions: NDArray[np.int32]
    images: NDArray[np.int32]

    @classmethod
    def of(cls, masks: NDArray[np.bool_], maps: NDArray[np.float32]) -> PixelRanking:
        """Rank the pixels of maps (N, H, W) with masks (N, H, W).

        ValueError for other shapes, masks that are not boolean, or a score that is not finite.
        """
        if masks.shape != maps.shape or masks.ndim != 3 or masks.dtype != np.bool_:
            raise ValueError(
                f"masks and maps must be (N, H, W), masks boolean: got {masks.dtype} {masks.shape}, {maps.shape}"
            )
        if not np.isfinite(maps).all():
            raise ValueError("an anomaly map holds a value that is not finite")
        from scipy import ndimage

        regions, found = np.zeros(masks.shape, np.int32), 0
        for region, mask in zip(regions, masks, strict=True):
            if mask.any():
                labelled, count = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
                region[mask] = labelled[mask] + found
                found += count
        order = np.argsort(maps, axis=None)[::-1]
        images = (order // math.prod(maps.shape[1:])).astype(np.int32)
        return cls(maps.ravel()[order], regions.ravel()[order], images)

    def select(self, images: NDArray[np.bool_]) -> PixelRanking:
        """The pixels of the images that are True in (N,), in the same order and so without another sort."""
        kept = images[self.images]
        return PixelRanking(self.scores[kept], self.regions[kept], self.images[kept])

    def sizes(self) -> NDArray[np.int64]:
        """(R + 1,): how many pixels are normal, then how many each region has; 0 for one of an image not selected."""
        return np.bincount(self.regions, minlength=1)

    def cumulated(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Normal pixels detected, and weight of anomalous pixels detected, at each falling threshold; from 0, 0.

        weights: (R + 1,), of a pixel of each region, 0 first. Pixels of one score make one step, so that their order
        does not count.
        """
        last_of_score = np.append(self.scores[1:] != self.scores[:-1], True)
        normals = np.cumsum(self.regions == 0)[last_of_score]
        weight = np.cumsum(weights[self.regions])[last_of_score]
        return np.concatenate(([0.0], normals)), np.concatenate(([0.0], weight))


def pixel_auroc(pixels: PixelRanking) -> float | None:
    """Area under the ROC curve, 0..1, over all pixels, exact, ties counted half.

    None where they are all normal or all anomalous.
    """
    normal, *regions = pixels.sizes().tolist()
    anomalous = sum(regions)
    if anomalous == 0 or normal == 0:
        return None
    false_positives, true_positives = pixels.cumulated(np.minimum(np.arange(1.0 + len(regions)), 1))
    return float(np.trapezoid(true_positives, false_positives) / (anomalous * normal))


def aupro(pixels: PixelRanking, fpr_limit: float = 0.3) -> float | None:
    """Area under the per-region-overlap curve up to a false positive rate, divided by that rate; 0..1.

    Per-region overlap: the detected share of each connected anomalous region, averaged over the regions of all images,
    so that small ones count as much as large ones. False positive rate: the detected share of all normal pixels. Every
    distinct score is a threshold, and the curve is linear between them and at the limit. Source: Bergmann et al., IJCV
    129, 2021, and the evaluation code published with it. None where there is no region or no normal pixel. ValueError
    for a limit outside 0 < limit <= 1.
    """
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"the false positive rate to integrate to is in 0..1, not {fpr_limit}")
    sizes = pixels.sizes()
    normal, regions = int(sizes[0]), np.count_nonzero(sizes[1:])
    if regions == 0 or normal == 0:
        return None
    shares = 1 / np.maximum(sizes, 1) / regions
    shares[0] = 0
    false_positives, overlap = pixels.cumulated(shares)
    # The cumulated shares can pass 1 by rounding.
    return min(1.0, _area_up_to(false_positives / normal, overlap, fpr_limit) / fpr_limit)


def iou(pixels: PixelRanking, threshold: float) -> float | None:
    """Intersection over union, 0..1, of the anomalous pixels and those whose score is above the threshold.

    Over the pixels of all images together, so that what is marked on normal images counts against it; also called the
    Jaccard index. None without an anomalous pixel.
    """
    anomalous = np.count_nonzero(pixels.regions)
    if anomalous == 0:
        return None
    marked = np.count_nonzero(pixels.scores > threshold)
    both = np.count_nonzero(pixels.regions[:marked])
    return float(both / (anomalous + marked - both))


def _area_up_to(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """Area under the polyline through rising x, cut at x = limit, where y is interpolated."""
    inside = int(np.searchsorted(x, limit, side="right"))
    area = float(np.trapezoid(y[:inside], x[:inside]))
    if inside < len(x):
        width = limit - x[inside - 1]
        slope = (y[inside] - y[inside - 1]) / (x[inside] - x[inside - 1])
        area += float(width * (y[inside - 1] + slope * width / 2))
    return area
