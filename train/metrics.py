"""Figures of merit: image AUROC and AP, pixel AUROC, AUPRO, thresholds, means over seeds.

An anomaly score is higher for the more anomalous; label 1 and mask True mean anomalous. A figure that is not
defined, such as an AUROC of one class alone, is None and never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

# Diagonal neighbours belong to one region, as in the evaluation code published with MVTec AD.
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.int64)


def image_auroc(labels: NDArray[np.integer], scores: NDArray[np.floating]) -> float | None:
    """Area under the ROC curve, 0..1, of scores (N,) for labels (N,) in {0, 1}; None for a single class.

    ValueError for a score that is not finite.
    """
    if len(np.unique(labels)) < 2:
        return None
    return float(roc_auc_score(labels, scores))


def image_ap(labels: NDArray[np.integer], scores: NDArray[np.floating]) -> float | None:
    """Average precision, 0..1, of scores (N,) for labels (N,) in {0, 1}; None for a single class.

    The step-wise sum of scikit-learn, without interpolation. ValueError for a score that is not finite.
    """
    if len(np.unique(labels)) < 2:
        return None
    return float(average_precision_score(labels, scores))


def has_pixel_truth(labels: NDArray[np.integer], masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which (N,) images the pixel figures may use, from labels (N,) and masks (N, H, W).

    All but the anomalous images whose mask is empty: there the place of the anomaly is not known, and
    counting all their pixels as normal would punish a map that finds it. Select with this before calling
    `pixel_auroc` and `aupro`, to which an empty mask is a normal image.
    """
    usable: NDArray[np.bool_] = np.logical_or(np.asarray(labels) == 0, masks.any(axis=(1, 2)))
    return usable


def pixel_auroc(masks: NDArray[np.bool_], maps: NDArray[np.float32]) -> float | None:
    """Area under the ROC curve, 0..1, over the pixels of all maps (N, H, W), exact, ties counted half.

    None where the masks (N, H, W) are all True or all False. ValueError for other shapes or a score that is
    not finite.
    """
    _check(masks, maps)
    anomalous = int(np.count_nonzero(masks))
    normal = masks.size - anomalous
    if anomalous == 0 or normal == 0:
        return None
    false_positives, true_positives = _cumulated(maps, masks.astype(np.float64))
    return float(np.trapezoid(true_positives, false_positives) / (anomalous * normal))


def aupro(masks: NDArray[np.bool_], maps: NDArray[np.float32], fpr_limit: float = 0.3) -> float | None:
    """Area under the per-region-overlap curve up to a false positive rate, divided by that rate; 0..1.

    Per-region overlap: the detected share of each connected anomalous region (8 neighbours, within an image),
    averaged over the regions of all masks (N, H, W), so that small ones count as much as large ones. False
    positive rate: the detected share of all normal pixels. Every distinct score of the maps (N, H, W) is a
    threshold, and the curve is linear between them and at the limit. Source: Bergmann et al., IJCV 129, 2021,
    and the evaluation code published with it. None where the masks hold no region or no normal pixel.
    ValueError for other shapes, a score that is not finite, or a limit outside 0 < limit <= 1.
    """
    _check(masks, maps)
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"the false positive rate to integrate to is in 0..1, not {fpr_limit}")
    shares = _region_shares(masks)
    normal = masks.size - int(np.count_nonzero(masks))
    if shares is None or normal == 0:
        return None
    false_positives, overlap = _cumulated(maps, shares)
    # The cumulated shares can pass 1 by rounding.
    return min(1.0, _area_up_to(false_positives / normal, overlap, fpr_limit) / fpr_limit)


def threshold_at(scores: NDArray[np.floating], false_alarm_rate: float) -> float:
    """Least score of held-out normals (N,) that at most the given share of them lie strictly above.

    An image is called anomalous if its score is above the threshold. It is conservative: never between two
    scores, always the upper one. A rate below 1 / N gives the maximum of the N normals, as 0.01 does for 40;
    new normals then exceed it at a rate of 1 / (N + 1) on average, here 0.024, whatever rate was asked for.
    ValueError for no scores, one not finite, or a rate outside 0 <= rate < 1.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    if len(ordered) == 0 or not np.isfinite(ordered).all():
        raise ValueError(f"a threshold needs finite scores of held-out normals, got {len(ordered)}")
    if not 0 <= false_alarm_rate < 1:
        raise ValueError(f"a false alarm rate is in 0 <= rate < 1, not {false_alarm_rate}")
    # The small term keeps 0.29 * 100 = 28.999999999999996 from losing one.
    allowed = min(math.floor(false_alarm_rate * len(ordered) + 1e-9), len(ordered) - 1)
    return float(ordered[len(ordered) - 1 - allowed])


def mean_and_standard_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error: sample deviation (n - 1) over the root of n; None for a single value.

    ValueError for no values or one that is not finite.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) == 0 or not np.isfinite(numbers).all():
        raise ValueError(f"a mean needs finite values, got {list(values)}")
    if len(numbers) == 1:
        return float(numbers[0]), None
    return float(numbers.mean()), float(numbers.std(ddof=1) / math.sqrt(len(numbers)))


def _check(masks: NDArray[np.bool_], maps: NDArray[np.float32]) -> None:
    if masks.shape != maps.shape or masks.ndim != 3 or masks.dtype != np.bool_:
        raise ValueError(
            f"masks and maps must be (N, H, W), masks boolean: got {masks.dtype} {masks.shape}, {maps.shape}"
        )
    if not np.isfinite(maps).all():
        raise ValueError("an anomaly map holds a value that is not finite")


def _region_shares(masks: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """(N, H, W): 1 / (size of the pixel's region * number of regions), 0 on normals; None without a region."""
    shares = np.zeros(masks.shape)
    regions = 0
    for share, mask in zip(shares, masks, strict=True):
        if mask.any():
            labelled, found = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
            sizes = np.bincount(labelled[mask])
            share[mask] = 1 / sizes[labelled[mask]]
            regions += found
    return shares / regions if regions else None


def _cumulated(
    maps: NDArray[np.float32], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Normal pixels detected, and weight of anomalous pixels detected, at each falling threshold; from 0, 0.

    A pixel is anomalous where its weight is above 0. Pixels of one score make one step, so that their order
    does not count.
    """
    order = np.argsort(maps, axis=None)[::-1]
    ordered = maps.ravel()[order]
    last_of_score = np.append(ordered[1:] != ordered[:-1], True)
    sorted_weights = weights.ravel()[order]
    normals = np.cumsum(sorted_weights == 0)[last_of_score]
    weight = np.cumsum(sorted_weights)[last_of_score]
    return np.concatenate(([0.0], normals)), np.concatenate(([0.0], weight))


def _area_up_to(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """Area under the polyline through rising x, cut at x = limit, where y is interpolated."""
    inside = int(np.searchsorted(x, limit, side="right"))
    area = float(np.trapezoid(y[:inside], x[:inside]))
    if inside < len(x):
        width = limit - x[inside - 1]
        slope = (y[inside] - y[inside - 1]) / (x[inside] - x[inside - 1])
        area += float(width * (y[inside - 1] + slope * width / 2))
    return area
