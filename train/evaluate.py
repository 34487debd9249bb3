"""Score a category's test images with a detector and measure the scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from train.calibration import Calibration
from train.detector import Detector
from train.evaluation.cell_result import DefectResult
from train.evaluation.image_metrics import image_auroc
from train.evaluation.metrics import Scored, measure
from train.evaluation.pixel_metrics import PixelRanking, has_pixel_truth
from train.evaluation.test_set import TestSet
from train.prediction import Scores


@dataclass(frozen=True)
class Evaluation:
    """Metrics and counts as in `CellResult`, by a calibration; of the images all scores and the deciding ones (N,)."""

    metrics: dict[str, float | None]
    scorers: dict[str, float | None]
    by_defect: dict[str, DefectResult]
    n_normal: int
    n_flagged_normal: int
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
    flagged = np.array([detector.calibration.exceeds(score) for score in deciding.tolist()], np.bool_)
    known = has_pixel_truth(labels, masks) & masks.any()  # without a mask no pixel is ranked
    pixels = PixelRanking.of(masks[known], scores.maps[known])
    images = Scored(labels, deciding, flagged, pixels, detector.calibration.map_threshold)
    by_defect = {}
    for defect in sorted({sample.defect for sample in tests.samples if sample.label}):
        shown = np.array([sample.defect == defect for sample in tests.samples])
        chosen = shown | (labels == 0)
        some = replace(
            images,
            labels=labels[chosen],
            scores=deciding[chosen],
            flagged=flagged[chosen],
            pixels=pixels.select(chosen[known]),
        )
        by_defect[defect] = DefectResult(int(shown.sum()), measure(some), int(flagged[shown].sum()))
    scorers = {name: image_auroc(labels, values) for name, values in scores.image.items()}
    normals = int((labels == 0).sum()), int(flagged[labels == 0].sum())
    return Evaluation(measure(images), scorers, by_defect, *normals, scores, deciding, detector.calibration)
