"""Score a category's test images with a detector and measure the scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import decode_mask, decode_rgb, read_bytes
from pipeline.data.layouts import Sample
from pipeline.settings import PrecomputeSettings
from pipeline.threads import CORES
from train.detector import Detector, Scores
from train.evaluation.cell_result import DefectResult
from train.evaluation.metrics import METRICS, PixelRanking, has_pixel_truth, measure


@dataclass(frozen=True)
class Evaluation:
    """Metrics as in `CellResult`, and of the images all scores, the deciding ones (N,), and labels (N,)."""

    metrics: dict[str, float | None]
    scorers: dict[str, float | None]
    by_defect: dict[str, DefectResult]
    scores: Scores
    decision_scores: NDArray[np.float64]
    labels: NDArray[np.int64]


def read_images(image_root: str, paths: Sequence[str], settings: PrecomputeSettings) -> Iterator[NDArray[np.uint8]]:
    """Images (size,size,3) uint8 as precompute would decode them, read ahead in threads; raises ImageError."""
    return CORES.spread(partial(_read, image_root, settings), paths)


def evaluate(detector: Detector, image_root: str, samples: Sequence[Sample]) -> Evaluation:
    """Score test samples and measure every metric, of all images and of each class of defect with all normals.

    Anomalous images without a mask, or with an empty one, take no part in the metrics that need masks.
    """
    settings = detector.precompute_settings
    labels = np.array([sample.label for sample in samples], np.int64)
    scores = detector.score_items((sample.path for sample in samples), partial(_read, image_root, settings))
    deciding = detector.decision_scores(scores)
    masks = np.stack(list(CORES.spread(partial(_mask, image_root, settings), samples)))
    known = has_pixel_truth(labels, masks)
    pixels = PixelRanking.of(masks[known], scores.maps[known]) if masks.any() else None
    by_defect = {}
    for defect in sorted({sample.defect for sample in samples if sample.label}):
        shown = np.array([sample.defect == defect for sample in samples])
        chosen = shown | (labels == 0)
        some = None if pixels is None else pixels.select(chosen[known])
        by_defect[defect] = DefectResult(int(shown.sum()), measure(labels[chosen], deciding[chosen], some))
    scorers = {name: METRICS[0].function(labels, values) for name, values in scores.image.items()}
    return Evaluation(measure(labels, deciding, pixels), scorers, by_defect, scores, deciding, labels)


def _read(image_root: str, settings: PrecomputeSettings, path: str) -> NDArray[np.uint8]:
    return decode_rgb(read_bytes(image_root, path), settings.image_size, settings.resize, path)


def _mask(image_root: str, settings: PrecomputeSettings, sample: Sample) -> NDArray[np.bool_]:
    if sample.mask is None:
        return np.zeros((settings.image_size, settings.image_size), bool)
    return decode_mask(read_bytes(image_root, sample.mask), settings.image_size, settings.resize, sample.mask)
