"""Metrics: `METRICS` lists them all; means over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.evaluation.image_metrics import defects_found, f1, good_kept, image_ap, image_auroc
from train.evaluation.pixel_metrics import PixelRanking, aupro, iou, pixel_auroc


@dataclass(frozen=True, eq=False)
class Scored:
    """Test images as a detector sees them: all that a metric may read.

    labels: (N,), 1 for anomalous; scores: (N,) finite, that decide; flagged: (N,), whether the detector calls an image
    anomalous; pixels: of their maps, none where there are no masks; map_threshold: above it a pixel is marked.
    """

    labels: NDArray[np.integer]
    scores: NDArray[np.floating]
    flagged: NDArray[np.bool_]
    pixels: PixelRanking
    map_threshold: float


@dataclass(frozen=True)
class Metric:
    """A metric, in 0..1 and higher for the better, or None where it is not defined.

    name: its key in `results.json` and `cell.json` and its column in `results.csv`; title: what tables call it.
    shown: also in the tables that commands print, which have no room for all. needs_masks: `results.json` has null for
    it in place of a list where there are none.
    """

    name: str
    title: str
    function: Callable[[Scored], float | None]
    shown: bool = False
    needs_masks: bool = False


# All that is measured, in the order of every table; the first one is what scorers and arms are compared by.
METRICS = (
    Metric("image_auroc", "image AUROC", lambda of: image_auroc(of.labels, of.scores), shown=True),
    Metric("image_ap", "image AP", lambda of: image_ap(of.labels, of.scores)),
    Metric("good_kept_at_2", "good kept at 2 % missed", lambda of: good_kept(of.labels, of.scores, 0.02), shown=True),
    Metric(
        "defects_found_at_2",
        "defects found at 2 % flagged",
        lambda of: defects_found(of.labels, of.scores, 0.02),
        shown=True,
    ),
    Metric("f1", "F1 at the threshold", lambda of: f1(of.labels, of.flagged)),
    Metric("pixel_auroc", "pixel AUROC", lambda of: pixel_auroc(of.pixels), needs_masks=True),
    Metric("aupro", "AUPRO", lambda of: aupro(of.pixels, 0.3), shown=True, needs_masks=True),
    Metric("aupro_at_5", "AUPRO up to 5 %", lambda of: aupro(of.pixels, 0.05), needs_masks=True),
    Metric("iou", "IoU at the map's threshold", lambda of: iou(of.pixels, of.map_threshold), needs_masks=True),
)


def measure(images: Scored) -> dict[str, float | None]:
    """Every metric by name."""
    return {metric.name: metric.function(images) for metric in METRICS}


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
