"""Score a category's test images with a detector and measure the scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.calibration import Calibration
from train.detector import Detector
from train.evaluation.cell_result import DefectResult
from train.evaluation.metrics import METRICS, PixelRanking, has_pixel_truth, measure
from train.evaluation.test_set import TestSet
from train.prediction import Scores


@dataclass(frozen=True)
class Evaluation:
    """Metrics as in `CellResult`, and of the images all scores and the deciding ones (N,), by this calibration."""

    metrics: dict[str, float | None]
    scorers: dict[str, float | None]
    by_defect: dict[str, DefectResult]
    scores: Scores
    decision_scores: NDArray[np.float64]
    calibration: Calibration


def evaluate(detector: Detector, tests: TestSet) -> Evaluation:
    """Score test images and measure every metric, of all images and of each class of defect with all normals.

    Anomalous images without a mask, or with an empty one, take no part in the metrics that need masks.
    """
    labels, masks = tests.labels, tests.masks
    scores = detector.score_items(range(len(tests)), tests.image)
    deciding = detector.decision_scores(scores)
    known = has_pixel_truth(labels, masks)
    pixels = PixelRanking.of(masks[known], scores.maps[known]) if masks.any() else None
    by_defect = {}
    for defect in sorted({sample.defect for sample in tests.samples if sample.label}):
        shown = np.array([sample.defect == defect for sample in tests.samples])
        chosen = shown | (labels == 0)
        some = None if pixels is None else pixels.select(chosen[known])
        by_defect[defect] = DefectResult(int(shown.sum()), measure(labels[chosen], deciding[chosen], some))
    scorers = {name: METRICS[0].function(labels, values) for name, values in scores.image.items()}
    return Evaluation(measure(labels, deciding, pixels), scorers, by_defect, scores, deciding, detector.calibration)
